"""One ChatModel for everything: equal to transformers' generate, stoppable, and clear about what it cannot load."""

import json
import os
import random
import shutil
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from labkit.errors import LabError
from labkit.evidence import Pack
from labkit.generation import (
    Completion,
    Sampling,
    choose_token,
    first_stop,
    held_back,
    json_grammar,
    load_chat_model,
    prefixes,
    write_first_run,
)
from labkit.generation.batch import Batch
from labkit.generation.network import threads_for
from labkit.generation.prefixes import Prefixes
from labkit.generation.text import GrowingText
from labkit.layout import MODELS
from labkit.training.tokens import train_bpe

HELLO = [{"role": "user", "content": "Who am I talking to?"}]


def test_greedy_answers_are_those_of_transformers(embedded):
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "mini-instruct")
    model = AutoModelForCausalLM.from_pretrained(MODELS / "mini-instruct", dtype=torch.float32)
    inputs = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert embedded.chat(HELLO, Sampling(max_tokens=40)).text == tokenizer.decode(made, skip_special_tokens=True)


def test_pieces_add_up_to_the_answer(embedded):
    *pieces, done = embedded.stream(HELLO, Sampling(max_tokens=30))
    assert isinstance(done, Completion)
    assert "".join(pieces) == done.text
    assert done.prompt_tokens == len(embedded.prompt_ids(HELLO))
    assert 0 < done.first_token_seconds <= done.seconds


def test_length_and_stop_are_told_apart(embedded):
    assert embedded.chat(HELLO, Sampling(max_tokens=2)).finish_reason == "length"
    whole = embedded.chat(HELLO, Sampling(max_tokens=60))
    assert whole.finish_reason == "stop"
    assert whole.completion_tokens < 60


def test_a_stop_text_never_leaks(embedded):
    whole = embedded.chat(HELLO, Sampling(max_tokens=60)).text
    middle = len(whole) // 2
    stop = whole[middle : middle + 6]
    *pieces, done = embedded.stream(HELLO, Sampling(max_tokens=60, stop=(stop,)))
    assert done.text == whole[: whole.find(stop)]
    assert done.finish_reason == "stop"
    assert "".join(pieces) == done.text


def test_seeds_repeat(embedded):
    def warm(seed: int) -> str:
        return embedded.chat(HELLO, Sampling(max_tokens=30, temperature=2.0, seed=seed)).text

    assert warm(1) == warm(1)
    assert len({warm(seed) for seed in range(5)}) > 1


def test_top_p_zero_is_greedy_and_nucleus_leaves_the_tail_out():
    logits = torch.tensor([0.0, 3.0, 2.9, -5.0])
    generator = torch.Generator().manual_seed(0)
    assert choose_token(logits, Sampling(temperature=1.0, top_p=0.0), generator) == 1
    drawn = {choose_token(logits, Sampling(temperature=1.0, top_p=0.8), generator) for _ in range(200)}
    assert drawn == {1, 2}


@pytest.mark.parametrize(
    ("text", "stops", "held"),
    [("abc", ("cd",), 1), ("abc", ("x",), 0), ("abc", ("bcd", "c!"), 2), ("ab\ufffd", (), 1), ("", ("a",), 0)],
)
def test_what_may_still_change_is_held_back(text, stops, held):
    assert held_back(text, stops) == held


@pytest.mark.parametrize("seed", range(3))
def test_text_that_grows_is_the_text_of_all_tokens(seed, embedded):
    """Characters of several tokens, and bytes that are no character at all."""
    draw = random.Random(seed)
    ids = embedded.text_ids("Grüße, 世界! 👩‍🚀 naïve ") * 3 + draw.choices(range(3, 2048), k=60)
    ids = ids if seed else embedded.text_ids("Plain words, 🙂 and 12 lines.\n" * 9)
    growing = GrowingText(embedded.tokenizer, {2})
    for number, token in enumerate(ids, 1):
        growing.add(token)
        growing.add(2)
        assert growing.text == embedded.tokenizer.decode([token for token in ids[:number] if token != 2])


