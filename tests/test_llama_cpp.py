"""The llama.cpp backend, on real GGUF files: rows, tokenizers, quantization, a server, and what is refused.

Skipped where llama-cpp-python is not installed; CI does not compile it.
"""

import gc
import json
import random
import resource
import shutil

import psutil
import pytest
import torch
from tiny_server import HELLO, chat, live
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from labkit.errors import LabError
from labkit.evidence import sha256_of
from labkit.export.gguf import PROBES, quantize_gguf, tensor_types, write_gguf
from labkit.generation import Sampling, json_grammar, load_chat_model
from labkit.generation import llama_cpp_network as backend
from labkit.generation.gguf_tokenizer import spelled, tokenised
from labkit.generation.llama_cpp_network import LlamaCppNetwork, Sequences, load_llama_cpp
from labkit.layout import MODELS
from labkit.serving.contract import Limits, ServerSettings
from labkit.serving.process import load_model

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (the extra llama-cpp)")

EMBEDDED = MODELS / "mini-instruct"
WHO = [{"role": "user", "content": "Who am I talking to?"}]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The embedded model as f32, Q8_0 and Q4_K_M, in a folder without its tokenizer."""
    folder = tmp_path_factory.mktemp("files")
    paths = {kind: folder / f"mini-{kind}.gguf" for kind in ("F32", "Q8_0", "Q4_K_M")}
    write_gguf(EMBEDDED, paths["F32"])
    quantize_gguf(paths["F32"], paths["Q8_0"], "Q8_0")
    quantize_gguf(paths["F32"], paths["Q4_K_M"], "Q4_K_M")
    return paths


@pytest.fixture(scope="module")
def model(files):
    return load_chat_model(str(files["F32"]))


@pytest.fixture
def tiny(tiny_model_folder, tmp_path):
    write_gguf(tiny_model_folder, tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def retrained(folder, rule, whole=False):
    """A random checkpoint with a tokenizer of its own, whose text is split by `rule` before merging."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    tokenizer.pre_tokenizer, tokenizer.decoder = rule, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([*PROBES, "   7 " * 9], trainer)
    if whole:  # as Llama 3 does, with a token before every text
        tokenizer.post_processor = processors.TemplateProcessing(single="! $A", special_tokens=[("!", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="!", eos_token="!").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        eos_token_id=0,
        bos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    write_gguf(folder, folder / "alone" / "model.gguf")
    return folder / "alone" / "model.gguf"


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.fixture
def exact(monkeypatch):
    """llama.cpp remembers keys and values in 32 bits; in 16, as it does otherwise, logits differ by some 1e-2."""
    plain = llama_cpp.llama_context_default_params

    def settings():
        chosen = plain()
        chosen.type_k = chosen.type_v = llama_cpp.GGML_TYPE_F32
        chosen.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return chosen

    monkeypatch.setattr(llama_cpp, "llama_context_default_params", settings)


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 500.0}, LLAMA3], ids=["default", "llama3"])
def test_rows_that_come_and_go_have_the_logits_of_transformers(rope, exact, tiny_model_folder, tmp_path):
    """Random joins, steps and leaves, with shared beginnings, against whole passes of transformers.

    Four rows of 64 tokens have 256 places, too few for the beginnings that are kept as well: these must give way.
    """
    torch.manual_seed(0)
    folder = shutil.copytree(tiny_model_folder, tmp_path / "grouped")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=160, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, rope_parameters=rope,
        **sizes,
    )  # fmt: skip
    reference = LlamaForCausalLM(config).eval()
    reference.save_pretrained(folder)
    write_gguf(folder, tmp_path / "grouped.gguf")
    batch, rows, draw = LlamaCppNetwork(tmp_path / "grouped.gguf", rows=4).rows(), [], random.Random(1)
    beginnings = [draw.choices(range(160), k=40) for _ in range(3)]

    @torch.inference_mode()
    def alone(ids):
        return reference(input_ids=torch.tensor([ids])).logits[0, -1]

    for _ in range(150):
        longest = max(map(len, rows), default=0)
        if len(rows) < 4 and draw.random() < 0.5:
            start = draw.choice(beginnings)[: draw.choice([5, 18, 40])]
            rows.append(start + draw.choices(range(160), k=draw.randrange(1, 9)))
            torch.testing.assert_close(batch.join(rows[-1]), alone(rows[-1]), rtol=0, atol=1e-4)
        elif rows and (longest == 64 or draw.random() < 0.2):
            number = max(range(len(rows)), key=lambda at: len(rows[at])) if longest == 64 else 0
            batch.leave(number)
            del rows[number]
        elif rows:
            rows = [[*row, draw.randrange(160)] for row in rows]
            logits = batch.step([row[-1] for row in rows])
            torch.testing.assert_close(logits, torch.stack([alone(row) for row in rows]), rtol=0, atol=1e-4)
    assert len(batch) == len(rows)


