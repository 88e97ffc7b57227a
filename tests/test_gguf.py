"""A checkpoint becomes one GGUF file: transformers reads the same model back, and what cannot be written is refused."""

import json
import shutil
import sys

import gguf
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedTokenizerFast,
)

from labkit.errors import LabError
from labkit.export.gguf import PROBES, quantize_gguf, tensor_types, write_gguf
from labkit.export.llama_library import llama_library
from labkit.layout import MODELS
from labkit.training.tokens import train_characters

EMBEDDED = MODELS / "mini-instruct"
SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "mini.gguf"
    write_gguf(EMBEDDED, path)
    return path


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    """A copy of the tiny checkpoint that a test may spoil."""
    return shutil.copytree(tiny_model_folder, tmp_path / "tiny")


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def logits(model):
    ids = torch.tensor([list(range(3, 60))])
    with torch.inference_mode():
        return model(input_ids=ids).logits


def read_back(path):
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def value(path, key):
    return gguf.GGUFReader(path).get_field(key).contents()


def test_the_embedded_model_has_the_same_logits_when_it_is_read_back(written, embedded):
    torch.testing.assert_close(logits(read_back(written)), logits(embedded.network.model), rtol=0, atol=1e-6)


def test_a_random_model_with_grouped_heads_and_an_output_of_its_own(tmp_path, tiny_model_folder):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "grouped")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=170, num_key_value_heads=2, tie_word_embeddings=False, rms_norm_eps=1e-3, rope_theta=500.0, **SIZES
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    write_gguf(folder, tmp_path / "grouped.gguf")
    torch.testing.assert_close(logits(read_back(tmp_path / "grouped.gguf")), logits(model), rtol=0, atol=1e-6)
    assert value(tmp_path / "grouped.gguf", "tokenizer.ggml.tokens")[169] == "[PAD169]"


def test_a_16_bit_file_keeps_vectors_in_32_bits(tmp_path, tiny_model_folder, tiny_model):
    write_gguf(tiny_model_folder, tmp_path / "half.gguf", "f16")
    assert tensor_types(tmp_path / "half.gguf") == {"F16": 16, "F32": 5}
    torch.testing.assert_close(
        logits(read_back(tmp_path / "half.gguf")), logits(tiny_model.network.model), rtol=0, atol=1e-3
    )


def test_the_tokenizer_and_the_template_are_in_the_file(written):
    original = AutoTokenizer.from_pretrained(EMBEDDED)
    alone = AutoTokenizer.from_pretrained(written.parent, gguf_file=written.name)
    assert [alone(text)["input_ids"] for text in PROBES] == [original(text)["input_ids"] for text in PROBES]
    assert alone.chat_template == original.chat_template
    assert (alone.bos_token, alone.eos_token) == (original.bos_token, original.eos_token)
    assert value(written, "tokenizer.ggml.pre") == "gpt-2"
    assert value(written, "tokenizer.ggml.token_type")[:4] == [3, 3, 3, 1]
    assert value(written, "tokenizer.ggml.add_bos_token") is False


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (r"\p{N}", "smollm"),
        (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+", "llama-bpe"),
    ],
)
def test_the_rule_that_splits_text_is_found_by_what_it_does(folder, tmp_path, pattern, name):
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name == "smollm")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), plain])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([*PROBES, "   7 " * 9], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    LlamaForCausalLM(LlamaConfig(vocab_size=400, **SIZES)).save_pretrained(folder)
    write_gguf(folder, tmp_path / "rule.gguf")
    assert value(tmp_path / "rule.gguf", "tokenizer.ggml.pre") == name


def test_scaled_positions_are_written_as_factors(folder, tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    change(folder / "config.json", rope_parameters=rope)
    write_gguf(folder, tmp_path / "scaled.gguf")
    (factors,) = [t.data for t in gguf.GGUFReader(tmp_path / "scaled.gguf").tensors if t.name == "rope_freqs.weight"]
    assert factors[0] == pytest.approx(1.0)  # a wave much shorter than the text that the model was trained on
    assert factors[-1] == pytest.approx(8.0)  # and one much longer


def test_an_architecture_that_is_not_written_is_refused(folder, tmp_path):
    MistralConfig(architectures=["MistralForCausalLM"], vocab_size=160, **SIZES).save_pretrained(folder)
    with pytest.raises(LabError, match=r"only LlamaForCausalLM .* this is MistralForCausalLM"):
        write_gguf(folder, tmp_path / "x.gguf")


def test_positions_that_depend_on_the_length_are_refused(folder, tmp_path):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    change(folder / "config.json", rope_parameters=rope)
    with pytest.raises(LabError, match="scaled by dynamic are not written"):
        write_gguf(folder, tmp_path / "x.gguf")


def test_a_folder_without_weights_is_named_without_its_path(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(LabError, match="the checkpoint tiny could not be read") as caught:
        write_gguf(folder, tmp_path / "x.gguf")
    assert str(tmp_path) not in str(caught.value)


def test_weights_that_are_missing_are_not_made_up(folder, tmp_path):
    change(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(LabError, match=r"tiny lacks model\.layers\.2\."):
        write_gguf(folder, tmp_path / "x.gguf")


def test_a_tokenizer_that_is_no_byte_level_bpe_is_refused(folder, tmp_path):
    PreTrainedTokenizerFast(tokenizer_object=train_characters("abc")).save_pretrained(folder)
    with pytest.raises(LabError, match=r"llama\.cpp has no name for"):
        write_gguf(folder, tmp_path / "x.gguf")


def test_a_tokenizer_larger_than_the_network_is_refused(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<one>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(LabError, match="has 161 tokens and the network 160"):
        write_gguf(folder, tmp_path / "x.gguf")


def test_numbers_that_16_bits_cannot_hold_leave_no_file(folder, tmp_path):
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[3, 3] = 1e6
    model.save_pretrained(folder)
    (tmp_path / "out").mkdir()
    with pytest.raises(LabError, match=r"output\.weight holds numbers that torch\.float16 cannot"):
        write_gguf(folder, tmp_path / "out" / "x.gguf", "f16")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_number_format_that_is_not_written_is_refused(folder, tmp_path):
    with pytest.raises(LabError, match="written as f32 or f16, not as q4_k"):
        write_gguf(folder, tmp_path / "x.gguf", "q4_k")


def test_without_llama_cpp_quantizing_says_what_to_install(written, tmp_path, monkeypatch):
    llama_library.cache_clear()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(LabError, match="llama-cpp-python is not installed") as caught:
        quantize_gguf(written, tmp_path / "x.gguf", "Q8_0")
    assert "open-llm-workbook[llama-cpp]" in caught.value.next_step
