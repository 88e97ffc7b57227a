"""The landscape: tables that refuse bad cells, facts that expire, arithmetic that agrees with published sizes."""

import dataclasses
import json
import re
import subprocess
import sys
import warnings
from datetime import date

import pytest

from labkit.errors import LabError
from labkit.landscape import (
    families,
    licences,
    mixtures,
    models,
    prices,
    published,
    runtimes,
    staleness,
    tables,
)
from labkit.landscape.catalogue import Wish, model_records, model_table, models_of, select
from labkit.landscape.memory import GB, GIB, memory_estimate, memory_rows
from labkit.landscape.models import find_model
from labkit.landscape.quantization import find_quantization

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
    assert any("KV cache: verify" in line for line in estimate.as_text().splitlines())
    assert estimate.as_dict()["weights_gb"] > 0
    assert memory_rows([estimate])[0]["KV cache"] == "verify"


@pytest.mark.parametrize(
    ("base", "row"),
    [
        ("google/gemma-2-9b", "google/gemma-2-9b-it"),
        ("mistralai/Mixtral-8x22B-v0.1", "mistralai/Mixtral-8x22B-Instruct-v0.1"),
        ("Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-0.6B"),
        ("mistralai/Mistral-7B-v0.1", None),  # its vocabulary is another than v0.3's
    ],
)
def test_a_base_model_has_the_sizes_of_what_was_tuned_from_it(base, row):
    if row is None:
        with pytest.raises(LabError, match="no model called"):
            find_model(base)
        return
    assert find_model(base).repo_id == row


def test_unknown_sizes_and_contexts_are_verify():
    assert memory_estimate("granite-4.0-h-tiny").weights is None
    assert memory_estimate("gemma-3-4b-it").weights / GB == pytest.approx(8.6, abs=0.01)  # with the image encoder
    assert memory_estimate("phi3:medium").activations is None
    assert "untried" in memory_estimate("Qwen3-8B", context=40_961).reasons[0]
    assert memory_estimate("cyberagent/calm3-22b-chat", "nf4").weights is None  # its embedding size is unknown


def test_estimate_as_json_gives_both_units():
    values = json.loads(json.dumps(memory_estimate("Qwen3-8B").as_dict()))
    assert values["status"] == "ok"
    parts = ("weights", "kv_cache", "activations", "overhead")
    for part in (*parts, "total"):
        assert values[f"{part}_gb"] / values[f"{part}_gib"] == pytest.approx(GIB / GB, rel=0.001)
    assert values["total_gb"] == pytest.approx(sum(values[f"{p}_gb"] for p in parts), abs=0.001)
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


def test_the_published_table_is_met():
    off = {row["model"]: float(row["difference"].split()[0]) for row in published.comparison_rows()}
    assert max(map(abs, off.values())) < 6
    assert abs(off["Qwen2.5-7B-Instruct"]) < 1  # with the peak of its long prompt


def test_a_mixture_reads_less_than_it_holds():
    mixture, dense, unknown = mixtures.mixture_rows(["Mixtral-8x7B-Instruct-v0.1", "Qwen3-8B", "granite-4.0-h-tiny"])
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
    support = runtimes.load_runtime_support()
    assert {row.runtime for row in support} <= {row.runtime for row in runtimes.load_runtimes()}
    assert {row.model_type for row in support} <= {row.model_type for row in rows}
    facts = (*rows, *licences.load_licences(), *licences.load_model_licences(), *prices.load_prices())
    for row in (*facts, *runtimes.load_runtimes(), *support):
        assert row.source_url
        assert row.basis
        assert row.seen or getattr(row, "source_version", "") or row.expires_days, row  # undated rows count as expired
    for row in families.load_corrections():
        assert row.source_url.startswith("https://")


