"""The landscape: tables that refuse bad cells, facts that expire, arithmetic that agrees with published sizes."""

import dataclasses
import json
import subprocess
import sys
from datetime import date

import pytest

from labkit.errors import LabError
from labkit.landscape import families, licences, mixtures, models, prices, published, runtimes, tables
from labkit.landscape.memory import GB, GIB, find_quantization, memory_estimate, memory_rows

# Published sizes: model, format, context (1 for a file), size, unit, source. Qwen's pages leave out the CUDA context.
QWEN3 = "QwenLM/Qwen3 @c7f51a1 docs/source/getting_started (speed benchmark, transformers 4.51.3)"
QWEN25 = "QwenLM/Qwen3 @a912d23 docs/source/benchmark/speed_benchmark.rst"
LLAMA_CPP = "ggml-org/llama.cpp tools/quantize/README.md @311c2c9"
PUBLISHED = [
    ("Qwen/Qwen3-8B", "bf16", 2049, 15.573, GIB, QWEN3),
    ("Qwen/Qwen3-8B", "fp8", 2049, 9.104, GIB, QWEN3),
    ("Qwen/Qwen3-8B", "AWQ-INT4", 2049, 6.032, GIB, QWEN3),
    ("Qwen/Qwen3-8B", "bf16", 32768, 19.792, GIB, QWEN3),
    ("Qwen/Qwen3-14B", "awq", 8192, 10.762, GIB, QWEN3),
    ("Qwen/Qwen2.5-7B-Instruct", "AWQ", 2049, 5.39, GIB, QWEN25),
    ("Qwen/Qwen2.5-72B-Instruct", "BF16", 2049, 136.2, GIB, QWEN25),
    ("meta-llama/Meta-Llama-3.1-8B-Instruct", "q8_0", 1, 7.95, GIB, LLAMA_CPP),
    ("meta-llama/Meta-Llama-3.1-70B-Instruct", "Q4_K_M", 1, 43.1, GB, LLAMA_CPP),
    ("meta-llama/Meta-Llama-3.1-405B-Instruct", "Q4_K_M", 1, 249.1, GB, LLAMA_CPP),
    ("Qwen/Qwen3.5-9B", "bf16", 1, 19.306, GB, "checkpoint index total_size"),
]


@pytest.mark.parametrize(("model", "quant", "context", "size", "unit", "source"), PUBLISHED)
def test_weights_and_cache_agree_with_published_sizes(model, quant, context, size, unit, source):
    estimate = memory_estimate(model, quant, context)
    held = estimate.weights + (estimate.kv_cache if context > 1 else 0)
    assert held / unit == pytest.approx(size, rel=0.03), source


def test_a_four_bit_8b_model_keeps_its_embeddings_in_16_bit():
    assert memory_estimate("Meta-Llama-3.1-8B-Instruct", "nf4-dq").weights / GB == pytest.approx(5.7, abs=0.05)


@pytest.mark.parametrize(
    ("model", "bytes_per_token"),
    [
        ("Qwen/Qwen3-8B", 147_456),  # gqa with an explicit head_dim
        ("mistralai/Mistral-Nemo-Instruct-2407", 163_840),  # head_dim is not hidden_size / heads
        ("allenai/OLMo-2-1124-7B-Instruct", 524_288),  # mha
        ("deepseek-ai/DeepSeek-V3", 70_272),  # mla
        ("Qwen/Qwen3.5-9B", 32_768),  # hybrid: 8 of 32 layers
    ],
)
def test_cache_grows_by_the_published_bytes_per_token(model, bytes_per_token):
    one, two = memory_estimate(model, context=1000), memory_estimate(model, context=1001)
    assert two.kv_cache - one.kv_cache == bytes_per_token
    assert memory_estimate(model, context=1000, batch=3).kv_cache == 3 * one.kv_cache


def test_local_layers_stop_at_their_window():
    at_window, beyond = (memory_estimate("google/gemma-3-27b-it", context=n).kv_cache for n in (1024, 1025))
    assert beyond - at_window == 81_920  # only the 10 global layers of 62 still grow
    assert at_window == 1024 * 81_920 + 436_207_616


def test_a_mixture_needs_all_its_experts():
    estimate = memory_estimate("mistralai/Mixtral-8x7B-Instruct-v0.1")
    assert estimate.weights / GB == pytest.approx(2 * 46.7, rel=0.001)
    assert memory_estimate("openai/gpt-oss-20b", "mxfp4").weights / GB == pytest.approx(13.75, abs=0.05)


