"""The table of cross-checks: facts that stand in several files must be the same fact, and overclaims have names."""

from collections.abc import Callable
from dataclasses import dataclass

from labkit.routes import ROUTE_NAMES
from labkit.verification import adaptation_checks as adaptation
from labkit.verification import answer_checks as answers
from labkit.verification import consistency_checks as consistency
from labkit.verification import decision_checks as decision
from labkit.verification import gate_checks as gates
from labkit.verification import lever_checks as levers
from labkit.verification import load_checks as load
from labkit.verification import notebook_checks as notebooks
from labkit.verification import overclaims
from labkit.verification import plan_checks as plan
from labkit.verification import release_checks as release
from labkit.verification import row_checks as rows
from labkit.verification import service_checks as service
from labkit.verification import timing_checks as timing
from labkit.verification import training_checks as training
from labkit.verification.reading import PackReader


@dataclass(frozen=True)
class CrossCheck:
    """One fact held equal across files. `artifacts` are the rules that a contradiction also condemns; an `optional`
    check is made only of a pack that has one of them, and one with `routes` only on those."""

    name: str
    lesson: str
    artifacts: tuple[str, ...]
    check: Callable[[PackReader], str]
    next_action: str
    optional: bool = False
    routes: tuple[str, ...] = ROUTE_NAMES


_RUN = training.RUN
_TRAIN_AGAIN = "run `labkit run --lesson 13.2` so that one run writes all of its files"
_ALL_AGAIN = "run `labkit run` so that one route and one model write the whole pack"

_SENTENCE = "take the sentence out, or run what proves it on the route that can"

OVERCLAIMS = tuple(
    CrossCheck(f"no overclaim: {name}", lesson, artifacts, check, action, optional=True, routes=routes)
    for name, lesson, artifacts, check, action, routes in (
        (overclaims.GPU_ON_CPU, "13.2", (_RUN,), overclaims.check_gpu_training, _SENTENCE, ROUTE_NAMES),
        (
            overclaims.SPEED_ELSEWHERE,
            "13.4",
            (release.README,),
            overclaims.check_speed,
            _SENTENCE,
            ("local_cpu", "free_colab"),
        ),
        (overclaims.STABLE, "13.4", (release.README,), overclaims.check_stable, _SENTENCE, ("free_colab",)),
        (
            overclaims.PUBLIC,
            "13.4",
            (release.README, release.CONTRACT),
            overclaims.check_public,
            "take the sentence out, or add authorization, logging and monitoring to the contract",
            ROUTE_NAMES,
        ),
        (
            overclaims.BIG_QUALITY,
            "13.3",
            (decision.MODEL_DECISION,),
            overclaims.check_quality,
            "say the size of the model that was evaluated, and only what its own cases show",
            ROUTE_NAMES,
        ),
        (
            overclaims.NO_BASELINE,
            "13.3",
            (decision.RUNBOOK, adaptation.ADAPTER),
            overclaims.check_fine_tuning,
            "run `labkit eval` without the adapter, then `labkit adapt-decision`",
            ROUTE_NAMES,
        ),
        (
            overclaims.NO_SHUTDOWN,
            "13.4",
            (release.SHUTDOWN, release.GATES),
            overclaims.check_rented,
            "run `labkit stop` while the server is up, before the machine is given back",
            ("rented_gpu",),
        ),
    )
)