def test_the_earliest_stop_text_counts():
    assert first_stop("one two three", ("three", "two")) == 4
    assert first_stop("one", ("two", "")) is None


@pytest.mark.parametrize("window", [None, 8])
def test_rows_that_come_and_go_have_the_logits_of_rows_alone(window):
    """Sixty random joins, steps and leaves, with shared beginnings, against whole passes over each row.

    With a sliding window rows cannot be put together, and are decoded one by one.
    """
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=64, num_key_value_heads=2, sliding_window=window, **sizes)
    network, draw = MistralForCausalLM(config).eval(), random.Random(1)
    batch, rows, beginning = Batch(network, Prefixes()), [], draw.choices(range(64), k=20)

    @torch.inference_mode()
    def alone(ids):
        return network(input_ids=torch.tensor([ids])).logits[0, -1]

    for _ in range(60):
        if len(rows) < 4 and draw.random() < 0.5:
            rows.append(beginning[: draw.choice([5, 18, 20])] + draw.choices(range(64), k=draw.randrange(1, 9)))
            torch.testing.assert_close(batch.join(rows[-1]), alone(rows[-1]))
        elif rows and draw.random() < 0.25:
            number = draw.randrange(len(rows))
            batch.leave(number)
            del rows[number]
        elif rows:
            rows = [[*row, draw.randrange(64)] for row in rows]
            logits = batch.step([row[-1] for row in rows])
            torch.testing.assert_close(logits, torch.stack([alone(row) for row in rows]))


def test_a_schema_that_is_too_much_is_refused_while_it_is_kept(embedded):
    many = {"type": "object", "properties": {f"p{number}": {"type": "null"} for number in range(900)}}
    with pytest.raises(LabError, match="the schema cannot be enforced"):
        embedded.chat(HELLO, Sampling(max_tokens=40), json_grammar(many))
    with pytest.raises(LabError, match="longer than 20000 characters"):
        json_grammar({"enum": ["x" * 21_000]})


def test_a_prompt_without_room_is_refused(embedded):
    long = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(LabError, match="the model's context holds"):
        embedded.chat(long)


def test_a_model_without_a_template_gets_the_plain_one(tmp_path):
    tokenizer: Tokenizer = train_bpe(["User: Hello Assistant: Good day"], 280)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    config = LlamaConfig(
        vocab_size=280, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    folder = tmp_path / "plain"
    LlamaForCausalLM(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    model = load_chat_model(str(folder), device="cpu")
    assert model.tokenizer.decode(model.prompt_ids([{"role": "user", "content": "Hello"}])) == "User: Hello\nAssistant:"
    assert model.name == "plain"
    assert len(model.revision) == 12
    assert model.chat([{"role": "user", "content": "Hello"}], Sampling(max_tokens=3)).completion_tokens <= 3


def test_local_weights_have_one_revision(embedded, tiny_model_folder):
    assert load_chat_model(device="cpu", revision=embedded.revision).revision == embedded.revision
    with pytest.raises(LabError, match=f"mini-instruct holds the revision {embedded.revision}, and main is asked for"):
        load_chat_model(device="cpu", revision="main")


def test_a_hub_model_is_loaded_at_the_commit_that_is_asked_for(tmp_path, tiny_model_folder):
    """From a hub's cache of two commits, in a process of its own: the cache's place is read once."""
    old, new = "a" * 40, "b" * 40
    repository = tmp_path / "hub" / "models--somebody--tiny"
    for commit in (old, new):
        shutil.copytree(tiny_model_folder, repository / "snapshots" / commit)
    config = repository / "snapshots" / new / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 777}))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(new)
    code = (
        "from labkit.generation import load_chat_model as load\n"
        f"for pin in ('', {old!r}):\n"
        "    model = load('somebody/tiny', 'cpu', revision=pin)\n"
        "    print(model.revision, model.context_length == 777)"
    )
    where = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=where)
    assert done.stdout.split() == [new, "True", old, "False"], done.stderr