@pytest.mark.parametrize("model", ["Llama-4-Scout-17B-16E-Instruct", "gemma-4-31B-it", "DeepSeek-V4-Flash"])
def test_a_layout_without_a_formula_is_verify_and_never_a_guess(model):
    estimate = memory_estimate(model)
    assert (estimate.status, estimate.kv_cache, estimate.total, estimate.total_gib) == ("verify", None, None, None)
    assert any(reason.startswith("KV cache: verify") for reason in estimate.reasons)
    assert estimate.weights_gb > 0
    assert memory_rows([estimate])[0]["KV cache"] == "verify"


def test_unknown_sizes_and_contexts_are_verify():
    assert memory_estimate("granite-4.0-h-tiny").weights is None
    assert "image encoder" in memory_estimate("gemma-3-4b-it").reasons[0]
    assert "untried" in memory_estimate("Qwen3-8B", context=40_961).reasons[0]
    assert memory_estimate("cyberagent/calm3-22b-chat", "nf4").weights is None  # its embedding size is unknown


def test_estimate_as_json_gives_both_units():
    values = json.loads(json.dumps(memory_estimate("Qwen3-8B").as_dict()))
    assert values["status"] == "ok"
    for part in ("weights", "kv_cache", "overhead", "total"):
        assert values[f"{part}_gb"] / values[f"{part}_gib"] == pytest.approx(GIB / GB, rel=0.001)
    assert values["total_gb"] == pytest.approx(sum(values[f"{p}_gb"] for p in ("weights", "kv_cache", "overhead")))
    assert "Status: ok" in memory_estimate("Qwen3-8B").as_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("Qwen3-8C",), "did you mean Qwen/Qwen3-8B"),
        (("no such thing at all",), "labkit models"),
        (("Qwen3-8B", "q9"), "choose one of fp32"),
        (("Qwen3-8B", "bf16", 0), "at least 1"),
        (("Qwen3-8B", "bf16", 10, -1), "at least 1"),
        (("Qwen3-8B", "bf16", 1.5), "at least 1"),
        (("Qwen3-8B", "mxfp4"), None),
    ],
)
def test_bad_questions_get_a_remedy(arguments, said):
    if said is None:  # not an error: a dense model has no experts to count
        assert memory_estimate(*arguments).weights is None
        return
    with pytest.raises(LabError, match=said):
        memory_estimate(*arguments)


@pytest.mark.parametrize("name", ["NF4", "gptq-int4", "Awq-Int4", "float16", "LLM.int8", " Q4_k_m "])
def test_format_names_are_case_insensitive_and_have_aliases(name):
    assert find_quantization(name).bits_per_weight > 0


def test_embedded_sizes_come_from_its_config_as_transformers_counts_them(tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        tie_word_embeddings=True,
    )
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in LlamaForCausalLM(config).parameters())
    row = models.with_config(models.load_models()[0], tmp_path / "config.json")
    assert round(row.params_total_b * 1e9) == parameters
    assert (row.attention, row.head_dim, row.full_layers) == ("gqa", 16, 2)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LabError, match=r"config\.json cannot be used"):
        models.with_config(row, tmp_path / "config.json")


def test_the_published_table_is_met_except_where_a_prefill_peak_is_in_it():
    off = {(row["model"], row["context"]): float(row["difference"].split()[0]) for row in published.comparison_rows()}
    peak = off.pop(("Qwen2.5-7B-Instruct", "32,768"))
    assert peak < -15  # the long prompt's activations, which the estimate says it does not count
    assert max(map(abs, off.values())) < 5


def test_a_mixture_reads_less_than_it_holds():
    mixture, dense, unknown = mixtures.mixture_rows(["Mixtral-8x7B-Instruct-v0.1", "Qwen3-8B", "Kimi-K2-Instruct"])
    assert (mixture["total"], mixture["active"], mixture["active share"]) == ("46.7 B", "12.9 B", "28 %")
    assert (mixture["resident in bf16"], mixture["read per token in bf16"]) == ("87 GiB", "24 GiB")
    assert dense["total"] == dense["active"]
    assert unknown["resident in bf16"] == unknown["active share"] == "verify"


def test_every_table_loads_and_the_tables_agree():
    rows = models.load_models()
    known = {row.repo_id for row in rows}
    assert len(rows) >= 30
    assert {row.repo_id for row in licences.load_model_licences()} <= known
    assert {row.licence_id for row in licences.load_model_licences()} == {
        r.licence_id for r in licences.load_licences()
    }
    assert {row.start_with for row in families.load_families()} <= known
    assert {row.family for row in families.load_families()} == {row.family for row in rows}
    assert len(licences.licences_of("tokyotech-llm/Llama-3.1-Swallow-8B-Instruct-v0.5")) == 2
    for row in (*rows, *licences.load_licences(), *prices.load_prices(), *runtimes.load_runtimes()):
        assert row.source_url
        assert row.basis
    for row in families.load_corrections():
        assert row.source_url.startswith("https://")