def test_unknown_is_shown_as_verify_and_never_as_permission():
    table = {row["model"]: row for row in model_table(models.load_models())}
    assert table["deepseek-ai/DeepSeek-V4-Flash"]["licence"] == "verify"
    assert table["ibm-granite/granite-4.0-h-tiny"]["total (B)"] == "verify"
    assert licences.commercial_use("deepseek-ai/DeepSeek-V4-Flash") == "verify"
    assert licences.commercial_use("Qwen/Qwen2.5-3B-Instruct") == "no"
    assert licences.commercial_use("tokyotech-llm/Llama-3.1-Swallow-8B-Instruct-v0.5") == "conditional"


# Every family that the chapter names, as a learner would ask for it.
NAMED = """
Llama 3|Llama 3.1|Llama 3.2|Llama 3.3|Llama 4|Mistral 7B|Mixtral 8x7B|Mixtral 8x22B|Mistral Large
Nemo|Codestral|Mistral Small|Qwen2.5|Qwen 2.5|Qwen2.5 0.5B|Qwen2.5 72B|Qwen2.5 Coder|Qwen2.5-VL
Qwen Audio|Qwen3|Qwen3.5|Gemma 2|Gemma 3|Gemma 4|Phi-3|Phi-4|DeepSeek V3|DeepSeek R1
DeepSeek R1 distill|DeepSeek V3.2|DeepSeek V4|gpt-oss|OLMo|Pythia|SmolLM|Granite|GLM|ChatGLM
InternLM|Kimi|MiniMax|CALM3|ELYZA|PLaMo|Swallow|Tanuki|LLM-jp|Sarashina
"""


@pytest.mark.parametrize("name", NAMED.strip().replace("\n", "|").split("|"))
def test_every_family_answers(name):
    rows = models_of(name)
    assert rows
    assert all(row.dimensions_known or "verify" in model_table([row])[0].values() for row in rows)


def test_families_are_found_in_any_case_and_a_wrong_one_names_the_others():
    assert {row.family for row in models_of("qwen")} == {"Qwen"}
    assert {row.line for row in models_of("llama 3")} == {"Llama 3"}
    assert len(models_of()) == len(models.load_models())
    with pytest.raises(LabError, match=r"choose one of mini-instruct, Llama"):
        models_of("Qwern")
    with pytest.raises(LabError, match=r"There is a Qwen2.5-Audio\? No: audio is Qwen2-Audio"):
        models_of("Qwen2.5-Audio")


@pytest.mark.parametrize(
    ("wish", "kept", "left"),
    [
        (Wish(language="JA"), "cyberagent/calm3-22b-chat", "meta-llama/Llama-3.3-70B-Instruct"),
        (Wish(commercial=True), "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-3B-Instruct"),
        (Wish(commercial=True), "google/gemma-3-4b-it", "deepseek-ai/DeepSeek-V4-Flash"),  # unread is no permission
        (Wish(fits_gb=24), "Qwen/Qwen3-8B", "Qwen/Qwen3-14B"),
        (Wish(fits_gb=24, quant="awq"), "Qwen/Qwen3-14B", "google/gemma-4-31B-it"),  # nobody knows its cache
        (Wish(runtime="onnx"), "microsoft/phi-4", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
        (Wish(modality="audio"), "Qwen/Qwen2-Audio-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
        (Wish(context=200_000), "Qwen/Qwen3.5-9B", "elyza/Llama-3-ELYZA-JP-8B"),
        (Wish(openness="full-open"), "EleutherAI/pythia-1.4b", "Qwen/Qwen3-8B"),
    ],
)
def test_a_filter_keeps_what_is_known_to_fit(wish, kept, left):
    found = {row.repo_id for row in select(wish)}
    assert kept in found
    assert left not in found


def test_filters_add_up():
    found = select(Wish("Qwen", language="ja", commercial=True, fits_gb=8, runtime="vLLM"))
    assert {row.repo_id for row in found} == {"Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"}


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"language": "fr"}, "ask for ja"),
        ({"openness": "open"}, "choose one of full-open, permissive"),
        ({"modality": "smell"}, "choose one of text, code"),
        ({"fits_gb": 0}, "give a number above 0"),
        ({"context": -1}, "give a number above 0"),
        ({"runtime": "rocket"}, "choose one of .*vLLM"),
        ({"fits_gb": 9, "quant": "q9"}, "choose one of fp32"),
    ],
)
def test_a_wish_that_nothing_can_answer_names_what_can_be_asked(wish, said):
    with pytest.raises(LabError, match=said):
        select(Wish(**wish))


