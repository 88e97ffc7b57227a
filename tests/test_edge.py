"""The edge lesson: the quality checklist as measurements, Foundry Local, and what the verifier reads back."""

import json
import mmap
import shutil
import sys

import pytest

from labkit import plots
from labkit.edge import checklist, foundry_local, lesson
from labkit.edge.checklist import EDGE_CASES, TOO_LONG, run_checklist
from labkit.edge.fidelity import answers
from labkit.edge.foundry_local import foundry_installed, loaded_in_foundry
from labkit.edge.measures import GROWTH_LIMIT, growth_of, slope_of
from labkit.errors import LabError
from labkit.evaluation.cases import EVAL_CASES, load_cases
from labkit.evidence import Pack
from labkit.export.llama_library import llama_library
from labkit.generation import Sampling
from labkit.verification import Verdict, edge_checks, verify
from labkit.verification.reading import PackReader

CASES = [case for risk in ("format", "grounding") for case in load_cases() if case.risk == risk][:9:4]
CASES += [case for case in load_cases() if case.case_id == "latency_01"]


@pytest.fixture(scope="module")
def lesson_pack(tmp_path_factory):
    """The lesson's steps on the embedded model and three cases, without the extras. Its int4 export is made once."""
    pytest.importorskip("onnxruntime_genai", reason="free Colab has no onnxruntime-genai")
    pack = Pack(tmp_path_factory.mktemp("pack"), "local_cpu")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("labkit.edge.fidelity.DECODING", Sampling(max_tokens=16))
        patched.setitem(__import__("sys").modules, "llama_cpp", None)
        patched.setattr(foundry_local, "foundry_installed", lambda: False)
        llama_library.cache_clear()
        task = lesson.EdgeTask(cases=CASES, limit=1.0)
        lesson.recast(pack, task)
        for kind, precision in (("onnx", "int4"), ("gguf", "Q4_K_M")):
            lesson.convert(pack, task, kind, precision)
        lesson.configure(pack, task, "mini-int4")
        foundry = lesson.try_foundry(pack, task, "mini-int4")
        lesson.check_quality(pack, task, generations=40)
    return pack, task, foundry


def found(folder, name):
    return next(f for f in verify(folder, "13.7").findings if f.name == name)


@pytest.fixture
def copied(lesson_pack, tmp_path):
    """The pack, to be spoiled and recorded again."""
    folder = shutil.copytree(lesson_pack[0].folder, tmp_path / "pack")
    return Pack(folder, "local_cpu")


def change(pack, name, alter):
    value = json.loads(pack.path(name).read_text())
    alter(value)
    pack.write_json(name, value, "13.7")


def test_without_the_extras_the_lesson_says_not_run_and_goes_on(lesson_pack):
    pack, task, foundry = lesson_pack
    assert foundry == {"not_run": "the Foundry Local SDK is not installed"}
    rows = lesson.difference_table(task)
    assert [row["format"] for row in rows] == ["source in bfloat16", "onnx int4", "gguf Q4_K_M"]
    assert "by labkit export onnx data/models/mini-instruct --precision int4" in lesson.card_text(
        task.exports["onnx int4"]
    )
    assert lesson.card_text(task.exports["gguf Q4_K_M"]) == "not run: llama-cpp-python is not installed"
    assert rows[2]["answers that differ"] == "not run: llama-cpp-python is not installed"
    report = json.loads(pack.path("edge_report.json").read_text())
    assert report["decision"]["choice"] == "onnx int4"
    assert report["foundry"] == foundry


