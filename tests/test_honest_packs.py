"""What honest learners do: lessons in another order, on another machine, by hand in a spreadsheet. None of it is a lie.

The verdict is supported, or not yet with a way on; "contradicted" is for what no honest order of work can leave.
"""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from healthy_pack import REVISION
from rule_packs import LOG, REPORT, base_folder, put_on_cuda, review, set_keys
from typer.testing import CliRunner

from labkit.cli import app
from labkit.errors import LabError
from labkit.evidence import MANIFEST, Pack, read_csv, read_manifest, recorded
from labkit.exchange import export_pack, import_pack
from labkit.grading.copies import Print, fingerprints, shared
from labkit.serving.running import leave_proof
from labkit.verification import Verdict, Verification, verify
from labkit.verification.reading import PackReader

Work = Callable[[Path], None]
EARLY, LATE = "2026-01-01T00:00:00+00:00", "2026-01-06T00:00:00+00:00"
BENCHMARK, GATES, CASES, RESULTS = "benchmark.json", "release_gates.md", "eval_cases.csv", "eval_results.csv"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bases")


def copy_of(root: Path, base: str, folder: Path) -> Path:
    return Path(shutil.copytree(base_folder(root, base), folder))


def at(folder: Path, time: str, *names: str) -> None:
    """The manifest says that `names` were written at `time`."""
    held = read_manifest(folder)
    for name in names:
        held["files"][name]["written"] = time
    (folder / MANIFEST).write_text(json.dumps(held))


def text(folder: Path, name: str, old: str, new: str) -> None:
    held = (folder / name).read_text()
    assert old in held
    Pack(folder, read_manifest(folder)["route"]).write_text(name, held.replace(old, new), "13.1")


def ran_again(name: str, **keys: object) -> Work:
    return lambda folder: set_keys(folder, name, **keys)


def another_version(folder: Path) -> None:
    """A package was updated between 13.1 and another run of 13.2."""
    packages = json.loads((folder / REPORT).read_text())["packages"]
    set_keys(folder, REPORT, packages=packages | {"numpy": "99.0"})
    at(folder, EARLY, "requirements-freeze.txt", "environment_report.txt")


def half_of_13_1(folder: Path) -> None:
    """13.1 begun again after an update, and ended before the freeze."""
    text(folder, "environment_report.txt", "Package numpy: ", "Package numpy: 99.")
    at(folder, EARLY, "requirements-freeze.txt")


def on_a_gpu_after_all(folder: Path) -> None:
    """13.1 on a session without a GPU, the rest after it was given one."""
    of_13_1 = ("environment_report.txt", "requirements-freeze.txt")
    written = {name: (folder / name).read_text() for name in of_13_1}
    put_on_cuda(folder)
    for name, held in written.items():
        Pack(folder, "local_cpu").write_text(name, held, "13.1")
    at(folder, EARLY, *of_13_1)


def another_gpu(folder: Path) -> None:
    """13.1 again in a session that was given another card."""
    text(folder, "environment_report.txt", "GPU: NVIDIA L40S", "GPU: Tesla T4")


def other_own_case(folder: Path) -> None:
    """A case of the learner's own, taken out after the evaluation; the review in the notebook records the file."""
    rows = read_csv(folder / CASES)[1:]
    Pack(folder, "local_cpu").write_csv(CASES, rows, list(rows[0]), "13.4")
    at(folder, EARLY, RESULTS)


def other_expectation(folder: Path) -> None:
    rows = [row | {"expected": "z"} for row in read_csv(folder / CASES)]
    Pack(folder, "local_cpu").write_csv(CASES, rows, list(rows[0]), "13.4")
    at(folder, EARLY, RESULTS)


def faster_by_now(folder: Path) -> None:
    """The gates passed the p95 of a benchmark that was then made again."""
    claim = "p95 latency | at most 5000 ms on a rented GPU | 12 ms over 20 requests | pass"
    text(folder, GATES, "p95 latency | a GPU | 90 ms measured here | not claimed", claim)
    at(folder, EARLY, GATES)
    at(folder, LATE, BENCHMARK)


def hook_failed(folder: Path) -> None:
    """The server is gone, as its gate says; the provider's command at the end was not found."""
    guard = {"ended_because": "budget", "limit_seconds": 7200, "budget_usd": 3.0, "stop_at": "2026-01-05T11:00+00:00"}
    set_keys(folder, "shutdown_proof.json", guard=guard, hook={"exit": 127})


def still_there(folder: Path) -> None:
    """Another server, later, that did not end; the gates are of the first."""
    set_keys(folder, "shutdown_proof.json", process_gone=False)
    at(folder, EARLY, GATES)


