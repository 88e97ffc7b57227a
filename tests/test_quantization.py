"""Models in 8 and 4 bits, and the table of what each number format costs and saves."""

import importlib
import io
import json
import subprocess
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from rich.console import Console
from tiny_server import HELLO, make_tiny_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from labkit import plots
from labkit.adaptation import format_process, quantization
from labkit.adaptation.quantization import FormatRow, held_out_chats, measure_formats, predicted_bytes, write_rows
from labkit.cli.app import app
from labkit.errors import LabError
from labkit.evidence import read_csv
from labkit.export.llama_library import llama_library
from labkit.generation import Sampling, load_chat_model
from labkit.generation.backends import choose_backend
from labkit.generation.bits import import_bitsandbytes, memory_of_weights, require_bitsandbytes
from labkit.layout import MODELS
from labkit.report.quantization import print_formats

EMBEDDED = MODELS / "mini-instruct"


@pytest.fixture(scope="module")
def even_folder(tmp_path_factory):
    """Heads 16 wide, for ONNX, and matrices that hold whole blocks of scales: 28,800 parameters in 14 of them."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return make_tiny_model(tmp_path_factory.mktemp("models") / "even", **sizes)


@pytest.mark.parametrize(
    ("dtype", "bits", "scales"), [("int8", 8, 32 / 64), ("nf4", 4, 32 / 64), ("nf4-dq", 4, 8 / 64)]
)
def test_matrices_have_few_bits_and_the_rest_stays_as_it_was(even_folder, dtype, bits, scales):
    model = load_chat_model(str(even_folder), device="cpu", dtype=dtype)
    network, plain = model.network.model, AutoModelForCausalLM.from_pretrained(even_folder, dtype=torch.float32)
    assert (model.dtype, model.backend, model.device) == (dtype, "transformers", "cpu")
    assert model.parameter_count == plain.num_parameters()
    torch.testing.assert_close(network.lm_head.weight, plain.lm_head.weight)
    torch.testing.assert_close(network.get_input_embeddings().weight, plain.get_input_embeddings().weight)
    packed = sum(weight.numel() for name, weight in plain.named_parameters() if "_proj" in name)
    held = memory_of_weights(network) - 4 * (plain.num_parameters() - packed)
    lookups = 14 * (16 * 4 + (260 * 4 if dtype == "nf4-dq" else 0)) if dtype != "int8" else 0
    least = packed * bits / 8
    assert least < held <= least + packed * scales / 8 + lookups + 4 * 64 * 14
    ids = torch.tensor([list(range(2, 40))])
    with torch.inference_mode():
        difference = (network(ids).logits - plain(ids).logits).abs().max()
    assert 0 < difference < 0.5
    assert model.chat(HELLO, Sampling(max_tokens=4)).completion_tokens == 4


def test_matrices_that_the_processors_own_kernel_cannot_take_are_run_without_it(tiny_model_folder, tiny_model):
    """Of 48 rows and columns: bitsandbytes fails on them on a processor with AVX512-BF16."""
    model = load_chat_model(str(tiny_model_folder), device="cpu", dtype="nf4")
    ids = list(range(2, 30))
    few, many = model.network.rows().join(ids), tiny_model.network.rows().join(ids)
    assert 0 < (few - many).abs().max() < 0.5


@pytest.mark.pinned
def test_auto_takes_transformers_for_4_bits_and_stays_with_onnx_for_int8():
    nf4 = choose_backend("auto", EMBEDDED, "cpu", "nf4")
    assert nf4.name == "transformers"
    assert nf4.reason == "nf4 is a format of bitsandbytes, which runs through transformers"
    assert choose_backend("auto", EMBEDDED, "cpu", "int8").name == "onnx"
    assert choose_backend("auto", EMBEDDED, "cuda", "int8").name == "transformers"
    assert choose_backend("transformers", EMBEDDED, "cpu", "int8").name == "transformers"
    with pytest.raises(LabError, match="backend onnx cannot run this model: nf4-dq is a format of bitsandbytes"):
        choose_backend("onnx", EMBEDDED, "cpu", "nf4-dq")


@pytest.mark.parametrize("dtype", ["int4", "float99", "Q4_K_M"])
def test_a_format_that_transformers_does_not_have_is_told(tiny_model_folder, dtype):
    with pytest.raises(LabError, match=f"transformers has no number format called '{dtype}'") as caught:
        load_chat_model(str(tiny_model_folder), device="cpu", dtype=dtype)
    assert "nf4-dq" in caught.value.next_step


def test_without_bitsandbytes_or_its_device_the_reason_is_told(monkeypatch, tiny_model_folder):
    with pytest.raises(LabError, match="nf4 runs on cpu and cuda, and the device is mps"):
        require_bitsandbytes("nf4", "mps")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(LabError, match="nf4 needs bitsandbytes, which cannot be loaded here") as caught:
        load_chat_model(str(tiny_model_folder), device="cpu", dtype="nf4")
    assert caught.value.next_step == "install it: pip install bitsandbytes"


def test_while_bitsandbytes_is_loaded_it_finds_nothing_that_would_fetch_compiled_code(monkeypatch):
    kernels, seen = ModuleType("kernels"), []
    monkeypatch.setitem(sys.modules, "kernels", kernels)
    monkeypatch.setattr(importlib, "import_module", lambda name: seen.append((name, sys.modules["kernels"])))
    import_bitsandbytes()
    assert seen == [("bitsandbytes", None)]
    assert sys.modules["kernels"] is kernels


@pytest.fixture(scope="module")
def measured(even_folder, tmp_path_factory):
    """The rows as `measure_formats` makes them, but in this process: each of its own takes seconds to begin."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(quantization, "_in_a_process", lambda job: json.loads(json.dumps(format_process.done(job))))
        threads = torch.get_num_threads()
        rows = measure_formats(str(even_folder), ["bfloat16", "nf4", "onnx-int8"], "cpu", chats=3, repeats=2)
    torch.set_num_threads(threads)
    return rows


