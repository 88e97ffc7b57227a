"""The lessons in reading order, and the two-hour plan whose boxes fill from a pack."""

from collections.abc import Sequence
from dataclasses import dataclass

from labkit.errors import LabError
from labkit.routes import Route
from labkit.verification import Finding, Verdict


@dataclass(frozen=True)
class Lesson:
    """One notebook. `file` is its name in notebooks/; minutes differ by route and stand in the route file."""

    number: str
    file: str
    title: str

    def minutes(self, route: Route) -> int:
        return route.minutes[self.number]


LESSONS = (
    Lesson("13.0", "13_0_checklist.ipynb", "Plan and checklist"),
    Lesson("13.1", "13_1_compute_route.ipynb", "Compute route"),
    Lesson("13.2", "13_2_run_train_serve.ipynb", "Run, train, serve"),
    Lesson("13.3", "13_3_model_runtime.ipynb", "Model and runtime"),
    Lesson("13.4", "13_4_release_runbook.ipynb", "Release runbook"),
    Lesson("13.5", "13_5_model_landscape.ipynb", "Model landscape"),
    Lesson("13.6", "13_6_adaptation.ipynb", "Adaptation"),
    Lesson("13.7", "13_7_edge_deployment.ipynb", "Edge deployment"),
)


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


def lesson(number: str) -> Lesson:
    """The lesson called `number`, such as "13.2". Raises LabError for any other text."""
    for candidate in LESSONS:
        if candidate.number == number:
            return candidate
    raise LabError(f"there is no lesson {number!r}", f"choose one of {', '.join(entry.number for entry in LESSONS)}")


def run_order(number: str | None = None) -> tuple[Lesson, ...]:
    """One lesson, or all of them with 13.0 last: its boxes fill from what the other lessons left in the pack."""
    return (lesson(number),) if number else (*LESSONS[1:], LESSONS[0])


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
