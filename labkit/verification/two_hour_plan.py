"""The two-hour plan of lesson 13.0: its boxes fill from a pack, never by a click."""

from collections.abc import Sequence
from dataclasses import dataclass

from labkit.verification.verdicts import Finding, Verdict


@dataclass(frozen=True)
class Box:
    """One box of the two-hour plan: filled when every one of `artifacts` is supported by the pack."""

    minutes: int
    lesson: str
    title: str
    artifacts: tuple[str, ...]


PLAN = (
    Box(
        20,
        "13.1",
        "Choose the route and record the machine",
        ("environment_report.txt", "compute_route.md", "requirements-freeze.txt"),
    ),
    Box(
        20,
        "13.2",
        "First answer, first training run",
        ("first_run.md", "openllm_gpu_training_run/", "gpu_train_log.txt"),
    ),
    Box(
        25,
        "13.2",
        "Five risks on fixed cases, and the API",
        ("api_smoke_test.json", "eval_cases.csv", "eval_results.csv", "eval_summary.json"),
    ),
    Box(
        25,
        "13.3",
        "Decide on model and runtime",
        ("model_decision.md", "model_runtime_decision.json", "open_llm_runbook.json"),
    ),
    Box(25, "13.4", "Write down the contract and measure the service", ("service_contract.json",)),
    Box(
        30,
        "13.4",
        "Break it, mend it, stop it, judge it, hand it over",
        ("failure_drill.json", "shutdown_proof.json", "release_gates.md", "README.md"),
    ),
    Box(30, "13.5", "Place the choice among the open-weight families", ("open_weight_route.json",)),
    Box(
        30,
        "13.6",
        "Pull one lever at a time, and decide on fine-tuning",
        ("lever_table.csv", "adapter/", "before_after.csv", "lora_decision.md"),
    ),
    Box(
        20,
        "13.7",
        "Convert the model for a small machine, and check the conversion",
        ("edge_report.json", "inference_model.json", "quality_checklist.json"),
    ),
)


@dataclass(frozen=True)
class QualityGate:
    """One of the rules that decide whether a pack is finished; `rests_on` names artifacts and cross-checks."""

    title: str
    passes_when: str
    rests_on: tuple[str, ...]


GATES = (
    QualityGate("one route", "every file of the pack was made on the same route", ("one route throughout",)),
    QualityGate("named machine", "the device stands in the report with its reason", ("environment_report.txt",)),
    QualityGate(
        "honest training",
        "a run is called a smoke test unless every row says cuda",
        ("openllm_gpu_training_run/", "gpu_train_log.txt", "training device agrees"),
    ),
    QualityGate("five risks", "each risk has cases, and failures are listed by risk", ("eval_summary.json",)),
    QualityGate("live service", "the smoke test came from a running server", ("api_smoke_test.json",)),
    QualityGate("failure tried", "a failure was really provoked and recovered", ("failure_drill.json",)),
    QualityGate("proof of stop", "the process is gone and the port is closed", ("shutdown_proof.json",)),
)


@dataclass(frozen=True)
class BoxState:
    """One box against one pack: filled, or the artifacts that are still open."""

    box: Box
    filled: bool
    still_open: tuple[str, ...]


def box_states(findings: Sequence[Finding]) -> tuple[BoxState, ...]:
    """The plan's boxes against the artifact findings of a verification."""
    supported = {finding.name for finding in findings if finding.verdict is Verdict.SUPPORTED}
    states = []
    for box in PLAN:
        still_open = tuple(name for name in box.artifacts if name not in supported)
        states.append(BoxState(box, not still_open, still_open))
    return tuple(states)


def passed_gates(findings: Sequence[Finding]) -> tuple[bool, ...]:
    """Whether each of GATES is passed: all that it rests on is supported."""
    supported = {finding.name for finding in findings if finding.verdict is Verdict.SUPPORTED}
    return tuple(supported.issuperset(gate.rests_on) for gate in GATES)