def test_where_nothing_can_be_exported_every_step_says_so(tmp_path, monkeypatch):
    """Free Colab: neither onnxruntime-genai nor llama-cpp-python."""
    for package in ("onnxruntime_genai", "onnxruntime_genai.models", "onnxruntime_genai.models.builder", "llama_cpp"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("labkit.edge.fidelity.DECODING", Sampling(max_tokens=2))
    llama_library.cache_clear()
    pack, task = Pack(tmp_path, "local_cpu"), lesson.EdgeTask(cases=CASES[:1])
    rows = [lesson.convert(pack, task, kind, precision) for kind, precision in lesson.EXPORTS]
    assert {row["not_run"] for row in rows[:2]} == {"the ONNX model builder is not installed here"}
    assert rows[-1]["not_run"].endswith(("llama-cpp-python is not installed", "tell how llama.cpp splits texts"))
    task.exports["onnx int8"] = {**task.exports["onnx int8"], "not_run": ""}  # another export is no stand-in for int4
    assert lesson.configure(pack, task, "mini-int4") == {"not_run": "no onnx int4 export was made here"}
    task.exports["onnx int8"]["not_run"] = "the ONNX model builder is not installed here"
    assert lesson.try_foundry(pack, task, "mini-int4") == {"not_run": "no onnx int4 export was made here"}
    assert lesson.check_quality(pack, task) is None
    report = json.loads(pack.path("edge_report.json").read_text())
    assert report["decision"]["choice"] == "source"
    assert not pack.path("quality_checklist.json").exists()
    assert found(pack.folder, "edge_report.json").verdict is Verdict.NOT_YET


def test_the_verifier_supports_what_the_lesson_left(lesson_pack):
    folder = lesson_pack[0].folder
    for name in ("edge_report.json", "inference_model.json", "quality_checklist.json"):
        assert found(folder, name).verdict is Verdict.SUPPORTED, found(folder, name)
    assert "not run: gguf Q4_K_M" in found(folder, "edge_report.json").detail


def unchanged(report):
    """The check of a run that is the source's."""
    check = report["formats"]["bfloat16"]
    same = {"answers_differ": [], "share": 0.0, "flagged": False, "broken": [], "fixed": []}
    return {**check, **same, "passed": check["source_passed"]}


def test_verdicts_without_limits_of_time_are_judged_again_too(copied):
    timed = [case for case in CASES if "latency_ms" in case.check]
    assert timed
    shutil.copy(EVAL_CASES, copied.path("eval_cases.csv"))
    copied.record("eval_cases.csv", "13.2")
    assert edge_checks._require_verdicts(PackReader(copied.folder), "source") == len(CASES)


@pytest.mark.parametrize(
    ("name", "alter", "said"),
    [
        ("edge_report.json", lambda r: r["decision"].update(choice="gguf Q4_K_M"), "its own exports say onnx int4"),
        ("edge_report.json", lambda r: r["exports"][0]["check"].update(flagged=True), "answers differ, it says"),
        ("edge_report.json", lambda r: r["exports"][0]["check"].update(broken=["x"]), "answers below edge/ differ"),
        ("edge_report.json", lambda r: r["formats"]["bfloat16"].update(fixed=["x"]), "differ for bfloat16"),
        (
            "edge_report.json",
            lambda r: r["formats"].update(source=unchanged(r)),
            "not answered by the source in source",
        ),
        ("quality_checklist.json", lambda c: c.update(slope=0.0), "not those of its measurements"),
        ("quality_checklist.json", lambda c: c.update(passed=not c["passed"]), "not what its items say"),
    ],
)
def test_an_overclaim_is_contradicted(copied, name, alter, said):
    change(copied, name, alter)
    finding = found(copied.folder, name)
    assert finding.verdict is Verdict.CONTRADICTED
    assert said in finding.detail


@pytest.mark.parametrize(
    ("name", "alter", "said"),
    [
        ("edge_report.json", lambda r: r.update(exports=[]), "exports"),
        ("edge_report.json", lambda r: r["exports"][0].update(check=None), "check"),
        ("edge_report.json", lambda r: r["exports"][0].update(files=[]), "no sizes"),
        ("inference_model.json", lambda m: m.update(Version="latest"), "Version"),
        ("quality_checklist.json", lambda c: c["latencies"][0].pop("tokens"), "not a checklist"),
    ],
)
def test_what_is_not_there_is_not_yet(copied, name, alter, said):
    change(copied, name, alter)
    finding = found(copied.folder, name)
    assert finding.verdict is Verdict.NOT_YET
    assert said in finding.detail


# The checklist


def test_every_line_is_measured_and_an_input_too_long_is_refused(lesson_pack):
    held = json.loads(lesson_pack[0].path("quality_checklist.json").read_text())
    names = ["domain answers", "output structure", "memory growth", "latency over length", "edge cases"]
    assert [item["name"] for item in held["items"]] == names
    edges = {case["name"]: case for case in held["edge_cases"]}
    assert edges.keys() == EDGE_CASES.keys()
    assert "the model's context holds 1024" in edges[TOO_LONG]["refusal"]
    assert all(case["tokens"] for name, case in edges.items() if name != TOO_LONG)
    assert [row["tokens"] for row in held["latencies"]] == [16, 32, 64, 128, 256, 512, 1023]
    assert [number for number, _ in held["memory"]] == list(range(5, 41, 5))


def test_a_leak_and_a_defect_are_seen(tiny_model, monkeypatch):
    held = []

    def leaking(messages, sampling):
        held.append(mmap.mmap(-1, 400_000))  # not from memory that Python had and freed
        held[-1].write(b"x" * 400_000)
        return tiny_model.__class__.chat(tiny_model, messages, Sampling(max_tokens=1))

    monkeypatch.setattr(tiny_model, "chat", leaking)
    assert growth_of(checklist.memory_over(tiny_model, 60)) > 5 * GROWTH_LIMIT
    monkeypatch.setattr(tiny_model, "chat", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checklist.edge_cases(tiny_model)
    with pytest.raises(LabError, match="show no trend"):
        run_checklist(tiny_model, [], [], generations=10)


def test_an_input_that_is_too_long_is_refused_without_the_tokenizers_own_warning(tiny_model, caplog):
    tiny_model.tokenizer.deprecation_warnings.clear()  # it warns once
    with pytest.raises(LabError, match="the model's context holds"):
        tiny_model.chat([{"role": "user", "content": "refund " * 5000}])
    assert caplog.records == []


def test_a_slope_is_that_of_the_least_squares():
    assert slope_of([(0, 1.0), (1, 3.0), (2, 5.0)]) == pytest.approx(2.0)


def test_the_plot_shows_every_length_the_slope_and_the_memory(lesson_pack):
    held = json.loads(lesson_pack[0].path("quality_checklist.json").read_text())
    latency, memory = plots.edge_plot(held).axes
    assert [text.get_text() for text in latency.get_legend().get_texts()] == [f"{held['slope']:.3f} ms a token"]
    assert len(memory.lines[0].get_xdata()) == len(held["memory"])


# Foundry Local


def test_without_the_sdk_foundry_local_tells_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(foundry_local, "foundry_installed", lambda: False)
    with pytest.raises(LabError, match="SDK is not installed") as caught, loaded_in_foundry(tmp_path, "x"):
        pass
    assert "open-llm-workbook[edge]" in caught.value.next_step


@pytest.mark.skipif(not foundry_installed(), reason="the extra edge is not installed")
def test_an_export_is_registered_listed_asked_and_unregistered(lesson_pack, tmp_path, monkeypatch):
    _, task, _ = lesson_pack
    monkeypatch.setattr(foundry_local, "STATE", tmp_path)
    export = task.folder / "onnx int4"
    for _ in range(2):  # the first run leaves no registration behind
        with loaded_in_foundry(export, "mini-int4") as local:
            assert local.listed == ("mini-int4:1",)
            said = answers_of_foundry(local, task)
    assert [result.reply.text for result in said] == [
        result.reply.text for result in answers(task.load("onnx int4"), CASES)
    ]
    with pytest.raises(LabError, match="Foundry Local could not load"), loaded_in_foundry(tmp_path, "nothing"):
        pass


def answers_of_foundry(local, task):
    from labkit.edge.fidelity import answers_of

    return answers_of(local.target, task.cases)
