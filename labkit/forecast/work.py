"""What each lesson does, counted: processes, training tokens, cases, servers, figures.

The counts come from where the lessons take them: the route file's sizes, the levers, the cases, the presets, the
parameters of a notebook. A test holds the few that only stand in a notebook's cells against those cells.
"""

import ast
import json
from functools import cache

from labkit.adaptation.lora.chats import load_chats
from labkit.adaptation.lora.settings import LoraSettings
from labkit.conformance import PROBES
from labkit.drills.menu import STARTS
from labkit.edge.checklist import GENERATIONS
from labkit.edge.lesson import EXPORTS
from labkit.evaluation.cases import EVAL_CASES, load_cases
from labkit.forecast.units import Unit, Work
from labkit.layout import DATA, NOTEBOOKS
from labkit.levers.plan import LEVERS, Lever
from labkit.levers.run import case_groups
from labkit.routes import Route, training_size
from labkit.training.plan import EVALUATION_STEPS, MiniRun
from labkit.workbook import kill_drill, lesson

STRICT_SECONDS = 3.0  # of 13.4's second server: a request that is made to run into its limit
FORMATS, SCORED, ANSWERS_TIMED = 4, 12, 4  # of 13.6: number formats, chats scored for each, answers timed for each
EDGE_FORMATS, EDGE_SCORED, EDGE_TIMED = 6, 8, 4  # of 13.7, the same
DTYPES, ANSWERS_OF_A_DTYPE = 2, 2  # of 13.3: formats, and their five short answers as whole ones
QLORA_STEPS = 8
SHORT_ANSWERS = 8  # generations of the checklist, twelve tokens each, in the time of a case
LIVE_FIGURES = 5  # the loss curve is drawn again every two seconds, for the ten rows of its log at most
FORWARD = 1 / 3  # of a training step is the forward pass, which is what a held-out loss costs


def work_of(number: str, route: Route, device: str) -> tuple[Work, ...]:
    """The work of lesson `number` on `route`, on a machine whose torch device is `device` ("cpu" or "cuda")."""
    lesson(number)
    begun = Work(Unit.KERNEL, 1, "the notebook")
    return (begun, *_LESSONS[number](route, device))


def _checklist(route: Route, device: str) -> list[Work]:
    return [Work(Unit.LOAD, 2, "the pack verified twice, its checkpoint loaded")]


def _route(route: Route, device: str) -> list[Work]:
    return [
        Work(Unit.FIGURE, 2, "minutes of the routes, forecast"),
        Work(Unit.WRITE, 5, "report, freeze, plans, forecast"),
    ]


def _run_train_serve(route: Route, device: str) -> list[Work]:
    planned, fallback = (route.train_steps, route.batch_size), (route.fallback_train_steps, route.fallback_batch_size)
    steps, batch, _ = training_size(route, device, planned, fallback)
    mini, tiny = MiniRun(steps=steps, batch_size=batch), MiniRun.of_size("tiny")
    drilled = 2 * int(kill_drill.RUN[kill_drill.RUN.index("--steps") + 1])
    return [
        Work(Unit.LOAD, 1, "the chat model"),
        Work(Unit.CASE_ALONE, 2 + len(load_cases()), "the first answer, and every case of the five risks"),
        Work(Unit.MINI_TOKENS, _tokens(mini), f"{steps} steps of {batch} windows"),
        Work(Unit.TINY_TOKENS, 2 * _tokens(tiny), "one dial: two runs of the size tiny"),
        Work(Unit.TINY_TOKENS, drilled * tiny.batch_size * tiny.block_size / 1000, "the kill drill: two whole runs"),
        Work(Unit.PREPARE, 6, "a text for each of six runs"),
        Work(Unit.PROCESS, 3, "the kill drill: killed, resumed, left alone"),
        Work(Unit.SERVER, 1, "the API"),
        Work(Unit.CASE_HTTP, 3, "a request and the smoke test"),
        Work(Unit.FIGURE, 3 + LIVE_FIGURES, "mask, curves, failures, and the live curve"),
        Work(Unit.WRITE, 12, "first run, training run, evaluation, smoke test"),
    ]


def _tokens(run: MiniRun) -> float:
    """Thousands of tokens that the run trains on, and as many more as its held-out losses cost."""
    return (run.steps + EVALUATION_STEPS) * run.batch_size * run.block_size * run.accumulate / 1000


def _model_and_runtime(route: Route, device: str) -> list[Work]:
    return [
        Work(Unit.LOAD, DTYPES, "one model in two formats"),
        Work(Unit.CASE_ALONE, DTYPES * ANSWERS_OF_A_DTYPE, "the answers that are timed"),
        Work(Unit.FIGURE, 1, "memory of five models"),
        Work(Unit.WRITE, 3, "the decisions"),
    ]


