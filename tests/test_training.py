"""The loop learns, repeats, and refuses what cannot be a run; the run folder says what the design's table asks."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from labkit.errors import LabError
from labkit.evidence import Pack, read_csv, read_manifest
from labkit.generation import Sampling, load_chat_model
from labkit.gpt2 import GPT2, GPT2Config
from labkit.layout import MODELS
from labkit.training.data import IGNORED, Batches, TokenData
from labkit.training.loop import EXPLODED, Trainer, train
from labkit.training.mini_gpt2 import train_into_pack, train_mini_gpt2
from labkit.training.optimizer import learning_rate, make_optimizer
from labkit.training.plan import MiniRun
from labkit.training.recipe import read_chats, read_recipe, train_from_recipe
from labkit.training.run_files import RUN_FOLDER, load_mini_gpt2, verdict_of
from labkit.training.settings import TrainSettings
from labkit.training.tokens import encode_chats, train_bpe, train_characters

TINY = MiniRun(steps=6, batch_size=4, vocab_size=400, block_size=32, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run in a pack: (folder, result)."""
    folder = tmp_path_factory.mktemp("pack")
    return folder, train_into_pack(Pack(folder, "local_cpu"), TINY, "cpu")


def test_one_batch_is_memorised():
    """The proof that the loop learns at all: a batch seen 150 times must be known by heart (loss under 0.05)."""
    torch.manual_seed(0)
    tokens = np.random.default_rng(0).integers(0, 50, 33).astype(np.uint16)
    data = TokenData(tokens)
    model = GPT2(GPT2Config(vocab_size=50, block_size=32, n_layer=2, n_head=2, n_embd=64))
    settings = TrainSettings(steps=150, batch_size=2, block_size=32, log_every=50, warmup_steps=10, weight_decay=0.0)
    rows = train(model, data, data, settings, "cpu")
    assert rows[-1].val_loss < 0.05


def test_the_same_loop_trains_a_transformers_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    data = TokenData(np.tile(np.arange(50), 20).astype(np.uint16))
    settings = TrainSettings(steps=40, batch_size=4, block_size=16, log_every=20, warmup_steps=5)
    rows = train(LlamaForCausalLM(config), data, data, settings, "cpu")
    assert rows[-1].val_loss < 0.75 * rows[0].val_loss


def test_the_same_loop_trains_an_adapter_and_nothing_else():
    """A PEFT-wrapped model: the base stays as it was, the adapter learns."""
    from peft import LoraConfig, get_peft_model

    from labkit.generation.torchao import without_old_torchao

    without_old_torchao()
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64}
    base = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2))
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=True))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = TokenData(np.tile(np.arange(50), 20).astype(np.uint16))
    rows = train(model, data, data, TrainSettings(steps=30, block_size=16, log_every=10, learning_rate=1e-2), "cpu")
    assert rows[-1].val_loss < rows[0].val_loss
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_batches_come_in_order_and_know_where_they_are():
    """What the thread has drawn ahead must not count: a resumed run draws it again."""
    data = TokenData(np.arange(500, dtype=np.uint16))
    rng = np.random.default_rng(5)
    plain = [data.batch(rng, 2, 8)[0] for _ in range(4)]
    batches = Batches(data, np.random.default_rng(5), 2, 8, "cpu")
    assert all(torch.equal(batches.next()[0], plain[n]) for n in range(2))
    again = np.random.default_rng()
    again.bit_generator.state = batches.position
    batches.close()
    assert torch.equal(data.batch(again, 2, 8)[0], plain[2])


def test_same_seed_same_losses(tmp_path, finished):
    _, first = finished
    second = train_mini_gpt2(tmp_path, TINY, "cpu")
    assert [row.train_loss for row in first.rows] == [row.train_loss for row in second.rows]
    assert first.sample == second.sample