def clock_put_right(folder: Path) -> None:
    """Windows beside Linux: the clock went back by an hour while the benchmark ran."""
    held = json.loads((folder / BENCHMARK).read_text())
    recorded = datetime.fromisoformat(held["time"]) - timedelta(minutes=59)
    at(folder, recorded.isoformat(), BENCHMARK)


def clock_ahead(folder: Path) -> None:
    at(folder, (datetime.now(UTC) + timedelta(days=400)).isoformat(timespec="seconds"), "first_run.md")


def half_of_13_7(folder: Path) -> None:
    """13.7 begun again with another model, and cut off before the report."""
    rows = [row | {"revision": "another"} for row in read_csv(folder / "edge/source/eval_results.csv")]
    Pack(folder, "local_cpu").write_csv("edge/source/eval_results.csv", rows, list(rows[0]), "13.7")
    at(folder, EARLY, "edge_report.json")


def in_other_words(name: str, old: str, new: str) -> Work:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new)) and None


def notebook_saved(folder: Path) -> None:
    Pack(folder, "local_cpu").write_text("notebooks/13_2.ipynb", '{"cells": []}', "13.2")
    (folder / "notebooks/13_2.ipynb").write_text('{\n "cells": []\n}')


WORK: dict[str, tuple[str, Work, str, str]] = {
    "the smoke test alone, with another model": (
        "healthy",
        ran_again("api_smoke_test.json", model="own"),
        "one model throughout",
        "different models",
    ),
    "a server with an adapter": (
        "healthy",
        ran_again("api_smoke_test.json", model="own", health={"status": "ok", "model": "m", "revision": REVISION}),
        "one model throughout",
        "different models",
    ),
    "the benchmark alone, with another model": (
        "healthy",
        ran_again(BENCHMARK, model="own"),
        "one model throughout",
        "different models",
    ),
    "the decision alone, for another model": (
        "healthy",
        lambda folder: text(folder, "model_decision.md", "Revision: 0123456789ab", "Revision: another"),
        "one model throughout",
        "different models",
    ),
    "an adapter of another model": (
        "adapted",
        ran_again("adapter/card.json", base_revision="another"),
        "adapter of the decided model",
        "another",
    ),
    "a package updated": ("healthy", another_version, "versions agree", "was changed between 13.1 and the run"),
    "13.1 cut off": ("healthy", half_of_13_1, "versions agree", "made again"),
    "a GPU since 13.1": ("healthy", on_a_gpu_after_all, "training device agrees", "run 13.1 and 13.2 on one machine"),
    "a GPU since 13.1, by device": ("healthy", on_a_gpu_after_all, "devices of this machine", "another machine"),
    "another GPU in 13.1": ("rented", another_gpu, "devices of this machine", "another machine, or it was changed"),
    "a case taken out": ("healthy", other_own_case, "results match the cases", "made again after eval_results.csv"),
    "a case that expects another": ("healthy", other_expectation, "verdicts follow from the answers", "made again"),
    "a benchmark after the gates": ("rented", faster_by_now, "gates repeat the evaluation", "made again after"),
    "no price given to stop": (
        "rented",
        ran_again("shutdown_proof.json", hourly_usd=0.0, cost_usd=0.0),
        "cost within the plan",
        "says $0.00",
    ),
    "a stop hook that failed": (
        "rented",
        hook_failed,
        "no overclaim: rented GPU without shutdown proof",
        "look at your provider's page",
    ),
    "a server that stayed": (
        "rented",
        still_there,
        "no overclaim: rented GPU without shutdown proof",
        "made again after release_gates.md",
    ),
    "a clock put right": ("healthy", clock_put_right, "times in order", "the clock was changed in between"),
    "a clock ahead": ("healthy", clock_ahead, "times in order", "or is wrong here"),
    "13.7 cut off": ("edge", half_of_13_7, "edge_report.json", "made again after edge_report.json"),
    "a decision in other words": (
        "healthy",
        in_other_words("model_decision.md", "it ships", "as I see it, it ships"),
        "model_decision.md",
        "if the words are yours, enter them",
    ),
    "a notebook opened and saved": ("healthy", notebook_saved, "manifest hashes match", "notebooks/13_2.ipynb"),
}


@pytest.mark.parametrize("work", WORK)
def test_honest_work_is_waited_for_and_never_contradicted(root, tmp_path, work):
    base, do, rule, said = WORK[work]
    folder = copy_of(root, base, tmp_path / base)
    do(folder)
    found: Verification = verify(folder)
    assert [f for f in found.findings if f.verdict is Verdict.CONTRADICTED] == []
    finding = next(f for f in found.findings if f.name == rule)
    assert (finding.verdict, said in finding.detail) == (Verdict.NOT_YET, True), finding
    assert finding.next_action