def test_four_rows_grow_to_the_whole_context_together(tiny_model_folder, tmp_path):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "short")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    write_gguf(folder, tmp_path / "short.gguf")
    network = LlamaCppNetwork(tmp_path / "short.gguf", rows=4)
    for start in (5, 50):  # what the first four prompts left behind gives way to the next four
        rows = network.rows()
        for first in range(4):
            rows.join([start + first] * 60)
        for _ in range(4):
            assert rows.step([7] * 4).isfinite().all()


def test_greedy_answers_are_those_of_transformers(model, embedded):
    assert model.chat(WHO, Sampling(max_tokens=40)).text == embedded.chat(WHO, Sampling(max_tokens=40)).text


def test_a_long_prompt_is_read_in_several_passes(model, embedded):
    ids = random.Random(2).choices(range(3, 2048), k=900)
    assert len(ids) > backend.LONGEST_PASS
    wanted = embedded.network.rows().join(ids)
    torch.testing.assert_close(model.network.rows().join(ids), wanted, rtol=0, atol=1e-2)


def test_a_beginning_that_was_read_is_not_read_again(files, monkeypatch):
    network, read = LlamaCppNetwork(files["F32"]), []
    decode = Sequences._decode

    def counted(sequences):
        read.append(sequences._pass.batch.n_tokens)
        decode(sequences)

    monkeypatch.setattr(Sequences, "_decode", counted)
    first, second = list(range(100, 160)), [*range(100, 140), *range(500, 505)]
    network.rows().join(first)
    network.rows().join(second)
    network.rows().join(second)
    assert read == [60, 5, 1]


def test_a_server_holds_as_many_rows_as_it_promises(files):
    settings = ServerSettings(str(files["Q4_K_M"]), limits=Limits(concurrency=9))
    served = load_model(settings)
    rows = served.network.rows()
    for _ in range(9):
        rows.join(served.prompt_ids(WHO))
    with pytest.raises(LabError, match="9 rows"):
        rows.join(served.prompt_ids(WHO))
    assert (served.backend, served.dtype, served.revision) == ("llama.cpp", "Q4_K_M", sha256_of(files["Q4_K_M"])[:12])


def test_rows_that_are_dropped_make_room(files):
    network = LlamaCppNetwork(files["F32"], rows=2)
    held = [network.rows(), network.rows()]
    for rows in held:
        rows.join([5, 6, 7])
    with pytest.raises(LabError, match="loaded for 2 rows at once, and all are under way"):
        network.rows().join([5, 6, 7])
    del held, rows
    gc.collect()
    assert network.rows().join([5, 6, 7]).shape == (2048,)


def test_an_answer_that_is_given_up_does_not_keep_its_row(files):
    model = load_chat_model(str(files["F32"]), rows=1)
    for _ in range(3):
        pieces = model.stream(WHO, Sampling(max_tokens=20))
        assert isinstance(next(pieces), str)
        pieces.close()
    assert model.chat(WHO, Sampling(max_tokens=3)).completion_tokens == 3


def test_what_a_file_is_said_to_be(files, embedded):
    network = LlamaCppNetwork(files["Q4_K_M"])
    assert (network.backend, network.device, network.dtype) == ("llama.cpp", "cpu", "Q4_K_M")
    assert (network.vocabulary, network.context_length) == (2048, 1024)
    assert network.parameter_count == embedded.parameter_count
    assert embedded.network.end_ids <= network.end_ids
    assert "8 rows of 1024 tokens take 21 MB" in network.device_reason