def test_run_folder_holds_what_the_pack_asks_for(finished):
    folder, result = finished
    rows = read_csv(folder / RUN_FOLDER / "training_log.csv")
    assert len(rows) >= 3
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"])
    assert {row["device"] for row in rows} == {"cpu"}
    report = json.loads((folder / RUN_FOLDER / "environment_report.json").read_text(encoding="utf-8"))
    assert report["device"] == "cpu"
    assert report["parameter_count"] == result.parameter_count
    assert report["verdict"] == "smoke test"
    assert "smoke test" in (folder / RUN_FOLDER / "README.md").read_text(encoding="utf-8")
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(read_manifest(folder)["files"]) == left - {"manifest.json"}


def test_trace_agrees_with_the_log(finished):
    folder, _ = finished
    trace = (folder / "gpu_train_log.txt").read_text(encoding="utf-8")
    assert trace.startswith("device: cpu (")
    for row in read_csv(folder / RUN_FOLDER / "training_log.csv"):
        assert f"step {row['step']} | train loss {row['train_loss']} | held-out loss {row['val_loss']} |" in trace
    assert f"checkpoint: {RUN_FOLDER}/mini_gpt2_checkpoint.pt" in trace
    assert "sample: " in trace


def test_checkpoint_loads_weights_only_and_writes_the_same_text(finished):
    folder, result = finished
    model, tokenizer = load_mini_gpt2(folder / RUN_FOLDER / "mini_gpt2_checkpoint.pt")
    assert sum(p.numel() for p in model.parameters()) == result.parameter_count
    prompt = torch.tensor([tokenizer.encode("Customer:").ids])
    assert tokenizer.decode(model.generate(prompt, 60, 0.8, seed=TINY.seed)[0].tolist()) == result.sample


def test_a_broken_checkpoint_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(LabError, match=r"broken\.pt is not a mini GPT-2 checkpoint"):
        load_mini_gpt2(tmp_path / "broken.pt")


def test_only_cuda_rows_make_cuda_acceptance(finished):
    rows = finished[1].rows
    assert verdict_of(rows) == "smoke test"
    assert verdict_of([replace(row, device="mps") for row in rows]) == "smoke test"
    assert verdict_of([replace(rows[0], device="cuda"), rows[1]]) == "smoke test"
    on_cuda = [replace(row, device="cuda") for row in rows]
    assert verdict_of(on_cuda) == "smoke test"  # six steps
    assert verdict_of([*on_cuda, replace(on_cuda[-1], step=500)]) == "CUDA acceptance"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"caf\xe9 au lait", "is not UTF-8"),
        (b"PK\x03\x04\0\0", "is a binary file"),
        (b"too short", "too few for windows"),
    ],
)
def test_a_text_that_is_no_text_leaves_no_file(tmp_path, content, message):
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    with pytest.raises(LabError, match=message):
        train_mini_gpt2(tmp_path / "out", MiniRun(text=text, steps=4), "cpu")
    assert not (tmp_path / "out").exists()


def test_missing_text_and_bad_numbers_are_named(tmp_path):
    with pytest.raises(LabError, match=r"nothing\.txt cannot be read"):
        train_mini_gpt2(tmp_path, MiniRun(text=tmp_path / "nothing.txt"), "cpu")
    with pytest.raises(LabError, match="1 steps are too few"):
        train_mini_gpt2(tmp_path, MiniRun(steps=1), "cpu")
    with pytest.raises(LabError, match="no tokenizer called 'words'"):
        train_mini_gpt2(tmp_path, MiniRun(tokenizer="words", steps=4), "cpu")


def test_a_loss_that_is_no_number_stops_the_run():
    data = TokenData(np.zeros(100, dtype=np.uint16))
    model = GPT2(GPT2Config(vocab_size=4, block_size=8, n_layer=1, n_head=1, n_embd=8))
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(LabError, match="no longer a number"):
        train(model, data, data, TrainSettings(steps=4, block_size=8, batch_size=2, log_every=2), "cpu")