def test_unknown_is_shown_as_verify_and_never_as_permission():
    table = {row["model"]: row for row in models.model_table()}
    assert table["deepseek-ai/DeepSeek-V4-Flash"]["licence"] == "verify"
    assert table["moonshotai/Kimi-K2-Instruct"]["total (B)"] == "verify"
    assert licences.commercial_use("deepseek-ai/DeepSeek-V4-Flash") == "verify"
    assert licences.commercial_use("Qwen/Qwen2.5-3B-Instruct") == "no"
    assert licences.commercial_use("tokyotech-llm/Llama-3.1-Swallow-8B-Instruct-v0.5") == "conditional"


def test_families_are_found_in_any_case_and_a_wrong_one_names_the_others():
    assert {row.family for row in models.models_of("qwen")} == {"Qwen"}
    with pytest.raises(LabError, match=r"choose one of mini-instruct, Llama"):
        models.models_of("Qwern")


def test_rows_expire_by_table():
    seen = date(2026, 11, 9)
    price = dataclasses.replace(prices.load_prices()[0], seen=seen)
    assert tables.stale([price], date(2026, 12, 9)) == ()
    assert tables.stale([price], date(2026, 12, 10)) == (price,)
    licence = dataclasses.replace(licences.load_licences()[0], seen=seen)
    assert tables.stale([licence], date(2027, 5, 8)) == ()
    assert tables.stale([licence], date(2027, 5, 9)) == (licence,)
    runtime = dataclasses.replace(runtimes.load_runtimes()[0], seen=seen)
    assert tables.stale([runtime], date(2027, 2, 8)) == (runtime,)
    assert tables.stale(models.load_models(), date(2099, 1, 1)) == ()
    undated = dataclasses.replace(price, seen=None)
    assert tables.stale([undated], seen) == (undated,)
    assert tables.age_text(undated, seen) == "no date, EXPIRED"
    assert tables.age_text(price, date(2026, 12, 10)) == "31 days, EXPIRED"
    assert tables.banner("Prices", [price, undated], seen).startswith("EXPIRED - Prices: 1 of 2 rows")
    assert tables.banner("Prices", [price], seen) == "Prices: 1 rows, none expired."


HEADER = "provider,gpu,vram_gb,usd_per_hour,provisioning,source_url,collected_via,seen,basis\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("provider,gpu\na,b\n", "missing or unknown columns: basis"),
        (HEADER + "a,b,24,x,on-demand,u,,2026-01-01,official\n", r"row 2, column usd_per_hour"),
        (HEADER + "a,b,24,-1,on-demand,u,,2026-01-01,official\n", r"not negative.*row 2, column usd_per_hour"),
        (HEADER + "a,b,24,nan,on-demand,u,,2026-01-01,official\n", r"row 2, column usd_per_hour"),
        (HEADER + "a,b,24,1,on-demand,u,,1 May,official\n", r"row 2, column seen"),
        (HEADER + "a,b,24,1,on-demand,u,,,official\na,b,,1,x,u,,,official\n", r"empty.*row 3, column vram_gb"),
        (HEADER + "a,b,24\n", r"not as many fields.*row 2"),
    ],
)
def test_a_bad_table_names_its_row_and_column(tmp_path, text, said):
    path = tmp_path / "prices.csv"
    path.write_text(text)
    with pytest.raises(LabError, match=said):
        prices.load_prices(path)


def test_a_missing_table_and_undecodable_bytes_are_named(tmp_path):
    with pytest.raises(LabError, match=r"prices\.csv is missing"):
        prices.load_prices(tmp_path / "prices.csv")
    (tmp_path / "prices.csv").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(LabError, match="save it as UTF-8"):
        prices.load_prices(tmp_path / "prices.csv")


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("layers", "0", "leave an unknown blank"),
        ("params_active_b", "99999", "more parameters are active"),
        ("kind", "sparse", "not one of dense, moe"),
        ("attention", "magic", "not one of gqa"),
        ("tied_embeddings", "perhaps", "row 2, column tied_embeddings"),
        ("repo_id", "", "row 2, column repo_id"),
    ],
)
def test_a_model_row_that_contradicts_itself_is_refused(tmp_path, column, value, said):
    import csv

    with open(tables.LANDSCAPE / "models.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["repo_id"] == "Qwen/Qwen3-8B"]
    rows[0][column] = value
    path = tmp_path / "models.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(LabError, match=said):
        models.load_models(path)


def test_a_repeated_model_is_refused(tmp_path):
    lines = (tables.LANDSCAPE / "models.csv").read_text().splitlines(keepends=True)
    (tmp_path / "models.csv").write_text("".join([*lines, lines[1]]))
    with pytest.raises(LabError, match="stands there twice"):
        models.load_models(tmp_path / "models.csv")


def test_the_landscape_needs_no_torch():
    code = "import sys, labkit.decisions, labkit.landscape.published; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