CROSS_CHECKS = (
    CrossCheck(
        "versions agree",
        "13.1",
        (plan.FREEZE,),
        consistency.check_versions,
        "run `labkit run --lesson 13.1`, then 13.2",
    ),
    CrossCheck(
        "training device agrees",
        "13.2",
        (_RUN, training.TRACE),
        consistency.check_training_device,
        "run `labkit run --lesson 13.1`, then 13.2, on one machine",
    ),
    CrossCheck("losses agree", "13.2", (_RUN, training.TRACE), consistency.check_losses, _TRAIN_AGAIN),
    CrossCheck(
        "results match the cases",
        "13.2",
        (service.RESULTS,),
        consistency.check_case_results,
        "run `labkit eval --cases` with the pack's eval_cases.csv",
    ),
    CrossCheck(
        "the workbook's cases as given",
        "13.2",
        (service.CASES,),
        consistency.check_given_cases,
        "run `labkit eval` again with the cases of this workbook; give cases of your own ids of their own",
    ),
    CrossCheck(
        "verdicts follow from the answers",
        "13.2",
        (service.RESULTS,),
        answers.check_verdicts,
        "run `labkit eval` again, and leave its pass column alone: your own judgement stands in eval_cases.csv",
    ),
    CrossCheck(
        "answers fit their tokens and times",
        "13.2",
        (service.RESULTS,),
        rows.check_rows,
        "run `labkit eval` again, and leave its answers and their columns alone",
    ),
    CrossCheck("one route throughout", "13.4", (plan.ROUTE_PLAN,), consistency.check_route, _ALL_AGAIN),
    CrossCheck("one model throughout", "13.4", (decision.MODEL_DECISION,), consistency.check_model, _ALL_AGAIN),
    CrossCheck(
        "smoke test of the contract's server",
        "13.4",
        (service.SMOKE, release.CONTRACT),
        load.check_smoke_server,
        "run `labkit run --lesson 13.4`, or `labkit smoke` against that server",
    ),
    CrossCheck(
        "gates repeat the evaluation",
        "13.4",
        (release.GATES,),
        gates.check_gates,
        "run `labkit run --lesson 13.4`, or `labkit release` again while the server is up",
    ),
    CrossCheck(
        "adaptation rests on the evaluation",
        "13.6",
        (adaptation.DECISION,),
        adaptation.check_baseline,
        "run `labkit adapt-decision` again with the pack's own evaluation",
        optional=True,
    ),
    CrossCheck(
        "before and after agree with the decision",
        "13.6",
        (adaptation.DECISION, adaptation.BEFORE_AFTER),
        adaptation.check_changes,
        "run `labkit adapt-decision` again with --adapter-run",
        optional=True,
    ),
    CrossCheck(
        "decision rests on the levers' runs",
        "13.6",
        (adaptation.DECISION, adaptation.LEVER_TABLE),
        levers.check_runs,
        "run `labkit levers`, then `labkit adapt-decision` with those runs",
        optional=True,
    ),
    CrossCheck(
        "adapter of the decided model",
        "13.6",
        (adaptation.ADAPTER,),
        adaptation.check_base,
        "train the adapter on the model that model_decision.md names (`labkit run --lesson 13.6`)",
        optional=True,
    ),
    CrossCheck(
        "parameter count agrees",
        "13.2",
        (_RUN, training.TRACE),
        timing.check_sizes,
        _TRAIN_AGAIN,
        optional=True,
    ),
    CrossCheck(
        "devices of this machine",
        "13.1",
        (plan.ENVIRONMENT,),
        timing.check_machine,
        "run `labkit run` on one machine, from 13.1 on",
        optional=True,
    ),
    CrossCheck(
        "benchmark agrees with its log",
        "13.4",
        (release.BENCHMARK,),
        load.check_benchmark_load,
        "run `labkit bench` again",
        optional=True,
    ),
    CrossCheck(
        "times in order",
        "13.4",
        (release.SHUTDOWN,),
        timing.check_times,
        "set the clock right, then run the lesson of the named file again",
        optional=True,
    ),
    CrossCheck(
        "shutdown after the last request",
        "13.4",
        (release.SHUTDOWN,),
        timing.check_last_request,
        "run `labkit stop` after the last request, or `labkit run --lesson 13.4`",
        optional=True,
    ),
    CrossCheck(
        "cost within the plan",
        "13.4",
        (release.SHUTDOWN,),
        timing.check_price,
        "run `labkit run --lesson 13.4`, or start the server again and end it by `labkit stop` with --hourly, the "
        "price in gpu_plan.md",
        optional=True,
        routes=("rented_gpu",),
    ),
    *OVERCLAIMS,
    CrossCheck(
        "executed notebooks",
        "",
        (),
        notebooks.check_notebooks,
        "run the notebook's lesson again with `labkit run --lesson`",
    ),
    CrossCheck(
        "commit of the workbook",
        "",
        (),
        consistency.check_commit,
        "run any lesson again, and leave the manifest to it",
    ),
    CrossCheck(
        "manifest hashes match",
        "",
        (),
        consistency.check_hashes,
        "restore the recorded files, or run their lesson again; `labkit record` enters words of your own",
    ),
)