def test_a_trained_model_may_meet_a_harder_text():
    """Its loss is then far above the first held-out loss, and that is no explosion."""
    torch.manual_seed(0)
    easy, hard = (TokenData(tokens.astype(np.uint16)) for tokens in (np.zeros(200), np.arange(200) * 7919 % 50))
    model = GPT2(GPT2Config(vocab_size=50, block_size=8, n_layer=1, n_head=1, n_embd=16))
    settings = TrainSettings(steps=60, block_size=8, batch_size=4, log_every=10, learning_rate=1e-2)
    train(model, easy, easy, settings, "cpu")
    rows = train(model, hard, easy, replace(settings, steps=2, learning_rate=1e-4, log_every=1), "cpu")
    assert rows[-1].train_loss > EXPLODED * rows[0].val_loss


def test_windows_that_reach_no_answer_are_named():
    """Their loss would be the mean of nothing."""
    data = TokenData(np.zeros(60, np.uint16), np.arange(60) % 20 >= 15, np.array([0, 20, 40]))
    with pytest.raises(LabError, match="8 tokens reached no answer"):
        data.batch(np.random.default_rng(0), 2, 8)
    assert (data.batch(np.random.default_rng(0), 2, 16)[1] != IGNORED).any()


def test_rate_warms_up_and_falls_to_a_tenth():
    settings = TrainSettings(steps=100, warmup_steps=10, learning_rate=1.0)
    assert learning_rate(5, settings) == pytest.approx(0.5)
    assert learning_rate(10, settings) == pytest.approx(1.0)
    assert learning_rate(100, settings) == pytest.approx(0.1)


def test_decay_spares_biases_and_norms():
    model = GPT2(GPT2Config(vocab_size=10, block_size=8, n_layer=1, n_head=1, n_embd=8))
    decayed, spared = make_optimizer(model, TrainSettings(steps=1)).param_groups
    assert all(p.dim() >= 2 for p in decayed["params"])
    assert all(p.dim() == 1 for p in spared["params"])
    assert spared["weight_decay"] == 0.0