@pytest.mark.pinned
def test_every_format_has_a_row_and_float32_is_the_first(measured):
    assert [row.format for row in measured] == ["float32", "bfloat16", "nf4", "onnx-int8"]
    assert [row.dtype for row in measured] == ["float32", "bfloat16", "nf4", "int8"]
    for row in measured:
        assert not row.not_run
        assert row.scored_tokens == measured[0].scored_tokens > 50
        assert row.size_bytes > 0
        assert row.tokens_per_second > 1
        assert 0 < row.first_token_seconds < 60  # not milliseconds
        assert 0 < row.cores < 64
        assert row.perplexity > 1


def test_the_scores_are_those_of_one_pass_over_each_whole_chat(measured, even_folder):
    """Perplexity, KL and agreement by another way: transformers on whole texts, float32 and bfloat16."""
    model = load_chat_model(str(even_folder), device="cpu")
    wide, narrow = (AutoModelForCausalLM.from_pretrained(even_folder, dtype=d).eval() for d in ("float32", "bfloat16"))
    nll, kl, agreed = [], [], []
    for prompt, answer in held_out_chats(quantization.HELD_OUT, 3):
        ids, said = model.prompt_ids([{"role": "user", "content": prompt}]), [*model.text_ids(answer), 1]
        with torch.inference_mode():
            whole = torch.tensor([[*ids, *said]])
            a, b = (net(whole).logits[0, len(ids) - 1 : -1].float().log_softmax(-1) for net in (wide, narrow))
        nll += [-a[at, token].item() for at, token in enumerate(said)]
        kl += (a.exp() * (a - b)).sum(-1).tolist()
        agreed += (a.argmax(-1) == b.argmax(-1)).tolist()
    first, second = measured[:2]
    assert first.scored_tokens == len(nll)
    assert first.perplexity == pytest.approx(torch.tensor(nll).mean().exp().item(), rel=1e-4)
    assert (first.kl, first.top1_agreement) == (0, 1)
    assert second.kl == pytest.approx(sum(kl) / len(kl), rel=0.5)
    assert second.top1_agreement == pytest.approx(sum(agreed) / len(agreed), abs=0.05)
    assert measured[2].kl > second.kl > 0


@pytest.mark.pinned
def test_sizes_are_those_of_the_format_and_the_prediction_stands_beside_them(measured, even_folder):
    count = AutoModelForCausalLM.from_pretrained(even_folder).num_parameters()
    assert [row.size_bytes for row in measured[:2]] == [4 * count, 2 * count]
    assert [row.predicted_bytes for row in measured[:2]] == [4 * count, 2 * count]
    assert measured[2].size_bytes < 2 * count
    assert measured[3].size_of == "file"
    assert measured[3].predicted_bytes is None
    nf4 = predicted_bytes("mini-instruct", quantization.FORMATS["nf4"])
    assert nf4 == round(((4_459_264 - 527_104) * 4.5 + 527_104 * 16) / 8)  # embedding 2048 x 256 and 11 norms of 256
    assert predicted_bytes("somebody/unheard-of", quantization.FORMATS["nf4"]) is None


@pytest.mark.pinned
def test_each_format_has_a_process_of_its_own_and_what_cannot_run_is_told(tiny_model_folder, monkeypatch):
    """Heads 12 wide are nothing for ONNX. What this process holds is no part of the other's peak."""
    held, jobs = torch.ones(200_000_000), []  # 800 MB
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *how, **more: jobs.append(more["input"]) or real(*how, **more))
    rows = measure_formats(str(tiny_model_folder), ["onnx-int4"], "cpu", chats=1, repeats=1)
    assert [json.loads(job)["format"] for job in jobs] == ["float32", "onnx-int4"]
    assert 0 < rows[0].own_peak_bytes < rows[0].peak_bytes < held.nbytes
    assert "attention heads are 12 wide" in rows[1].not_run
    assert rows[1].size_bytes is rows[1].kl is rows[1].tokens_per_second is None


