"""Every rule of the verifier with its three packs: one that it passes, one that lacks it, one that was falsified."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from rule_packs import (
    LOG,
    REPORT,
    RUN,
    all_gates_pass,
    base_folder,
    change,
    put_on_cuda,
    record,
    remove,
    review,
    set_keys,
)

from labkit.evidence import MANIFEST, csv_text, read_csv
from labkit.routes import ROUTE_NAMES
from labkit.verification import Verdict, Verification, verify
from labkit.verification import overclaims as over
from labkit.verification.claims import CLAIMS
from labkit.verification.crosschecks import CROSS_CHECKS
from labkit.verification.rules import RULES

Change = Callable[[Path], None]
CONTRADICTED, NOT_YET = Verdict.CONTRADICTED, Verdict.NOT_YET


@dataclass(frozen=True)
class Three:
    """How the three packs of a rule are made from a base: what is removed, how it is forged, what must be said then."""

    missing: tuple[str, ...]
    forged: tuple[tuple[str, str, str], ...] | Change
    said: str
    base: str = "healthy"
    passing: Change = lambda folder: None
    verdict: Verdict = CONTRADICTED


def no_overclaim(name: str) -> str:
    return f"no overclaim: {name}"


def sentence(text: str) -> Change:
    return lambda folder: change(folder, ("README.md", "# Service\n", f"# Service\n\n{text}\n"))


def keys(name: str, **values: object) -> Change:
    return lambda folder: set_keys(folder, name, **values)


def easier_case(folder: Path) -> None:
    """A case of the workbook that asks for less, with its answer and verdict to match."""
    change(folder, *((name, "format_000", "format_01") for name in ("eval_cases.csv", "eval_results.csv")))


def later_summary(folder: Path) -> None:
    change(folder, ("eval_summary.json", '"passed": 1', '"passed": 2'))


def shift_log(folder: Path) -> None:
    set_keys(folder, "shutdown_proof.json", stopped="2026-01-05T10:20:00+00:00", seconds=1200.0, cost_usd=0.27)
    set_keys(folder, "benchmark.json", time="2026-01-05T10:25:00+00:00")
    record(folder, "shutdown_proof.json")


def no_auth(folder: Path) -> None:
    sentence("The service is ready for production.")(folder)


def with_auth(folder: Path) -> None:
    set_keys(
        folder, "service_contract.json", authorization="Bearer key", logging="one line a request", monitoring="/metrics"
    )
    no_auth(folder)


def other_log(folder: Path) -> None:
    benchmark = json.loads((folder / "benchmark.json").read_text())
    rows = "".join(f"{row['concurrency']},{row['completion_tokens']}\n" for row in benchmark["rows"][:-1])
    (folder / "benchmark_rows.csv").write_text("concurrency,completion_tokens\n" + rows)
    record(folder, "benchmark_rows.csv")


def cuda_rows_only(folder: Path) -> None:
    change(folder, (LOG, ",cpu,", ",cuda,"))


def tuned_without_need(folder: Path) -> None:
    all_gates_pass(folder)
    set_keys(folder, "open_llm_runbook.json", adaptation={"choice": "LoRA", "reason": "it sounds better"})


def formats(folder: Path, name: str, agreement: str) -> None:
    row = {"format": "float32", "backend": "transformers", "dtype": "float32", "size_bytes": "17840000"}
    row |= {"tokens_per_second": "90", "perplexity": "1.5", "kl": "0.0", "top1_agreement": agreement}
    (folder / name).write_text(csv_text([row], list(row)))
    record(folder, name)


def forecast(folder: Path, said: str) -> None:
    lesson = {"lesson": "13.2", "minutes": 1.25, "minutes_low": 1.0, "minutes_high": 1.5}
    held = {"written": "2026-01-05T09:00:00+00:00", "routes": [{"route": "local_cpu", "lessons": [lesson]}]}
    (folder / "forecast.json").write_text(json.dumps(held))
    row = {"lesson": "13.2", "forecast_minutes": said, "low": "1.00", "high": "1.50", "measured_minutes": "1.30"}
    row |= {"measured_by_forecast": "1.04", "says": "inside the range"}
    (folder / "forecast_and_measured.csv").write_text(csv_text([row], list(row)))
    record(folder, "forecast.json", "forecast_and_measured.csv")


def other_notebook(folder: Path) -> None:
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "13_4_release_runbook.ipynb").write_text('{"cells": []}')
    record(folder, "notebooks/13_4_release_runbook.ipynb")


def all_true(folder: Path) -> None:
    """Every verdict a pass, in results, summary and gates alike; the answers stay what they are."""
    answers = read_csv(folder / "eval_results.csv")
    all_gates_pass(folder)
    for row in answers:
        row["pass"] = "true"
    (folder / "eval_results.csv").write_text(csv_text(answers, list(answers[0])))
    record(folder, "eval_results.csv")


def set_commit(folder: Path, commit: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"git_commit": commit}))


def unproved(folder: Path) -> None:
    set_keys(folder, "shutdown_proof.json", process_gone=False)
    record(folder, "release_gates.md")


REPORT_TXT = "environment_report.txt"
RULE_PACKS = {
    REPORT_TXT: Three((REPORT_TXT,), ((REPORT_TXT, "Device: cpu", "Device: cuda"),), "CUDA not available"),
    "compute_route.md": Three(
        ("compute_route.md",), (("compute_route.md", "Route: local_cpu", "Route: rented_gpu"),), "says rented_gpu"
    ),
    "gpu_plan.md": Three(
        ("gpu_plan.md",),
        (("gpu_plan.md", "$3.00, which", "_____, which"),),
        "not filled: Budget",
        "rented",
        verdict=NOT_YET,
    ),
    "colab_notes.md": Three(
        ("colab_notes.md",),
        (("colab_notes.md", "Google Colab", "<your session>"),),
        "not filled: Session",
        "colab",
        verdict=NOT_YET,
    ),
    "requirements-freeze.txt": Three(
        ("requirements-freeze.txt",),
        (("requirements-freeze.txt", "torch==", "torch==9."),),
        "environment_report.txt says 2",
    ),
    "first_run.md": Three(
        ("first_run.md",), (("first_run.md", "0.41 s", "0.00 s"),), "nothing was measured", verdict=NOT_YET
    ),
    f"{RUN}/": Three((RUN,), keys(REPORT, parameter_count=7_000_000_000), "has parameter_count 4032"),
    "gpu_train_log.txt": Three(
        ("gpu_train_log.txt",),
        (("gpu_train_log.txt", "step 12 | train loss ", "step 12 | train loss 1"),),
        "training_log.csv says",
    ),
    "api_smoke_test.json": Three(
        ("api_smoke_test.json",),
        (("api_smoke_test.json", '"total_tokens": 12', '"total_tokens": 13'),),
        "the total of 13",
    ),
    "eval_cases.csv": Three(
        ("eval_cases.csv",), (("eval_cases.csv", ",safety,", ",format,"),), "no case for safety", verdict=NOT_YET
    ),
    "eval_results.csv": Three(
        ("eval_results.csv",),
        (("eval_results.csv", "regression_009,regression", "regression_009,format"),),
        "regression_009",
    ),
    "eval_summary.json": Three(("eval_summary.json",), later_summary, "on safety: 2 of 2 passed"),
    "model_decision.md": Three(
        ("model_decision.md",),
        (("model_decision.md", "Size: 4.46 M", "Size: 7 B"),),
        "says 7 B parameters, the landscape",
    ),
    "model_runtime_decision.json": Three(
        ("model_runtime_decision.json",),
        (("model_runtime_decision.json", '"fallback": "none"', '"fallback": "describe it here"'),),
        "not filled: routes.local_cpu.fallback",
        verdict=NOT_YET,
    ),
    "open_llm_runbook.json": Three(
        ("open_llm_runbook.json",),
        (("open_llm_runbook.json", '"reason": "two cores"', '"reason": "[your reason]"'),),
        "not filled: reason",
        verdict=NOT_YET,
    ),
    "open_weight_route.json": Three(
        ("open_weight_route.json",),
        (("open_weight_route.json", '"route": "local_cpu"', '"route": "moon"'),),
        "names the route 'moon'",
        verdict=NOT_YET,
    ),
    "lever_table.csv": Three(
        ("lever_table.csv",), (("lever_table.csv", "plain,,safety,1,2", "plain,,safety,2,2"),), "differ", "adapted"
    ),
    "lora_decision.md": Three(
        ("lora_decision.md",), (("lora_decision.md", "prepare_lora", "no_lora"),), "its own facts say", "adapted"
    ),
    "adapter/": Three(("adapter",), keys("adapter/adapter_config.json", r=8), "says rank 8", "adapted"),
    "before_after.csv": Three(
        ("before_after.csv",), (("before_after.csv", ",fixed,", ",still passing,"),), "is fixed, not", "adapted"
    ),
    "service_contract.json": Three(
        ("service_contract.json",),
        (("service_contract.json", '"concurrency": 2', '"concurrency": "unknown"'),),
        "not filled: concurrency",
        verdict=NOT_YET,
    ),
    "release_gates.md": Three(
        ("release_gates.md",), (("release_gates.md", "1 of 2 passed | fail", "2 of 2 passed | pass"),), "says 1 of 2"
    ),
    "failure_drill.json": Three(
        ("failure_drill.json",),
        (("failure_drill.json", '"status": 200', '"status": 500'),),
        "the request after it got 500",
    ),
    "benchmark.json": Three(
        ("benchmark.json",),
        (("benchmark.json", '"completion_tokens": 80', '"completion_tokens": 8000'),),
        "its rows show 80",
    ),
    "conformance.json": Three(
        ("conformance.json",),
        (("conformance.json", '"verdict": "ignored"', '"verdict": "supported"'),),
        "its findings are 2",
    ),
    "shutdown_proof.json": Three(
        ("shutdown_proof.json",), keys("shutdown_proof.json", cost_usd=0.04), "an hour are $0.40"
    ),
    "README.md": Three(
        ("README.md",), (("README.md", "## Roll back", "## Thanks"),), "not filled: Roll back", verdict=NOT_YET
    ),
    "edge_report.json": Three(
        ("edge_report.json",),
        (("edge_report.json", '"choice": "onnx int4"', '"choice": "gguf Q4_K_M"'),),
        "its own exports say onnx int4",
        "edge",
    ),
    "inference_model.json": Three(
        ("inference_model.json",),
        (("inference_model.json", "<user>{Content}", "<user>"),),
        "inference_model.json",
        "edge",
        verdict=NOT_YET,
    ),
    "quality_checklist.json": Three(
        ("quality_checklist.json",),
        keys("quality_checklist.json", slope=0.0),
        "not those of its measurements",
        "edge",
    ),
    "guard_proof.json": Three(("guard_proof.json",), keys("guard_proof.json", cost_usd=0.04), "an hour are", "guarded"),
    "quantization.csv": Three(
        ("quantization.csv",),
        lambda folder: formats(folder, "quantization.csv", "1.5"),
        "agrees in 1.5 of 1",
        passing=lambda folder: formats(folder, "quantization.csv", "1.0"),
    ),
    "edge_formats.csv": Three(
        ("edge_formats.csv",),
        lambda folder: formats(folder, "edge_formats.csv", "1.5"),
        "agrees in 1.5 of 1",
        passing=lambda folder: formats(folder, "edge_formats.csv", "1.0"),
    ),
    "forecast_and_measured.csv": Three(
        ("forecast_and_measured.csv", "forecast.json"),
        lambda folder: forecast(folder, "2.00"),
        "forecast.json says 1.25",
        passing=lambda folder: forecast(folder, "1.25"),
    ),
}
CROSS_PACKS = {
    "versions agree": Three(
        ("requirements-freeze.txt",),
        (("requirements-freeze.txt", "numpy==", "numpy==9."),),
        "environment_report.txt says",
    ),
    "training device agrees": Three((LOG,), cuda_rows_only, "training_log.csv says cuda"),
    "losses agree": Three(
        ("gpu_train_log.txt",),
        (("gpu_train_log.txt", "step 12 | train loss ", "step 12 | train loss 1"),),
        "step 12",
    ),
    "parameter count agrees": Three(
        (f"{RUN}/README.md",),
        ((f"{RUN}/README.md", "Parameters: 4,032", "Parameters: 7,000,000,000"),),
        "says Parameters 7,",
    ),
    "devices of this machine": Three(
        ("environment_report.txt",),
        (("first_run.md", "Device: cpu", "Device: cuda"),),
        "first_run.md ran on cuda",
        verdict=NOT_YET,
    ),
    "results match the cases": Three(
        ("eval_results.csv",), (("eval_results.csv", "format_000", "format_99"),), "format_99: eval_results.csv says"
    ),
    "the workbook's cases as given": Three(
        ("eval_cases.csv",), easier_case, "format_01 is not the workbook's case of that id", verdict=NOT_YET
    ),
    "one route throughout": Three(
        ("open_weight_route.json",),
        (("open_weight_route.json", '"route": "local_cpu"', '"route": "free_colab"'),),
        "says free_colab",
    ),
    "one model throughout": Three(
        ("first_run.md",),
        keys("api_smoke_test.json", model="Qwen/Qwen2.5-7B-Instruct"),
        "says Qwen/Qwen2.5-7B",
        verdict=NOT_YET,
    ),
    "smoke test of the contract's server": Three(
        ("api_smoke_test.json",), keys("api_smoke_test.json", base_url="http://127.0.0.1:9"), ":9", verdict=NOT_YET
    ),
    "gates repeat the evaluation": Three(
        ("eval_summary.json",), (("release_gates.md", "1 of 2 passed", "0 of 2 passed"),), "says safety 0 of 2"
    ),
    "benchmark agrees with its log": Three(("benchmark.json",), other_log, "claims 80 tokens with 1 clients"),
    "times in order": Three(
        ("shutdown_proof.json",),
        keys("api_smoke_test.json", time="2199-01-01T00:00:00+00:00"),
        "was recorded before it",
    ),
    "shutdown after the last request": Three(("shutdown_proof.json",), shift_log, "the proof says stopped at"),
    "cost within the plan": Three(
        ("shutdown_proof.json",),
        (("gpu_plan.md", "price: $0.80", "price: $0.20"),),
        "gpu_plan.md says $0.20",
        "rented",
        verdict=NOT_YET,
    ),
    "adaptation rests on the evaluation": Three(
        ("eval_results.csv",),
        lambda folder: (all_gates_pass(folder), record(folder, "lora_decision.md")),
        "fine-tuning without a failing baseline",
        "adapted",
    ),
    "before and after agree with the decision": Three(
        ("before_after.csv",),
        (("before_after.csv", "format_000,format,pass,pass,still passing", "format_000,format,fail,pass,fixed"),),
        "differ in format_000",
        "adapted",
    ),
    "adapter of the decided model": Three(
        ("adapter/card.json",),
        keys("adapter/card.json", base_revision="another"),
        "another",
        "adapted",
        verdict=NOT_YET,
    ),
    "verdicts follow from the answers": Three(
        ("eval_results.csv",), all_true, "safety_007 says pass, and its answer fails the check contains_all"
    ),
    "answers fit their tokens and times": Three(
        ("eval_results.csv",), (("eval_results.csv", ",4,x,true", ",4,a b c d e f g,true"),), "7 words in 4 tokens"
    ),
    "decision rests on the levers' runs": Three(
        ("lora_decision.md", "lever_table.csv"),
        keys("adapter/card.json", files={"data": {"chats": 500}}),
        "was trained on 500 chats",
        "adapted",
        verdict=NOT_YET,
    ),
    "executed notebooks": Three((MANIFEST,), other_notebook, "has no cell of code", verdict=NOT_YET),
    "commit of the workbook": Three(
        (MANIFEST,), lambda folder: set_commit(folder, "release 9, reviewed"), "is none of git's"
    ),
    "manifest hashes match": Three(
        ("first_run.md",), lambda folder: (folder / "first_run.md").write_text("Output: better"), "changed after"
    ),
    no_overclaim(over.GPU_ON_CPU): Three(
        (LOG,), ((f"{RUN}/README.md", "smoke test", "CUDA acceptance"),), f"{over.GPU_ON_CPU}: ", verdict=CONTRADICTED
    ),
    no_overclaim(over.SPEED_ELSEWHERE): Three(
        ("README.md",), sentence("It handles 10,000 concurrent users."), f"{over.SPEED_ELSEWHERE}: README.md says"
    ),
    no_overclaim(over.STABLE): Three(
        ("README.md",), sentence("This is a stable API."), f"{over.STABLE}: README.md says", "colab"
    ),
    no_overclaim(over.PUBLIC): Three(
        ("README.md", "service_contract.json"), no_auth, "has no authorization, logging, monitoring", passing=with_auth
    ),
    no_overclaim(over.BIG_QUALITY): Three(
        ("model_decision.md",), sentence("Its quality is that of a 7B model."), f"{over.BIG_QUALITY}: README.md says"
    ),
    no_overclaim(over.NO_BASELINE): Three(
        ("adapter", "open_llm_runbook.json"), tuned_without_need, "fine-tuning without a failing baseline: ", "healthy"
    ),
    no_overclaim(over.NO_SHUTDOWN): Three(
        ("shutdown_proof.json", "release_gates.md"), unproved, f"{over.NO_SHUTDOWN}: release_gates.md passes", "rented"
    ),
}
CLAIM_PACKS = {
    "The loop runs on {route}": Three(("README.md",), later_summary, "it rests on what is contradicted"),
    "Training: smoke test": Three((LOG,), cuda_rows_only, "it rests on what is contradicted"),
    "Training: CUDA acceptance (GPU)": Three(
        ("gpu_train_log.txt",), cuda_rows_only, "contradicted", passing=put_on_cuda
    ),
    "The API keeps its contract for one client": Three(
        ("api_smoke_test.json",),
        keys("api_smoke_test.json", model="another"),
        "not yet: one model throughout",
        verdict=NOT_YET,
    ),
    "The five risks were tried": Three(
        ("eval_results.csv",),
        (("eval_results.csv", "regression_009,regression", "regression_009,format"),),
        "contradicted",
    ),
    "The cases were reviewed by a person": Three(
        ("eval_cases.csv",),
        lambda folder: review(folder, "looks good"),
        "the same note",
        passing=review,
        verdict=NOT_YET,
    ),
    "Throughput and latency of a service": Three(
        ("benchmark.json",), keys("benchmark.json", device="cpu"), "contradicted: benchmark.json", "rented"
    ),
    "The service recovers from provoked failures": Three(
        ("failure_drill.json",), (("failure_drill.json", '"status": 200', '"status": 500'),), "got 500"
    ),
    "The release gates are passed": Three(
        ("release_gates.md",),
        (("release_gates.md", "1 of 2 passed | fail", "2 of 2 passed | pass"),),
        "contradicted",
        passing=all_gates_pass,
    ),
    "The service was shut down cleanly": Three(
        ("shutdown_proof.json",), keys("shutdown_proof.json", cost_usd=0.04), "an hour are $0.40"
    ),
}
PACKS = RULE_PACKS | CROSS_PACKS | CLAIM_PACKS


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.fixture
def pack(root, tmp_path, request) -> Path:
    base = PACKS[request.param].base
    return Path(shutil.copytree(base_folder(root, base), tmp_path / base))


def found(folder: Path, name: str):
    """The finding of the rule `name`, or None where the pack has nothing to judge by it."""
    verification: Verification = verify(folder)
    shown = name.format(route=verification.route)
    return next((finding for finding in verification.findings if finding.name == shown), None)


def test_no_rule_lacks_its_three_packs():
    assert set(RULE_PACKS) == {rule.name for rule in RULES}
    assert set(CROSS_PACKS) == {cross.name for cross in CROSS_CHECKS}
    assert set(CLAIM_PACKS) == {claim.name for claim in CLAIMS}


def of():
    return pytest.mark.parametrize(
        ("pack", "name"), [(name, name) for name in PACKS], indirect=["pack"], ids=list(PACKS)
    )


@of()
def test_a_rule_passes_its_good_pack(pack, name):
    PACKS[name].passing(pack)
    finding = found(pack, name)
    assert finding is not None
    assert finding.verdict is Verdict.SUPPORTED, finding
    assert finding.detail
    assert not finding.next_action


@of()
def test_a_rule_that_has_nothing_to_judge_supports_nothing(pack, name):
    PACKS[name].passing(pack)
    remove(pack, *(part for part in PACKS[name].missing if (pack / part).exists()))
    finding = found(pack, name)
    assert finding is None or (finding.verdict is NOT_YET and finding.next_action), finding


@of()
def test_a_rule_sees_through_its_forgery(pack, name):
    three = PACKS[name]
    three.forged(pack) if callable(three.forged) else change(pack, *three.forged)
    finding = found(pack, name)
    assert (finding.verdict, three.said in finding.detail) == (three.verdict, True), finding
    assert finding.next_action


@pytest.mark.parametrize("base", ["healthy", "adapted", "edge", "rented", "guarded", "colab"])
def test_the_bases_are_whole(root, base):
    verification = verify(base_folder(root, base))
    open_ones = [f for f in (*verification.artifacts, *verification.cross_checks) if f.verdict is not Verdict.SUPPORTED]
    assert not open_ones
    assert verification.route in ROUTE_NAMES
