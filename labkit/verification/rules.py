"""The table of artifacts: which lesson leaves each one, what makes it true, and what to do when it is not.

Which of them a pack must have stands in the route's YAML (`required_artifacts`). Adding a rule is adding a row here, a
function that checks the content, and three packs in the tests: a good one, one without it, and a falsified one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from labkit.verification import adaptation_checks as adaptation
from labkit.verification import decision_checks as decision
from labkit.verification import edge_checks as edge
from labkit.verification import forecast_checks as forecast
from labkit.verification import format_checks as formats
from labkit.verification import gate_checks as gates
from labkit.verification import plan_checks as plan
from labkit.verification import release_checks as release
from labkit.verification import service_checks as service
from labkit.verification import training_checks as training
from labkit.verification.reading import PackReader


@dataclass(frozen=True)
class Rule:
    """One artifact. `files` are the files it consists of, when it is a folder."""

    name: str
    lessons: tuple[str, ...]
    check: Callable[[PackReader], str]
    next_action: str
    files: tuple[str, ...] = ()

    @property
    def recorded_files(self) -> tuple[str, ...]:
        return self.files or (self.name,)


def _run(lesson: str) -> str:
    return f"run `labkit run --lesson {lesson}`"


def _fill(lesson: str, name: str) -> str:
    return f"fill every field of {name}, then `labkit record {name}`; where it is missing, {_run(lesson)}"


GPU_PLAN, COLAB_NOTES = "gpu_plan.md", "colab_notes.md"
_RUN_AND_SERVE = ("13.2", "13.4")
_RUN_LEVERS = _run("13.6").removeprefix("run ")
_EVALUATE = "run `labkit eval`, or " + _run("13.2").removeprefix("run ")

RULES = (
    Rule(plan.ENVIRONMENT, ("13.1",), plan.check_environment, _run("13.1")),
    Rule(plan.ROUTE_PLAN, ("13.1",), plan.check_route_plan, _run("13.1")),
    Rule(GPU_PLAN, ("13.1",), partial(plan.check_notes, name=GPU_PLAN), _fill("13.1", GPU_PLAN)),
    Rule(COLAB_NOTES, ("13.1",), partial(plan.check_notes, name=COLAB_NOTES), _fill("13.1", COLAB_NOTES)),
    Rule(plan.FREEZE, ("13.1",), plan.check_freeze, _run("13.1")),
    Rule(service.FIRST_RUN, ("13.2",), service.check_first_run, _run("13.2")),
    Rule(training.RUN, ("13.2",), training.check_training_run, _run("13.2"), training.RUN_FILES),
    Rule(training.TRACE, ("13.2",), training.check_trace, _run("13.2")),
    Rule(service.SMOKE, _RUN_AND_SERVE, service.check_smoke, "start `labkit serve`, then run `labkit smoke`"),
    Rule(service.CASES, _RUN_AND_SERVE, service.check_cases, _EVALUATE),
    Rule(service.RESULTS, _RUN_AND_SERVE, service.check_results, _EVALUATE),
    Rule(service.SUMMARY, _RUN_AND_SERVE, service.check_summary, _EVALUATE),
    Rule(decision.MODEL_DECISION, ("13.3",), decision.check_model_decision, _run("13.3")),
    Rule(decision.RUNTIME_DECISION, ("13.3",), decision.check_runtime_decision, _run("13.3")),
    Rule(decision.RUNBOOK, ("13.3",), decision.check_runbook, _run("13.3")),
    Rule(decision.OPEN_ROUTE, ("13.5",), decision.check_open_route, _run("13.5")),
    Rule(adaptation.LEVER_TABLE, ("13.6",), adaptation.check_lever_table, "run `labkit levers`, or " + _RUN_LEVERS),
    Rule(adaptation.DECISION, ("13.6",), adaptation.check_decision, "run `labkit adapt-decision`, or " + _RUN_LEVERS),
    Rule(
        adaptation.ADAPTER,
        ("13.6",),
        adaptation.check_adapter,
        "run `labkit lora` with the pack's adapter folder as --out, or " + _RUN_LEVERS,
        adaptation.ADAPTER_FILES,
    ),
    Rule(adaptation.BEFORE_AFTER, ("13.6",), adaptation.check_before_after, adaptation.AFTER_NEXT),
    Rule(
        formats.QUANTIZED,
        ("13.6",),
        partial(formats.check_formats, name=formats.QUANTIZED),
        "run `labkit quantize`, or " + _RUN_LEVERS,
    ),
    Rule(edge.REPORT, ("13.7",), edge.check_report, _run("13.7")),
    Rule(formats.EDGE_FORMATS, ("13.7",), partial(formats.check_formats, name=formats.EDGE_FORMATS), _run("13.7")),
    Rule(edge.INFERENCE_MODEL, ("13.7",), edge.check_inference, _run("13.7")),
    Rule(
        edge.CHECKLIST,
        ("13.7",),
        edge.check_checklist,
        "run `labkit edge-check` with this file as --out, or " + _run("13.7").removeprefix("run "),
    ),
    Rule(release.CONTRACT, ("13.4",), release.check_contract, _run("13.4")),
    Rule(release.GATES, ("13.4",), release.check_gates, _run("13.4")),
    Rule(release.DRILL, ("13.4",), release.check_drill, _run("13.4")),
    Rule(release.BENCHMARK, ("13.4",), release.check_benchmark, _run("13.4")),
    Rule(release.CONFORMANCE, ("13.4",), release.check_conformance, "run `labkit conform` while the server is up"),
    Rule(
        release.SHUTDOWN,
        ("13.4",),
        release.check_shutdown,
        "run `labkit stop` while the server is up, or the guarded command under `labkit guard` again",
    ),
    Rule(
        release.GUARD, ("13.4",), partial(release.check_shutdown, name=release.GUARD), "run under `labkit guard` again"
    ),
    Rule(forecast.COMPARED, ("13.1",), forecast.check_compared, _run("13.0")),
    Rule(release.README, ("13.4",), gates.check_readme, _run("13.4")),
)
