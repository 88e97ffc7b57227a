"""Lies that a person made by hand and entered into the manifest: each is told by the rule that it is a lie against."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rule_packs import base_folder, change, record, set_keys

from labkit.evidence import MANIFEST, csv_text, read_csv, read_manifest
from labkit.levers.table import COLUMNS, TABLE, read_table
from labkit.verification import Verdict, verify
from labkit.verification import overclaims as over

Change = Callable[[Path], None]
CARD = "card.json"


def keys(name: str, **values: object) -> Change:
    return lambda folder: set_keys(folder, name, **values)


def said(name: str, old: str, new: str) -> Change:
    return lambda folder: change(folder, (name, old, new))


def readme(sentence: str) -> Change:
    return said("README.md", "# Service\n", f"# Service\n\n{sentence}\n")


def rows(name: str, **cells: str) -> Change:
    def edit(folder: Path) -> None:
        held = [row | cells for row in read_csv(folder / name)]
        (folder / name).write_text(csv_text(held, list(held[0])))
        record(folder, name)

    return edit


def levels(**values: object) -> Change:
    def edit(folder: Path) -> None:
        held = json.loads((folder / "benchmark.json").read_text())["levels"]
        set_keys(folder, "benchmark.json", levels=[level | values for level in held])

    return edit


def every_lever_passes(folder: Path) -> None:
    """The runs below levers/ and the table that follows from them, edited alike."""
    rows("levers/schema/eval_results.csv", **{"pass": "true", "output": "y"})(folder)
    (folder / TABLE).write_text(csv_text(read_table(folder).as_rows(), COLUMNS))
    record(folder, TABLE)


def recorded_in(year: int) -> Change:
    def edit(folder: Path) -> None:
        manifest = read_manifest(folder)
        manifest["files"]["first_run.md"]["written"] = f"{year}-01-01T00:00:00+00:00"
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return edit


def edited_case(folder: Path) -> None:
    """The expected value of a case, changed after its answer was judged."""
    held = [row | {"expected": "z"} for row in read_csv(folder / "eval_cases.csv")]
    (folder / "eval_cases.csv").write_text(csv_text(held, list(held[0])))


def other_lines(folder: Path) -> None:
    held = read_csv(folder / "eval_results.csv")
    lines = (json.dumps({"case_id": row["case_id"], "pass": True}) + "\n" for row in held)
    (folder / "eval_results.jsonl").write_text("".join(lines))
    record(folder, "eval_results.jsonl")


def fast_summary(folder: Path) -> None:
    speed = {"completion_tokens": 40, "seconds": 0.01, "tokens_per_second": 4000.0}
    set_keys(folder, "eval_summary.json", speed={"all": speed})


def export(**values: object) -> Change:
    def edit(folder: Path) -> None:
        report = json.loads((folder / "edge_report.json").read_text())
        report["exports"][0] |= values
        set_keys(folder, "edge_report.json", exports=report["exports"])

    return edit


def export_check(**values: object) -> Change:
    def edit(folder: Path) -> None:
        held = json.loads((folder / "edge_report.json").read_text())["exports"][0]["check"]
        export(check=held | values)(folder)

    return edit


def slow_prompt(folder: Path) -> None:
    held = json.loads((folder / "quality_checklist.json").read_text())["latencies"]
    set_keys(folder, "quality_checklist.json", latencies=[row | {"slowest": 9.0} for row in held])


def one_gpu_second(folder: Path) -> None:
    """A p95 gate of a rented GPU that passes with a number of its own."""
    gate = "| p95 latency | at most 5000 ms on a rented GPU | 12 ms over 20 requests | pass | benchmark.json |"
    old = "| p95 latency | a GPU | 90 ms measured here | not claimed | benchmark.json |"
    change(folder, ("release_gates.md", old, gate))


def wide(text: str) -> str:
    """The full-width forms of ASCII, which Japanese keyboards write."""
    return "".join(chr(ord(letter) + 0xFEE0) if letter > " " else letter for letter in text)


PUBLIC, SPEED = f"no overclaim: {over.PUBLIC}", f"no overclaim: {over.SPEED_ELSEWHERE}"
EXPORTED = {"model.onnx": {"bytes": 4_000_000, "sha256": 64 * "f"}}
LIES = {
    "a gate passes below its threshold": (
        "healthy",
        said("release_gates.md", "1 of 2 passed | fail", "1 of 2 passed | pass"),
        "gates repeat the evaluation",
        "passes safety with 1 of 2, and a release needs 2",
    ),
    "a gate without evidence": (
        "healthy",
        said("release_gates.md", "| p95", "| accuracy | high | 100 % | pass | trust me |\n| p95"),
        "release_gates.md",
        "on the evidence of trust me",
    ),
    "one package in two versions": (
        "healthy",
        said("requirements-freeze.txt", "torch==", "torch==9.0\ntorch=="),
        "requirements-freeze.txt",
        "pins torch twice",
    ),
    "a p95 that nothing measured": ("rented", one_gpu_second, "gates repeat the evaluation", "benchmark.json says"),
    "a file of the future": ("healthy", recorded_in(2999), "times in order", "which is still to come"),
    "a case edited after its answer": ("healthy", edited_case, "verdicts follow from the answers", "was edited since"),
    "other verdicts in the second file": ("healthy", other_lines, "verdicts follow from the answers", "safety_007"),
    "a check that does not exist": (
        "healthy",
        lambda folder: (
            rows("eval_results.csv", check="sounds_good")(folder),
            rows("eval_cases.csv", check="sounds_good")(folder),
        ),
        "verdicts follow from the answers",
        "no check called 'sounds_good'",
    ),
    "full-width digits": (
        "healthy",
        rows("eval_results.csv", latency_ms=wide("50.0")),
        "eval_results.csv",
        wide("50.0"),
    ),
    "digits with a separator": ("healthy", rows("eval_results.csv", latency_ms="5_0.0"), "eval_results.csv", "'5_0.0'"),
    "levers and table edited alike": ("adapted", every_lever_passes, "lever_table.csv", "its answer fails the check"),
    "requests faster than their answers": (
        "healthy",
        levels(seconds=0.1, tokens_per_second=800.0),
        "benchmark.json",
        "too long for 1 clients",
    ),
    "tokens per second of no row": ("healthy", fast_summary, "eval_summary.json", "in at least 0.5 s"),
    "a benchmark of a smaller model": (
        "healthy",
        keys("benchmark.json", model="tiny"),
        "one model throughout",
        "benchmark.json says tiny",
    ),
    "features of another model": (
        "healthy",
        keys("conformance.json", model="other"),
        "one model throughout",
        "conformance.json says other",
    ),
    "a server that is another": (
        "healthy",
        keys("api_smoke_test.json", health={"status": "ok", "model": "other", "revision": "1"}),
        "one model throughout",
        "health in api_smoke_test.json says other",
    ),
    "an open service without keys": (
        "healthy",
        said("service_contract.json", "http://127.0.0.1", "http://0.0.0.0"),
        PUBLIC,
        "serves at 0.0.0.0 without authorization",
    ),
    "a claim over two lines": ("healthy", readme("This is production\nready."), PUBLIC, "README.md says"),
    "a claim in bold": ("healthy", readme("This is **production** ready."), PUBLIC, "README.md says"),
    "a claim in full-width letters": (
        "healthy",
        readme(f"It is {wide('production ready')}."),
        PUBLIC,
        "README.md says",
    ),
    "a claim with unseen characters": ("healthy", readme("It is pro\u200bduction ready."), PUBLIC, "README.md says"),
    "a claim in Japanese": ("healthy", readme("本番環境で利用可能です。"), PUBLIC, "README.md says"),
    "a speed in Japanese": ("healthy", readme("毎秒1万トークンを処理します。"), SPEED, "README.md says"),
    "a claim in the gates": (
        "healthy",
        said("release_gates.md", "# Release gates\n", "# Release gates\n\nIt serves 5,000 users.\n"),
        SPEED,
        "release_gates.md says",
    ),
    "a claim in the open route": (
        "healthy",
        said("open_weight_route.json", "prove the pipeline", "a production ready API"),
        PUBLIC,
        "open_weight_route.json says",
    ),
    "a size that the model has not": (
        "healthy",
        said("model_decision.md", "Size: 4.46 M", "Size: 7 B"),
        "model_decision.md",
        "says 7 B parameters, the landscape",
    ),
    "a licence that the model has not": (
        "healthy",
        said("model_decision.md", "Licence: Apache-2.0", "Licence: MIT, any use is permitted"),
        "model_decision.md",
        "mini-instruct stands under Apache License 2.0",
    ),
    "an adapter of two bases": (
        "adapted",
        keys("adapter/adapter_config.json", base_model_name_or_path="meta-llama/Llama-3-8B"),
        "adapter/",
        "adapter_config.json says meta-llama/Llama-3-8B",
    ),
    "an adapter of somebody else's base of that name": (
        "adapted",
        lambda folder: (
            keys("adapter/card.json", base_model="meta-llama/Llama-3-8B")(folder),
            keys("adapter/adapter_config.json", base_model_name_or_path="somebody/Llama-3-8B")(folder),
        ),
        "adapter/",
        "adapter_config.json says somebody/Llama-3-8B",
    ),
    "an adapter of another size": (
        "adapted",
        keys(f"adapter/{CARD}", trainable_parameters=10**9),
        "adapter/",
        "holds 128",
    ),
    "passes of an export that its answers lack": (
        "edge",
        export_check(passed=10),
        "edge_report.json",
        "onnx int4: passed",
    ),
    "cases that no export was asked": ("edge", export_check(cases=1000), "edge_report.json", "onnx int4: cases"),
    "an export of another size": (
        "edge",
        export(files={"model.onnx": {"bytes": 6, "sha256": 64 * "0"}}),
        "edge_report.json",
        "less than a bit",
    ),
    "the card of another export": ("edge", export(files=EXPORTED), "edge_report.json", "none of the card's files"),
    "an export of another source": (
        "edge",
        export(source={"name": "big", "revision": "another", "files": {}}),
        "edge_report.json",
        "the card of onnx int4 says another",
    ),
    "answers of another engine": (
        "edge",
        lambda folder: (
            rows("edge/onnx-int4/eval_results.csv", backend="transformers")(folder),
            record(folder, "edge_report.json"),
        ),
        "edge_report.json",
        "was answered by transformers",
    ),
    "a checklist against its latencies": ("edge", slow_prompt, "quality_checklist.json", "latency over length"),
    "a guard of another price": (
        "guarded",
        keys("guard_proof.json", hourly_usd=0.0, cost_usd=0.0),
        "cost within the plan",
        "guard_proof.json says $0.00",
    ),
    "a guard that ended after it was written": (
        "guarded",
        keys("guard_proof.json", started="2199-01-01T00:00:00+00:00", stopped="2199-01-01T00:30:00+00:00"),
        "times in order",
        "guard_proof.json tells of a start",
    ),
}
SAYS_NOTHING = {
    "a file of the future",  # one of the two clocks is wrong, and it may be ours
    "a benchmark of a smaller model",
    "features of another model",
    "a guard of another price",
    "a gate without evidence",
    "a case edited after its answer",
    "a check that does not exist",
    "full-width digits",
    "digits with a separator",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_told_by_its_rule(root, tmp_path, lie):
    base, tell, rule, detail = LIES[lie]
    folder = Path(shutil.copytree(base_folder(root, base), tmp_path / base))
    tell(folder)
    finding = next(found for found in verify(folder).findings if found.name == rule)
    wanted = Verdict.NOT_YET if lie in SAYS_NOTHING else Verdict.CONTRADICTED
    assert (finding.verdict, detail in finding.detail) == (wanted, True), finding


def honest_sentences() -> list[str]:
    return [
        "本番環境では利用できません。",  # it cannot be used in production
        "GPUでの学習は未確認です。",  # training on a GPU is not confirmed
        "公開する場合は認証が必要です。",  # whoever opens it needs keys
        "It is **not** production\nready.",
    ]


@pytest.mark.parametrize("sentence", honest_sentences())
def test_an_honest_sentence_claims_nothing(root, tmp_path, sentence):
    folder = Path(shutil.copytree(base_folder(root, "healthy"), tmp_path / "healthy"))
    readme(sentence)(folder)
    assert not [found.name for found in verify(folder).findings if found.verdict is Verdict.CONTRADICTED]


def test_what_a_model_said_claims_nothing(root, tmp_path):
    folder = Path(shutil.copytree(base_folder(root, "healthy"), tmp_path / "healthy"))
    change(folder, ("first_run.md", "Output: Good morning.", "Output: Our shop\n\nis production ready and always on."))
    assert not [found.name for found in verify(folder).findings if found.verdict is Verdict.CONTRADICTED]


def test_a_cell_made_safe_for_a_spreadsheet_keeps_its_verdict(root, tmp_path):
    folder = Path(shutil.copytree(base_folder(root, "healthy"), tmp_path / "healthy"))
    for name, cells in (
        ("eval_cases.csv", {"check": "bullets:1"}),
        ("eval_results.csv", {"check": "bullets:1", "output": "'- one", "pass": "true"}),
    ):
        held = [row | cells if row["case_id"] == "format_000" else row for row in read_csv(folder / name)]
        (folder / name).write_text(csv_text(held, list(held[0])))
        record(folder, name)
    finding = next(found for found in verify(folder).findings if found.name == "verdicts follow from the answers")
    assert finding.verdict is Verdict.SUPPORTED, finding


def test_a_pattern_without_end_is_not_believed(root, tmp_path):
    """A pack may name a pattern that never comes back: it costs a moment, and supports nothing."""
    folder = Path(shutil.copytree(base_folder(root, "healthy"), tmp_path / "healthy"))
    for name in ("eval_cases.csv", "eval_results.csv"):
        cells = {"check": "regex:^(a|aa)+$"} | ({"output": 60 * "a" + "b"} if name == "eval_results.csv" else {})
        rows(name, **cells)(folder)
    finding = next(found for found in verify(folder).findings if found.name == "verdicts follow from the answers")
    assert finding.verdict is Verdict.NOT_YET, finding