def _release(route: Route, device: str) -> list[Work]:
    drills = _parameter("13_4_release_runbook.ipynb", "drills")
    failing = sum(name in STARTS for name in drills)
    return [
        Work(Unit.SERVER, 2, "the service, and a second one with tight limits"),
        Work(Unit.SERVER, 1 + ("log_disk_full" in drills), "the drills: one server, another whose log is full"),
        Work(Unit.PROCESS, -(-failing // 2), "the drills: starts that fail, two at a time"),
        Work(Unit.WAIT, STRICT_SECONDS, "a request that runs into its limit"),
        Work(Unit.CASE_HTTP, len(load_cases()) + 1, "every case of the five risks"),
        Work(Unit.CASE_HTTP, 2 * route.benchmark_requests + 5, "the benchmark with one and four clients, warm-up"),
        Work(Unit.CASE_HTTP, len(PROBES) / 4, "the features of the endpoint, each with a short answer"),
        Work(Unit.FIGURE, 3, "failures, latency, throughput"),
        Work(Unit.WRITE, 20, "contract, evaluation, benchmark, drills, gates, runbook, proof"),
    ]


def _landscape(route: Route, device: str) -> list[Work]:
    return [Work(Unit.WRITE, 2, "route and decision")]


def _adaptation(route: Route, device: str) -> list[Work]:
    work = [piece for lever in LEVERS for piece in _lever(lever, len(route.lever_seeds))]
    return [
        *work,
        Work(Unit.KERNEL, FORMATS, "a process for each number format"),
        Work(Unit.CASE_ALONE, FORMATS * ANSWERS_TIMED, "the answers that are timed for each format"),
        Work(Unit.CASE, FORMATS * SCORED, "the chats that are scored for each format"),
        Work(Unit.TUNING, 2, "QLoRA beside LoRA"),
        Work(Unit.LORA_STEP, QLORA_STEPS * (1 + FORWARD), "the same, its base in 32 bits"),
        Work(Unit.NF4_STEP, QLORA_STEPS * (1 + FORWARD), "the same, its base in 4 bits"),
        Work(Unit.FIGURE, 3, "formats, loss, levers"),
        Work(Unit.WRITE, 10, "quantization, adapter, table, decision"),
    ]


def _edge(route: Route, device: str) -> list[Work]:
    """Answers of an int4 graph are counted as if they took the time of the checkpoint's, which is an upper bound."""
    formats, cases = EDGE_FORMATS, len(load_cases(EVAL_CASES))
    return [
        Work(Unit.KERNEL, formats + len(EXPORTS), "a process for each format measured and each conversion"),
        Work(Unit.CASE_ALONE, formats * EDGE_TIMED, "the answers that are timed for each format"),
        Work(Unit.CASE, formats * EDGE_SCORED, "the chats that are scored for each format"),
        Work(Unit.LOAD, 3 + len(EXPORTS), "source in two formats, exports, and the export for the checklist"),
        Work(Unit.CASE, (3 + len(EXPORTS)) * cases, "every case asked of the source twice, exports, Foundry Local"),
        Work(Unit.CASE, GENERATIONS / SHORT_ANSWERS, "the checklist's short generations"),
        Work(Unit.FIGURE, 2, "formats, checklist"),
        Work(Unit.WRITE, 10, "answers, report, formats, checklist"),
    ]


def _lever(lever: Lever, seeds: int) -> list[Work]:
    """A model loaded, every case asked and three files written; for a trained lever once for each seed, and trained."""
    runs = seeds if lever.trained else 1
    asked = {"int8": Unit.CASE_INT8, "nf4-dq": Unit.CASE_NF4}.get(lever.dtype, Unit.CASE)
    unit = Unit.CASE_SCHEMA if lever.constrained else asked
    cases = sum(map(len, case_groups().values()))
    work = [
        Work(Unit.LOAD, runs, f"lever {lever.name}"),
        Work(Unit.CASE_ALONE, runs, f"lever {lever.name}: one case to warm up"),
        Work(unit, runs * cases, f"lever {lever.name}: every case"),
        Work(Unit.WRITE, 3 * runs, f"lever {lever.name}"),
    ]
    if lever.trained:
        step = Unit.FULL_STEP if lever.tuning.full else Unit.LORA_STEP
        work += [
            Work(Unit.TUNING, runs, f"lever {lever.name}"),
            Work(step, runs * tuning_steps(lever.tuning), f"lever {lever.name}: training"),
        ]
    return work


@cache
def tuning_steps(settings: LoraSettings) -> float:
    """The optimizer steps of a fine-tuning on the lesson's chats, and as many more as its held-out losses cost."""
    chats = len(load_chats(DATA / "train.jsonl"))
    held_out = max(1, round(chats * settings.held_out_share))
    kept = chats - held_out
    each_epoch = kept + round(kept * settings.replay_share / (1 - settings.replay_share))
    per_step = settings.batch_size * settings.accumulate
    steps = settings.steps or round(settings.epochs * -(-each_epoch // per_step))
    return steps + (steps / settings.log_every + 1) * held_out / per_step * FORWARD


def _parameter(notebook: str, name: str) -> object:
    """The default of a notebook's parameter."""
    cells = json.loads((NOTEBOOKS / notebook).read_text(encoding="utf-8"))["cells"]
    source = "".join(next(cell for cell in cells if "parameters" in cell["metadata"].get("tags", ()))["source"])
    return next(ast.literal_eval(line.value) for line in ast.parse(source).body if line.targets[0].id == name)


_LESSONS = {
    "13.0": _checklist,
    "13.1": _route,
    "13.2": _run_train_serve,
    "13.3": _model_and_runtime,
    "13.4": _release,
    "13.5": _landscape,
    "13.6": _adaptation,
    "13.7": _edge,
}
