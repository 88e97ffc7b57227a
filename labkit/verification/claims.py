"""What a pack supports in words. A claim rests on artifacts and cross-checks, and never says more than they do.

"not yet" is an honest answer here: a claim that nobody has made costs nothing, so it never changes the exit code.
"""

from collections.abc import Callable
from dataclasses import dataclass

from labkit.evidence import finite
from labkit.routes import ACCEPTANCE_STEPS
from labkit.verification import decision_checks as decision
from labkit.verification import release_checks as release
from labkit.verification import service_checks as service
from labkit.verification import training_checks as training
from labkit.verification.reading import PackReader, is_filled
from labkit.verification.verdicts import NotYet

EVERYTHING = "*"  # stands for every artifact that the route requires


@dataclass(frozen=True)
class ClaimRule:
    """One sentence about the pack. `rests_on` names artifacts and cross-checks that must be supported first."""

    name: str
    lessons: tuple[str, ...]
    rests_on: tuple[str, ...]
    condition: Callable[[PackReader], str]
    next_action: str


def loop_runs(pack: PackReader) -> str:
    return f"from environment to shutdown on {pack.route}, every required artifact in place"


def trained(pack: PackReader) -> str:
    rows = training.log_rows(pack)
    fall = f"{float(rows[0]['val_loss']):.2f} to {float(rows[-1]['val_loss']):.2f}"
    return f"the loop learns: held-out loss {fall} on {rows[0]['device']}; nothing is said about speed or quality"


def cuda_accepted(pack: PackReader) -> str:
    """Cuda in every place (environment, log rows and trace agree by now), and a run long and well described enough."""
    device = training.log_devices(pack)
    if device != "cuda":
        raise NotYet(f"the run was made on {device}, so it is a smoke test and no CUDA acceptance")
    report, rows = training.run_report(pack), training.log_rows(pack)
    if report["steps"] < ACCEPTANCE_STEPS:
        raise NotYet(f"{report['steps']} steps on cuda; an acceptance needs {ACCEPTANCE_STEPS}")
    for key in ("gpu", "driver"):
        if str(report.get(key, "none")) in ("", "none"):
            raise NotYet(f"the run's environment names no {key}")
    if not (finite(report.get("peak_gpu_memory_mib")) or 0) > 0:
        raise NotYet("the run recorded no peak of GPU memory")
    if any(float(row["tokens_per_second"]) <= 0 for row in rows[1:]):
        raise NotYet("a row of the log has no tokens per second")
    speed = f"{float(rows[-1]['tokens_per_second']):,.0f} tokens/s"
    return f"environment, log rows and trace all say cuda: {report['steps']} steps on {report['gpu']}, {speed}"


def one_client(pack: PackReader) -> str:
    return f"{pack.json(service.SMOKE)['client']} got an answer in the contract's shape; load was not tested"


def five_risks(pack: PackReader) -> str:
    counts = service.count_by_risk(service.result_rows(pack))
    return "; ".join(f"{risk} {counts[risk]['passed']} of {counts[risk]['total']}" for risk in service.RISKS)


def reviewed(pack: PackReader) -> str:
    """How many cases a person has judged, in the columns that are the learner's own."""
    rows = service.case_rows(pack)
    filled = sum(row["pass"].strip().lower() in ("true", "false") and _own_note(row) for row in rows)
    if filled < len(rows):
        raise NotYet(f"{filled} of {len(rows)} cases have the learner's own pass and notes")
    if len({row["notes"].strip() for row in rows}) == 1:
        raise NotYet(f"every case has the same note: {rows[0]['notes'].strip()[:40]!r}")
    return f"{filled} of {len(rows)} cases judged by the learner"


def _own_note(row: dict[str, str]) -> bool:
    """Whether the note says something that is not copied from the case."""
    note = row["notes"].strip()
    return is_filled(note) and note not in (row["expected_behavior"].strip(), row["prompt"].strip())


def fast(pack: PackReader) -> str:
    if pack.route != "rented_gpu":
        raise NotYet(f"cannot be claimed from {pack.route}; what was measured here is a local number")
    for name in (service.SUMMARY, release.BENCHMARK):
        if (device := pack.json(name).get("device")) != "cuda":
            raise NotYet(f"{name} says that the model ran on {device}")
    return release.check_benchmark(pack)


def shut_down(pack: PackReader) -> str:
    return release.check_shutdown(pack)


def recovered(pack: PackReader) -> str:
    return release.check_drill(pack)


def gates_passed(pack: PackReader) -> str:
    rows = release.gate_rows(pack)
    if failed := [row["gate"] for row in rows if row["status"] == "fail"]:
        raise NotYet(f"{len(failed)} of {len(rows)} gates fail: {', '.join(failed)}")
    open_ones = [row["gate"] for row in rows if row["status"] == "not claimed"]
    return f"no gate fails; not claimed: {', '.join(open_ones) or 'none'}"


_TRAINING = (training.RUN, training.TRACE, "training device agrees", "losses agree")
_VERDICTS = "verdicts follow from the answers"
_EVALUATION = (service.CASES, service.RESULTS, service.SUMMARY, "results match the cases", _VERDICTS)
# What release_gates.md names as the evidence of a gate; benchmark.json has a gate that may stay unclaimed.
_GATED = (*_EVALUATION, service.SMOKE, release.CONTRACT, decision.MODEL_DECISION, release.DRILL, release.SHUTDOWN)

CLAIMS = (
    ClaimRule("The loop runs on {route}", ("13.4",), (EVERYTHING,), loop_runs, "finish the artifacts above"),
    ClaimRule("Training: smoke test", ("13.2",), _TRAINING, trained, "run `labkit run --lesson 13.2`"),
    ClaimRule(
        "Training: CUDA acceptance (GPU)",
        ("13.2",),
        _TRAINING,
        cuda_accepted,
        "run lesson 13.2 on a machine with an NVIDIA GPU (route rented_gpu)",
    ),
    ClaimRule(
        "The API keeps its contract for one client",
        ("13.4",),
        (service.SMOKE, release.CONTRACT, "one model throughout", "smoke test of the contract's server"),
        one_client,
        "run `labkit smoke` against the server that the contract describes",
    ),
    ClaimRule("The five risks were tried", ("13.2", "13.4"), _EVALUATION, five_risks, "run `labkit eval`"),
    ClaimRule(
        "The cases were reviewed by a person",
        ("13.2", "13.4"),
        (service.CASES,),
        reviewed,
        f"read the outputs and fill pass and notes in {service.CASES}",
    ),
    ClaimRule(
        "Throughput and latency of a service",
        ("13.4",),
        (release.BENCHMARK, service.SUMMARY),
        fast,
        "run `labkit bench` on the route rented_gpu",
    ),
    ClaimRule(
        "The service recovers from provoked failures", ("13.4",), (release.DRILL,), recovered, "run the drill in 13.4"
    ),
    ClaimRule(
        "The release gates are passed",
        ("13.4",),
        (release.GATES, "gates repeat the evaluation", "one model throughout", *_GATED),
        gates_passed,
        f"read the failing gates in {release.GATES}; lesson 13.6 moves them, one lever at a time",
    ),
    ClaimRule("The service was shut down cleanly", ("13.4",), (release.SHUTDOWN,), shut_down, "run `labkit stop`"),
)