def test_a_small_model_leaves_the_other_processors_alone(files, monkeypatch):
    """Two threads of llama.cpp spin while they wait: beside another program they were a hundred times as slow."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    network = LlamaCppNetwork(files["Q4_K_M"])
    context = network._sequences._context
    assert (llama_cpp.llama_n_threads(context), llama_cpp.llama_n_threads_batch(context)) == (1, 1)
    assert "on 1 thread;" in network.device_reason
    monkeypatch.setattr("labkit.generation.network.SMALL", 1000)
    assert "on 4 threads;" in LlamaCppNetwork(files["Q4_K_M"]).device_reason


def test_a_context_that_memory_does_not_hold_is_shortened(files, monkeypatch):
    monkeypatch.setattr(backend, "MOST_MEMORY", 10_000_000)
    network = LlamaCppNetwork(files["F32"], rows=8)
    assert network.context_length == 488  # 2,560 bytes a token
    assert "take 10 MB" in network.device_reason


@pytest.mark.parametrize(("kind", "types"), [("Q8_0", {"Q8_0": 36}), ("Q4_K_M", {"Q4_K": 31, "Q6_K": 5})])
def test_a_quantized_file_says_nearly_the_same(files, embedded, kind, types):
    assert tensor_types(files[kind]) == types | {"F32": 11}
    assert files[kind].stat().st_size < files["F32"].stat().st_size / 3
    ids = embedded.prompt_ids(WHO)
    both = (embedded.network, LlamaCppNetwork(files[kind]))
    belief, doubt = (network.rows().join(ids).double().log_softmax(-1) for network in both)
    divergence = torch.nn.functional.kl_div(doubt, belief, log_target=True, reduction="sum").item()
    assert 0 < divergence < {"Q8_0": 1e-3, "Q4_K_M": 2e-2}[kind]


def test_rows_too_short_for_a_quantization_are_refused(tiny, tmp_path):
    with pytest.raises(LabError, match=r"no matrix of tiny\.gguf can be Q4_K: its rows are too short"):
        quantize_gguf(tiny, tmp_path / "out.gguf", "Q4_K_M")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.gguf"]


def test_a_quantization_that_there_is_not(files, tmp_path):
    with pytest.raises(LabError, match="knows no quantization called Q9"):
        quantize_gguf(files["F32"], tmp_path / "out.gguf", "Q9")
    with pytest.raises(LabError, match=r"mini-Q4_K_M\.gguf could not be quantized to Q8_0"):
        quantize_gguf(files["Q4_K_M"], tmp_path / "out.gguf", "Q8_0")


def test_the_files_tokenizer_splits_as_llama_cpp_does(model):
    texts = [*PROBES, "<|im_start|>user\nhello<|im_end|>\n", "a 'start' and an 's", "\u0000 \ud7ff e\u0301"]
    ours = [model.text_ids(text) for text in texts]
    assert ours == [tokenised(model.network.model, text) for text in texts]
    assert [spelled(model.network.model, ids) for ids in ours] == [text.encode() for text in texts]


def test_a_token_that_the_network_does_not_know_is_not_made_up(tiny):
    network, tokenizer = load_llama_cpp(tiny)
    assert len(tokenizer) == network.vocabulary == 160
    assert max(tokenizer("<|endoftext|>")["input_ids"]) < 160
    assert (tokenizer.bos_token, tokenizer.eos_token) == (None, "<|im_end|>")
    schema = json_grammar({"enum": ["yes", "no"]})
    assert load_chat_model(str(tiny)).chat(HELLO, Sampling(), schema).text in ('"yes"', '"no"')


def test_the_tokenizer_beside_the_file_is_used(files, tmp_path):
    shutil.copy(files["F32"], tmp_path / "mini.gguf")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / name, tmp_path / name)
    _, tokenizer = load_llama_cpp(tmp_path / "mini.gguf")
    original = AutoTokenizer.from_pretrained(EMBEDDED)
    text = "a 'start'"  # llama.cpp's gpt-2 rule splits this one otherwise
    assert tokenizer(text)["input_ids"] == original(text)["input_ids"]
    assert tokenizer.chat_template == original.chat_template


def test_the_tokenizer_of_another_model_is_refused(tiny, files):
    shutil.copy(files["F32"], tiny.with_name("mini.gguf"))
    retrained(tiny.parent, pre_tokenizers.ByteLevel(add_prefix_space=False))
    with pytest.raises(LabError, match=r"the tokenizer\.json beside mini\.gguf belongs to another model"):
        load_llama_cpp(tiny.with_name("mini.gguf"))


def test_a_tokenizer_that_transformers_cannot_make_from_the_file_is_refused(tmp_path):
    digits = pre_tokenizers.Split(Regex(r"\p{N}"), "isolated")
    path = retrained(tmp_path, pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]))
    with pytest.raises(LabError, match=r"in another way than llama\.cpp does") as caught:
        load_llama_cpp(path)
    assert "put the tokenizer.json of the original model beside the file" in caught.value.next_step
    shutil.copy(tmp_path / "tokenizer.json", path.parent)
    shutil.copy(tmp_path / "tokenizer_config.json", path.parent)
    network, tokenizer = load_llama_cpp(path)
    assert [tokenizer(text)["input_ids"] for text in PROBES] == [tokenised(network.model, text) for text in PROBES]


def test_the_way_llama_3_splits_text_is_made_from_the_file(tmp_path):
    split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"]), "isolated")
    rule = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    path, original = retrained(tmp_path, rule, whole=True), AutoTokenizer.from_pretrained(tmp_path)
    network, tokenizer = load_llama_cpp(path)
    texts = [*PROBES, "123456 and 1234", "a\n\n b"]
    assert [tokenizer(text)["input_ids"] for text in texts] == [original(text)["input_ids"] for text in texts]
    assert [[0, *tokenised(network.model, text)] for text in texts] == [tokenizer(text)["input_ids"] for text in texts]


def test_files_that_are_no_model(files, tmp_path):
    whole, part = files["F32"].read_bytes(), tmp_path / "part.gguf"
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LabError, match=r"could not load part\.gguf: .*incomplete") as caught:
        LlamaCppNetwork(part)
    assert str(tmp_path) not in str(caught.value)
    part.write_bytes(b"PK")
    with pytest.raises(LabError, match=r"part\.gguf is not a GGUF file"):
        LlamaCppNetwork(part)
    with pytest.raises(LabError, match=r"none\.gguf cannot be read: No such file"):
        LlamaCppNetwork(tmp_path / "none.gguf")
    with pytest.raises(LabError, match="1 to 128 rows together, not 129"):
        LlamaCppNetwork(files["F32"], rows=129)


def test_memory_that_is_not_there_is_an_error_with_a_remedy(files, monkeypatch):
    monkeypatch.setattr(backend, "MOST_ROWS", 200)  # 200 rows of 1,024 tokens of 2,560 bytes are 524 MB
    now, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (taken + 300_000_000, hard))
    try:
        with pytest.raises(
            LabError, match=r"found no memory for the context: insufficient memory .attempted to allocate 500\.00 MB"
        ):
            LlamaCppNetwork(files["F32"], rows=200)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (now, hard))


def test_llama_cpp_is_silent(files, capfd):
    LlamaCppNetwork(files["F32"]).rows().join([5, 6])
    assert capfd.readouterr() == ("", "")


def test_a_server_around_it(model, embedded):
    with live(model, Limits(200, 60, 4096, 30, concurrency=4, queue=2)) as url:
        two = chat(url, messages=WHO, n=2, temperature=1.0, seed=5, max_tokens=12).json()
        stopped = chat(url, messages=WHO, stop="assistant", logprobs=True, top_logprobs=2, max_tokens=40).json()
        schema = {
            "type": "object",
            "properties": {"day": {"enum": ["Monday", "Friday"]}},
            "required": ["day"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}
        kept = chat(url, messages=HELLO, response_format=form, temperature=1.0, max_tokens=60).json()
    assert [choice["index"] for choice in two["choices"]] == [0, 1]
    assert two["usage"]["completion_tokens"] > 12
    whole = embedded.chat(WHO, Sampling(max_tokens=40)).text
    assert stopped["choices"][0]["message"]["content"] == whole[: whole.index("assistant")]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    scores = stopped["choices"][0]["logprobs"]["content"]
    assert "".join(score["token"] for score in scores).startswith("I am the small")
    assert all(len(score["top_logprobs"]) == 2 for score in scores)
    assert json.loads(kept["choices"][0]["message"]["content"])["day"] in ("Monday", "Friday")