@pytest.mark.parametrize(
    "sample", ["a\x1f2 \x7fb\r\n\u2028c", "it's so", 'it\'s "so" \\x1f d', "\ufffd\U000e0001 eleven"]
)
def test_the_trace_may_show_a_sample_of_any_characters(root, tmp_path, sample):
    """A model of a few steps writes any bytes, and the trace has them as Python escapes them."""
    folder = copy_of(root, "healthy", tmp_path / "healthy")
    trace, file = "gpu_train_log.txt", "openllm_gpu_training_run/sample.txt"
    pack, held = Pack(folder, "local_cpu"), re.sub(r"(?m)^sample: .*$", "", (folder / trace).read_text())
    pack.write_text(trace, f"{held}sample: {sample!r}\n", "13.2")
    pack.write_text(file, f"prompt: a\n\n{sample}\n", "13.2")
    assert not [f.detail for f in verify(folder).findings if "the sample" in f.detail]
    pack.write_text(file, "prompt: a\n\nanother\n", "13.2")
    assert [f.detail for f in verify(folder).findings if "has the sample" in f.detail]


def crlf(content: bytes) -> bytes:
    return content.replace(b"\n", b"\r\n")


def by_a_spreadsheet(content: bytes) -> bytes:
    rows, out = list(csv.reader(io.StringIO(content.decode(), newline=""))), io.StringIO()
    csv.writer(out, lineterminator="\r\n", quoting=csv.QUOTE_ALL).writerows(rows)
    return b"\xef\xbb\xbf" + out.getvalue().encode()


def test_git_may_change_the_line_ends_of_a_pack(root, tmp_path):
    folder = copy_of(root, "adapted", tmp_path / "p")
    for path in folder.rglob("*"):
        if path.suffix in (".csv", ".json", ".jsonl", ".md", ".txt"):
            path.write_bytes(crlf(path.read_bytes()))
    assert verify(folder).exit_code == 0


def test_a_table_that_a_spreadsheet_saved_is_the_table(root, tmp_path):
    folder = copy_of(root, "adapted", tmp_path / "p")
    for name in (RESULTS, LOG, "lever_table.csv"):
        (folder / name).write_bytes(by_a_spreadsheet((folder / name).read_bytes()))
    assert verify(folder).exit_code == 0
    (folder / RESULTS).write_bytes((folder / RESULTS).read_bytes().replace(b"50.0", b"49.0", 1))
    assert verify(folder).exit_code == 2


def test_words_of_ones_own_are_recorded_and_measurements_are_not(root, tmp_path):
    folder = copy_of(root, "healthy", tmp_path / "p")
    in_other_words("model_decision.md", "it ships", "as I see it, it ships")(folder)
    entry = read_manifest(folder)["files"]["model_decision.md"]
    waiting = next(found for found in verify(folder).artifacts if found.name == "model_decision.md")
    assert waiting.next_action == "run `labkit record model_decision.md`", "13.3 again would write over the words"
    done = CliRunner().invoke(app, ["record", "model_decision.md", "--evidence", str(folder)])
    assert (done.exit_code, done.output) == (0, "recorded: model_decision.md\n")
    assert read_manifest(folder)["files"]["model_decision.md"]["lesson"] == entry["lesson"]
    assert verify(folder).exit_code == 0
    in_other_words(BENCHMARK, '"errors": 0', '"errors": 0 ')(folder)
    with pytest.raises(LabError, match=r"benchmark\.json is no form"):
        Pack(folder, "local_cpu").record_form(BENCHMARK)
    with pytest.raises(LabError, match=r"no lesson has left gpu_plan\.md"):
        Pack(folder, "local_cpu").record_form("gpu_plan.md")
    assert verify(folder).exit_code == 2


def test_what_a_command_writes_into_a_pack_is_entered_there(root, tmp_path, monkeypatch):
    """`labkit lora --out PACK/adapter`, `labkit quantize --out`, `labkit serve --proof` are told where to write."""
    folder = copy_of(root, "healthy", tmp_path / "p")
    monkeypatch.setattr("labkit.serving.running.STATE", tmp_path / "state")
    held = json.loads((folder / "shutdown_proof.json").read_text())
    leave_proof(held | {"signal": "SIGINT"}, folder / "shutdown_proof.json")
    assert verify(folder).exit_code == 0
    assert json.loads((folder / "shutdown_proof.json").read_text())["signal"] == "SIGINT"
    with recorded(folder / "adapter", "13.6"):
        (folder / "adapter").mkdir()
        (folder / "adapter" / "card.json").write_text("{}")
    assert read_manifest(folder)["files"]["adapter/card.json"]["lesson"] == "13.6"
    (tmp_path / MANIFEST).write_text('{"name": "an app of the web"}')
    with recorded(tmp_path / "table.csv", "13.6"):
        (tmp_path / "table.csv").write_text("a,b\n")
    assert (tmp_path / MANIFEST).read_text() == '{"name": "an app of the web"}'