def test_records_for_a_program_have_null_for_unknown_and_an_age_for_each_fact():
    known, unknown = model_records(models_of("Qwen3-8B") + models_of("granite-4.0-h-tiny"), today=date(2027, 6, 30))
    assert (known["params_total_b"], known["needs_gb"] > 18, known["commercial_use"]) == (8.191, True, "yes")
    assert unknown["params_total_b"] is unknown["needs_gb"] is None
    ages = {fact["group"]: fact for fact in known["facts"]}
    assert ages["dimensions"]["expired"] is False
    assert ages["licence"]["expired"] is True
    assert ages["licence"]["age_days"] > 180
    assert known["runtimes"]["vLLM"] == "0.8.5"
    assert known["runtimes"]["MLX"] is None


def test_expired_facts_are_a_warning_in_ci_and_no_failure():
    rows = staleness.stale_rows()
    lines = staleness.stale_summary(rows)
    assert bool(lines) == bool(rows)
    assert all(re.fullmatch(r"\w+\.csv: \d+ of \d+ rows expired", line) for line in lines)
    for line in lines:
        warnings.warn(f"{line}: see `labkit models --stale`", stacklevel=1)


def test_a_licence_card_for_each_licence_and_one_that_says_that_none_was_read():
    cards = licences.licence_cards(
        ["tokyotech-llm/Llama-3.1-Swallow-8B-Instruct-v0.5", "deepseek-ai/DeepSeek-V4-Flash"]
    )
    assert [card["licence"] for card in cards] == ["Llama 3.1 Community License", "Gemma Terms of Use", "verify"]
    assert cards[2]["commercial use"] == cards[2]["text"] == "verify"
    assert all(list(card) == list(cards[0]) for card in cards)


def test_stale_rows_are_listed_by_table_and_tgi_is_in_maintenance():
    assert not [row for row in staleness.stale_rows(date(2026, 11, 27)) if row["table"] != "prices.csv"]
    later = staleness.stale_rows(date(2027, 2, 26))
    assert {row["table"] for row in later} >= {"prices.csv", "runtimes.csv", "runtime_support.csv"}
    assert any("qwen3 / vLLM" in row["row"] for row in later)
    assert "models.csv" not in {row["table"] for row in staleness.stale_rows(date(2099, 1, 1))}
    assert any(line.startswith("prices.csv: ") and "rows expired" in line for line in staleness.stale_summary(later))
    tgi = next(row for row in runtimes.load_runtimes() if row.runtime == "TGI")
    assert tgi.status == "maintenance"
    named = {row.runtime for row in runtimes.load_runtimes()}
    assert named >= {"Transformers", "Ollama", "LM Studio", "llama.cpp", "vLLM", "SGLang", "MLX", "cloud API"}
    assert named >= {"ONNX Runtime GenAI", "Foundry Local"}


KNOWN_ERRORS = [
    "140.6 B",
    "22 B",
    "Qwen Research License",
    "begins with",
    "exclude",
    "use restrictions",
    "5.7 GB",
    "249",
]


@pytest.mark.parametrize("truth", [*KNOWN_ERRORS, "single stream"])
def test_the_known_errors_are_corrected_with_a_source(truth):
    assert any(truth in row.correction and row.source_url.startswith("https://") for row in families.load_corrections())


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
    assert tables.banner("Prices", [price], seen) == "Prices: 1 row, none expired."


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