def test_bpe_keeps_digits_apart_and_reads_any_text_back():
    tokenizer = train_bpe(["order 123, order 456, order 789"] * 50, 300)
    assert [token for token in tokenizer.encode("order 123").tokens if token.isdigit()] == ["1", "2", "3"]
    for text in ("plain words", "caf\u00e9 \u65e5\u672c \U0001f600", "tab\tand\nline"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_characters_are_one_token_each():
    tokenizer = train_characters("hello\nworld")
    ids = tokenizer.encode("hello\nworld").ids
    assert len(ids) == 11
    assert tokenizer.decode(ids) == "hello\nworld"


def test_only_the_assistants_turn_is_scored():
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    tokenizer = train_bpe(["Hello Good day"], 300)
    data = encode_chats(tokenizer, [chat, chat])
    scored = tokenizer.decode(data.tokens[data.scored].tolist(), skip_special_tokens=False)
    assert scored == "Good day<|im_end|>" * 2
    assert data.starts.tolist() == [0, len(data.tokens) // 2]
    _, targets = data.batch(np.random.default_rng(0), 8, len(data.tokens) // 2)
    assert (targets == IGNORED).any()


def test_broken_chats_and_recipes_name_the_place(tmp_path):
    (tmp_path / "chats.jsonl").write_text('{"messages": []}\n{"oops"\n', encoding="utf-8")
    with pytest.raises(LabError, match=r"line 2 of chats\.jsonl"):
        read_chats(tmp_path / "chats.jsonl")
    with pytest.raises(LabError, match=r"nothing\.jsonl is not there"):
        read_chats(tmp_path / "nothing.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"messages": "caf\xe9"}')
    with pytest.raises(LabError, match=r"latin\.jsonl is not UTF-8 text \(byte 17\)"):
        read_chats(tmp_path / "latin.jsonl")
    (tmp_path / "recipe.yaml").write_text("train: a\nsettings: {steps: 1, speed: 2}\n", encoding="utf-8")
    with pytest.raises(LabError, match=r"recipe\.yaml is not a recipe"):
        read_recipe(tmp_path / "recipe.yaml")


def test_characters_and_a_short_run_through_a_text_of_ones_own(tmp_path):
    text = tmp_path / "own.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 60, encoding="utf-8")
    result = train_mini_gpt2(tmp_path / "out", MiniRun(text=text, steps=4, tokenizer="char", batch_size=2), "cpu")
    assert result.rows[-1].step == 4
    assert "own.txt" in (tmp_path / "out" / "gpu_train_log.txt").read_text(encoding="utf-8")
    assert str(tmp_path) not in (tmp_path / "out" / "gpu_train_log.txt").read_text(encoding="utf-8")


@pytest.fixture
def recipe(tmp_path):
    """Two stages at a size that takes a second."""
    chat = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day to you"}]}
    (tmp_path / "chats.jsonl").write_text((json.dumps(chat) + "\n") * 20, encoding="utf-8")
    settings = "{steps: 2, batch_size: 2, block_size: 64, log_every: 1, eval_batches: 1, warmup_steps: 1}"
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""stages:
  - {{train: chats.jsonl, settings: {settings}}}
  - {{train: chats.jsonl, settings: {settings}}}
held_out: chats.jsonl
tokenizer: chats.jsonl
vocab_size: 280
architecture: {{hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2}}
""",
        encoding="utf-8",
    )
    return path


def test_a_recipe_makes_a_model_that_transformers_loads(tmp_path, recipe):
    """The code that made the shipped weights."""
    rows = train_from_recipe(recipe, tmp_path / "made", "cpu")
    assert [row.step for row in rows] == [0, 1, 2, 2, 3, 4]
    assert len(read_csv(tmp_path / "made" / "training_log.csv")) == 6
    made = load_chat_model(str(tmp_path / "made"), device="cpu")
    assert made.tokenizer.chat_template
    assert made.chat([{"role": "user", "content": "Hello"}], Sampling(max_tokens=3)).completion_tokens <= 3


def killed_recipe(recipe, out, steps: int) -> None:
    """Train with a snapshot after every step, and die before step `steps` + 1 of all stages together."""
    honest, done = Trainer.step, []

    def dying(trainer):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(1)
        honest(trainer)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "step", dying)
        with pytest.raises(KeyboardInterrupt):
            train_from_recipe(recipe, out, "cpu", snapshot_seconds=0)


def test_the_shipped_weights_have_the_loss_of_their_log(corpus, tmp_path):
    """mini-instruct's held-out loss, taken again as the last row of its training log took it."""
    folder = MODELS / "mini-instruct"
    corpus.write_chats(tmp_path / "held_out.jsonl", corpus.held_out_chats())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    held_out = encode_chats(tokenizer, read_chats(tmp_path / "held_out.jsonl"))
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    recipe = read_recipe(folder / "recipe.yaml")
    trainer = Trainer(model, held_out, held_out, recipe.stages[-1].settings, "cpu")
    trainer.close()
    log = read_csv(folder / "training_log.csv")
    assert int(log[-1]["step"]) == recipe.steps
    assert trainer.held_out_loss() == pytest.approx(float(log[-1]["val_loss"]), rel=0.01)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_killed_recipe_goes_on_in_its_stage(tmp_path, recipe, steps):
    whole = train_from_recipe(recipe, tmp_path / "whole", "cpu")
    killed_recipe(recipe, tmp_path / "again", steps)
    assert not list((tmp_path / "again").glob("*.safetensors"))
    again = train_from_recipe(recipe, tmp_path / "again", "cpu", resume=True)
    assert [(row.step, row.train_loss, row.val_loss) for row in again] == [
        (row.step, row.train_loss, row.val_loss) for row in whole
    ]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "again")]
    assert weights[0] == weights[1]
    assert not list((tmp_path / "again").glob("*.resume.pt"))


def test_a_changed_recipe_is_not_continued(tmp_path, recipe):
    killed_recipe(recipe, tmp_path / "made", 1)
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("hidden_size: 16", "hidden_size: 32"), "utf-8")
    with pytest.raises(LabError, match="hidden_size was 16 and is 32"):
        train_from_recipe(recipe, tmp_path / "made", "cpu", resume=True)