def test_the_common_beginning_of_two_prompts_is_found_whatever_they_are():
    draw = random.Random(3)
    for _ in range(2000):
        first, second = (draw.choices(range(2), k=draw.randrange(12)) for _ in range(2))
        pairs = enumerate(zip(first, second, strict=False))
        told = next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))
        assert prefixes.common(first, second) == told


def test_the_oldest_beginnings_go_when_there_is_no_room(monkeypatch):
    """Of three prompts of 3.8 KiB each in 8 KiB two are left, and of one that is larger than all the room that one."""
    monkeypatch.setattr(prefixes, "KEPT_BYTES", 8192)
    kept = Prefixes()
    prompts = [[number] * 30 for number in range(3)]
    for ids in prompts:
        kept.keep(ids, [(torch.zeros(1, 1, 30, 16), torch.zeros(1, 1, 30, 16))])
    assert [bool(kept.longest(ids)) for ids in prompts] == [False, True, True]
    kept.keep([9] * 90, [(torch.zeros(1, 1, 90, 16), torch.zeros(1, 1, 90, 16))])
    assert [bool(kept.longest(ids)) for ids in (*prompts, [9] * 90)] == [False, False, False, True]


def test_a_small_model_is_worth_one_thread():
    assert threads_for(4_600_000) == 1
    assert threads_for(10**9) == torch.get_num_threads()


def test_on_a_cpu_the_weights_lie_as_the_product_reads_them():
    model = load_chat_model("mini-instruct", backend="transformers", device="cpu").network.model
    assert {module.weight.stride(0) for module in model.modules() if isinstance(module, torch.nn.Linear)} == {1}
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("path", ["./nothing", "/nothing/here", "nothing", "a/b/c"])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(path):
    with pytest.raises(LabError, match="there is no model folder called"):
        load_chat_model(path)


def test_a_folder_that_is_no_model_is_named_without_its_path(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LabError, match="the model empty could not be loaded") as caught:
        load_chat_model(str(tmp_path / "empty"), device="cpu")
    assert str(tmp_path) not in str(caught.value)


def test_weights_that_were_not_fetched_to_their_end_are_told(tiny_model_folder, tmp_path):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "half")
    os.truncate(folder / "model.safetensors", 4000)
    with pytest.raises(LabError, match="the model half could not be loaded: Error while deserializing header"):
        load_chat_model(str(folder), device="cpu")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(LabError, match=r"Couldn't instantiate the backend tokenizer\. Next"):
        load_chat_model(str(folder), device="cpu")


def test_a_hub_that_cannot_be_reached_is_an_error_with_a_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LabError, match="nobody/no-such-model could not be loaded"):
        load_chat_model("nobody/no-such-model", device="cpu")


def test_first_run_holds_every_fact(embedded, tmp_path):
    pack = Pack(tmp_path, "local_cpu")
    answer = embedded.chat(HELLO, Sampling(max_tokens=20))
    write_first_run(pack, embedded, "two\nlines", answer, "labkit chat")
    text = (tmp_path / "first_run.md").read_text(encoding="utf-8")
    for key in ("Command", "Prompt", "Output", "Latency", "Peak memory", "Model", "Revision", "Device", "Route"):
        assert f"- {key}: " in text
    assert "- Prompt: two\\nlines\n" in text
    assert f"- Revision: {embedded.revision}\n" in text


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, and is 0"),
        ({"temperature": float("nan")}, "temperature must be a number from 0 on, and is nan"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"top_p": 1.5}, "top_p is a share from 0 to 1, and is 1.5"),
        ({"seed": 2**64}, "has more than 64 bits"),
    ],
)
def test_numbers_that_no_answer_can_be_decoded_with_are_refused(given, what):
    with pytest.raises(LabError, match=what):
        Sampling(**given)