def test_a_process_that_dies_and_a_package_that_lacks_are_told(even_folder, monkeypatch):
    def done(job):
        return {"scored_tokens": 1} if job["format"] == "float32" else format_process.done(job)

    monkeypatch.setattr(quantization, "_in_a_process", done)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    llama_library.cache_clear()
    assert measure_formats(str(even_folder), ["gguf-q8_0"])[1].not_run == "llama-cpp-python is not installed"
    monkeypatch.undo()
    monkeypatch.setattr(quantization, "PROCESS", "labkit.no_such_process")
    with pytest.raises(LabError, match=r"its process ended with code 1: .*No module named labkit\.no_such_process"):
        measure_formats(str(even_folder), [])


def test_a_model_or_a_format_that_is_none_is_refused(tmp_path, monkeypatch):
    with pytest.raises(LabError, match="no format called 'int3'"):
        measure_formats(formats=["int3"])
    with pytest.raises(LabError, match="chats is 0"):
        measure_formats(formats=[], chats=0)
    monkeypatch.setattr(quantization, "_in_a_process", format_process.done)
    with pytest.raises(LabError, match="float32, the reference, could not be measured: there is no model folder"):
        measure_formats("./absent", [])
    (tmp_path / "chats.csv").write_text("question\nWhy?\n")
    with pytest.raises(LabError, match=r"chats\.csv holds no chats"):
        measure_formats(formats=[], held_out=tmp_path / "chats.csv")


def test_the_command_writes_table_csv_and_picture(measured, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(quantization, "measure_formats", lambda *how: asked.append(how) or measured)
    files = ["--out", str(tmp_path / "formats.csv"), "--plot", str(tmp_path / "formats.png")]
    words = ["quantize", "some/model", "--formats", "nf4,Onnx-Int8", "--chats", "7", "--repeats", "2"]
    done = CliRunner().invoke(app, [*words, *files], terminal_width=120)
    assert done.exit_code == 0, done.output
    assert asked[0][:2] == ("some/model", ["nf4", "onnx-int8"])
    assert asked[0][4:6] == (7, 2)
    assert "top-1" in done.output
    rows = read_csv(tmp_path / "formats.csv")
    assert [row["format"] for row in rows] == [row.format for row in measured]
    assert float(rows[1]["kl"]) == measured[1].kl
    assert (tmp_path / "formats.png").read_bytes().startswith(b"\x89PNG")
    lost = CliRunner().invoke(app, ["quantize", "--out", str(tmp_path / "formats.csv" / "deep.csv")])
    assert (lost.exception.what.startswith("could not write"), "top-1" in lost.output) == (True, True)
    told = json.loads(CliRunner().invoke(app, ["quantize", "--json"]).stdout)
    assert told[2]["perplexity"] == measured[2].perplexity
    assert "nf4-dq" in CliRunner().invoke(app, ["quantize", "--formats", "help"]).output


ROW = FormatRow("float32", "transformers", "float32", "cpu", 4_000_000, "in memory", 4_000_000, 9_000_000, 3_000_000)
ROW = replace(ROW, tokens_per_second=90.0, first_token_seconds=0.0125, scored_tokens=9, perplexity=1.5, kl=0.0)
ROWS = [
    replace(ROW, top1_agreement=1.0),
    replace(ROW, format="nf4", size_bytes=1_000_000, kl=2e-4, tokens_per_second=45.0, top1_agreement=0.9994),
    FormatRow("gguf-q8_0", "llama.cpp", "Q8_0", not_run="llama-cpp-python is not installed"),
]


def test_the_table_shows_figures_and_why_a_format_has_none_in_80_columns():
    shown = io.StringIO()
    print_formats(ROWS, Console(file=shown, width=80))
    shown = shown.getvalue()
    for text in (
        "4.00",
        "0.25",
        "12.5",
        "2e-04",
        "99.9%",
        "perpl.",
        "gguf-q8_0",
        "llama-cpp-python is not installed",
    ):
        assert text in shown


def test_the_picture_has_a_point_for_each_format_that_ran(tmp_path):
    write_rows(ROWS, tmp_path / "rows.csv")
    for rows in (ROWS, read_csv(tmp_path / "rows.csv")):
        figure = plots.quantization_plot(rows, "tiny")
        divergence, speed = figure.axes
        assert [list(line.get_xydata()[0]) for line in divergence.lines] == [[4.0, 0.0], [1.0, 2e-4]]
        assert [line.get_ydata()[0] for line in speed.lines] == [90.0, 45.0]
        assert [text.get_text() for text in figure.legends[0].texts] == ["float32", "nf4"]
        assert figure.get_suptitle() == "tiny in 2 formats on cpu"