def test_an_exercise_in_fine_tuning_claims_nothing(root, tmp_path):
    """13.6 trains an adapter for everybody, also for whose baseline fails nothing."""
    folder = copy_of(root, "adapted", tmp_path / "p")
    (folder / "lora_decision.md").unlink()
    rows = [row | {"pass": "true", "output": "x"} for row in read_csv(folder / RESULTS)]
    Pack(folder, "local_cpu").write_csv(RESULTS, rows, list(rows[0]), "13.2")
    name = "no overclaim: fine-tuning without a failing baseline"
    found = {finding.name: finding.verdict for finding in verify(folder).findings}
    assert found[name] is Verdict.NOT_YET


def test_a_plan_for_a_gpu_claims_no_training(root, tmp_path):
    folder = copy_of(root, "healthy", tmp_path / "p")
    Pack(folder, "local_cpu").write_text("gpu_plan.md", "- Goal: GPU training, 500 steps\n- A: b\n- C: d\n", "13.1")
    assert verify(folder).exit_code == 0


def test_a_pack_comes_back_from_an_archive_under_another_name(root, tmp_path):
    folder = copy_of(root, "adapted", tmp_path / "p")
    review(folder, "- {case_id}: as the policy says")
    import_pack(export_pack(folder, tmp_path / "handed-in.zip").path, tmp_path / "elsewhere")
    assert verify(tmp_path / "elsewhere").exit_code == 0


# A class


def prints_of(folder: Path, person: str) -> Print:
    return Print(person, person, fingerprints(PackReader(folder)))


def other_measurements(folder: Path, second: int) -> None:
    """The same lessons by somebody else on the same machine, `second` seconds later: what a clock says is another."""
    rows = read_csv(folder / RESULTS)
    rows = [row | {"latency_ms": f"{40 + (7 * n * second) % 13 / 10}"} for n, row in enumerate(rows)]
    pack = Pack(folder, "local_cpu")
    pack.write_csv(RESULTS, rows, list(rows[0]), "13.2")
    log = read_csv(folder / LOG)
    pack.write_csv(LOG, [row | {"elapsed_seconds": f"{second + n}"} for n, row in enumerate(log)], list(log[0]), "13.2")
    held = json.loads((folder / BENCHMARK).read_text())["rows"]
    set_keys(folder, BENCHMARK, rows=[row | {"latency_ms": 60 + n / 10 + second} for n, row in enumerate(held)])
    set_keys(folder, "api_smoke_test.json", base_url=f"http://127.0.0.1:{50_000 + second}")
    set_keys(folder, "shutdown_proof.json", port=50_000 + second)
    drills = json.loads((folder / "failure_drill.json").read_text())["drills"]
    set_keys(folder, "failure_drill.json", drills=[drill | {"seconds": 2 + second / 100} for drill in drills])


def test_a_class_that_worked_side_by_side_is_not_called_copied(root, tmp_path):
    """Two machines of one image that began in the same second, and notes of one word."""
    packs = []
    for person in (1, 2):
        folder = copy_of(root, "healthy", tmp_path / str(person))
        other_measurements(folder, person)
        rows = [row | {"notes": "right" if n % 3 else "wrong"} for n, row in enumerate(20 * read_csv(folder / CASES))]
        Pack(folder, "local_cpu").write_csv(CASES, rows, list(rows[0]), "13.2")
        names = sorted(read_manifest(folder)["files"])
        for place, name in enumerate(names):
            at(folder, f"2026-01-05T10:0{place % 4}:00+00:00", name)
        packs.append(prints_of(folder, str(person)))
    assert shared(packs) == [(), ()]


def test_own_sentences_and_many_times_still_tell_a_copy(root, tmp_path):
    packs = []
    for person in (1, 2):
        folder = copy_of(root, "healthy", tmp_path / str(person))
        other_measurements(folder, person)
        review(folder, "{case_id}: the answer leaves out the day")
        names = sorted(read_manifest(folder)["files"])
        for place, name in enumerate(names):
            at(folder, f"2026-01-05T10:00:{place:02}+00:00", name)
        packs.append(prints_of(folder, str(person)))
    assert {file for one in shared(packs)[0] for file in one.files} == {MANIFEST, CASES}
