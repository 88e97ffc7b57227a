"""`labkit memory` against what others measured and published: tests/data/memory_truth.csv, with its sources."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from labkit.errors import LabError
from labkit.landscape import gguf_files
from labkit.landscape.memory import GB, GIB, memory_estimate
from labkit.landscape.models import find_model
from labkit.landscape.published import accuracy, difference, load_published
from labkit.landscape.quantization import find_quantization, load_quantizations, split_format
from labkit.landscape.weights import expert_parameters, weight_bytes

TRUTH = load_published(Path(__file__).parent / "data" / "memory_truth.csv")
NAMES = ["fp32", "bf16", "fp16", "fp8", "int8", "nf4", "nf4-dq", "GPTQ-Int8", "GPTQ-Int4", "AWQ", "AWQ-INT4", "mxfp4"]
NAMES += ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]


@pytest.mark.parametrize("found", accuracy(TRUTH), ids=lambda found: found.group)
def test_each_group_is_within_three_percent_in_the_median_and_eight_at_the_ninetieth(found):
    assert found.median <= 3, found
    assert found.p90 <= 8, found


def test_the_groups_are_large_and_what_is_left_out_is_named():
    assert {found.group: found.rows for found in accuracy(TRUTH)} == {
        "GPU, short context": 24,
        "GPU, long context": 72,
        "file": 28,
    }
    left_out = Counter(row.excluded for row in TRUTH if row.excluded)
    assert left_out["vendor minimum"] == 3
    assert sum(left_out.values()) == 16
    assert all(row.source_url.startswith("https://") and row.seen and row.basis for row in TRUTH)


def test_without_the_activations_a_long_prompt_would_be_far_off():
    row = next(row for row in TRUTH if row.repo_id == "Qwen/Qwen2.5-7B-Instruct" and row.context == 32768)
    assert row.prompt == 30720
    assert abs(difference(row)) < 1
    assert difference(replace(row, prompt=None)) < -15


def test_block_sizes_are_those_of_the_gguf_package():
    for name, bits in gguf_files.BITS.items():
        count, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
        assert bits == 8 * size / count, name


def test_a_mix_gives_each_tensor_its_own_block_type():
    llama, mixtral = find_model("Meta-Llama-3.1-8B-Instruct"), find_model("Mixtral-8x7B-Instruct-v0.1")
    kinds = [gguf_files.block_type("Q4_K_M", "down", layer, llama) for layer in range(32)]
    assert kinds[:7] == ["Q6_K"] * 4 + ["Q4_K", "Q4_K", "Q6_K"]
    assert kinds[28:] == ["Q6_K"] * 4
    assert gguf_files.block_type("Q4_K_M", "gate", 0, llama) == "Q4_K"
    assert [gguf_files.block_type("Q4_K_M", role, 5, mixtral) for role in "kvo"] == ["Q8_0", "Q8_0", "Q5_K"]
    assert gguf_files.gguf_bytes(llama, "Q4_K_M") / GIB == pytest.approx(4.58, abs=0.01)


def test_a_row_that_no_block_divides_falls_back_to_a_smaller_block():
    small = find_model("Qwen2.5-0.5B-Instruct")  # 896 wide, which 256 does not divide
    assert gguf_files.gguf_bytes(small, "Q4_K_M") * 8 / (small.params_total_b * 1e9) > 6
    assert gguf_files.gguf_bytes(find_model("Qwen3-8B"), "Q4_K_M") * 8 / 8.19e9 < 5


@pytest.mark.parametrize("name", NAMES)
def test_every_format_is_known_in_any_case(name):
    assert find_quantization(name) == find_quantization(name.upper()) == find_quantization(f" {name.lower()} ")
    assert memory_estimate("openai/gpt-oss-20b", name.lower()).weights > 0


def test_every_format_has_its_basis_and_source():
    assert all(row.basis and row.source_url.startswith("https://") and row.seen for row in load_quantizations())


@pytest.mark.parametrize(
    ("name", "base", "form"),
    [
        ("Qwen/Qwen3-8B-AWQ", "Qwen/Qwen3-8B", "AWQ"),
        ("Qwen/Qwen3-8B-awq-int4", "Qwen/Qwen3-8B", "AWQ"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct", "GPTQ-Int4"),
        ("QuantTrio/Qwen3.5-9B-AWQ", "QuantTrio/Qwen3.5-9B", "AWQ"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B", ""),
    ],
)
def test_a_quantized_repository_names_its_model_and_format(name, base, form):
    assert split_format(name) == (base, form)
    assert memory_estimate(name).quant == (form or "bf16")


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B", "llama3.1:8b", "LLAMA-3.1-8B-instruct"])
def test_a_model_answers_to_its_other_names(name):
    assert find_model(name).repo_id == "meta-llama/Meta-Llama-3.1-8B-Instruct"


def test_a_shared_head_is_stored_again_in_fp8_alone():
    model = find_model("Qwen3-4B")
    table = 2 * model.vocab * model.hidden_size
    untied = replace(model, tied_embeddings=False, params_total_b=model.params_total_b + table / 2e9)
    fp8, awq = find_quantization("fp8"), find_quantization("awq")
    assert weight_bytes(model, fp8)[0] == pytest.approx(weight_bytes(untied, fp8)[0], rel=1e-3)
    assert weight_bytes(untied, awq)[0] - weight_bytes(model, awq)[0] == pytest.approx(table, rel=1e-3)


def test_experts_alone_are_in_mxfp4():
    model = find_model("openai/gpt-oss-20b")
    experts = expert_parameters(model)
    assert experts / 1e9 == pytest.approx(19.1, abs=0.05)
    assert memory_estimate(model, "mxfp4").weights == round((20.915e9 - experts) * 2 + experts * 4.25 / 8)


def test_what_quantizers_leave_of_a_hybrid_is_verify():
    estimate = memory_estimate("Qwen3.5-9B", "awq")
    assert estimate.status == "verify"
    assert "makers differ" in estimate.reasons[0]
    assert memory_estimate("Qwen3.5-9B", "fp8").status == "ok"


def test_activations_follow_the_piece_of_the_prompt_and_the_cards():
    one = memory_estimate("Qwen3-8B", context=32768)
    pieces, two = (memory_estimate("Qwen3-8B", context=32768, prompt=2048, cards=cards) for cards in (1, 2))
    assert one.activations == 2 * 32768 * (3 * 12288 + 4 * 4096 + 2 * 128) + 4 * 151936
    assert pieces.activations < one.activations / 15
    assert (two.activations, two.overhead) == (2 * pieces.activations, 2 * pieces.overhead)
    assert (two.weights, two.kv_cache) == (one.weights, one.kv_cache)
    with pytest.raises(LabError, match="longer than the context"):
        memory_estimate("Qwen3-8B", context=10, prompt=11)
    with pytest.raises(LabError, match="give --cards"):
        memory_estimate("Qwen3-8B", cards=0)


def test_a_card_holds_it_or_not_or_nobody_knows():
    assert memory_estimate("Qwen3-8B").fits(24) == "yes"
    assert memory_estimate("Qwen3-8B").fits(16) == "no"
    unknown = memory_estimate("gemma-4-31B-it")
    assert unknown.fits(24) == "no"  # the weights alone are too much
    assert unknown.fits(80) == "verify"
    assert unknown.weights / GB == pytest.approx(62)
