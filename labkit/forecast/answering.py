"""What answers cost here: some of the lessons' own cases, asked as the lessons ask them."""

from dataclasses import dataclass

import psutil

from labkit.evaluation.cases import Case
from labkit.evaluation.levers import PLAIN, Levers
from labkit.evaluation.runner import evaluate
from labkit.evaluation.targets import ROWS, Target, endpoint_target, model_target
from labkit.forecast.timing import seconds_of
from labkit.forecast.units import Unit
from labkit.generation import EMBEDDED, Sampling, load_chat_model
from labkit.levers.run import case_groups
from labkit.serving.ports import free_port
from labkit.serving.runtimes import start_server

ALONE, TOGETHER = 6, 3 * ROWS  # cases that are asked: enough together that rows leave and join, as in a lesson
SAMPLING = Sampling(max_tokens=96)  # the lessons' own
FORMATS = {Unit.CASE_INT8: "int8", Unit.CASE_NF4: "nf4-dq"}


def spread_cases(count: int) -> list[Case]:
    """`count` of all cases, evenly from the first to the last: forms, notes and refusals alike."""
    cases = [case for group in case_groups().values() for case in group]
    return [cases[at * len(cases) // count] for at in range(count)]


def case_costs(device: str) -> dict[Unit, float]:
    """Seconds for a model to be loaded, and for a case in each way of answering.

    An evaluation asks one case before the first, alone, to warm up. So what 24 cases together cost is the whole less
    one case alone; in the other formats that case is taken to be as much dearer as it is in float32.
    """
    costs: dict[Unit, float] = {}
    loaded: list[Target] = []
    costs[Unit.LOAD] = seconds_of(lambda: loaded.append(model_target(load_chat_model(EMBEDDED, device))))
    alone = costs[Unit.CASE_ALONE] = asked_alone(loaded[0])
    costs[Unit.CASE] = max(_together(loaded[0]) - alone, 0.0) / TOGETHER or alone
    asked = TOGETHER + alone / costs[Unit.CASE]
    costs[Unit.CASE_SCHEMA] = _together(loaded[0], Levers(constrained=True)) / asked
    for unit, dtype in FORMATS.items():
        costs[unit] = _together(model_target(load_chat_model(EMBEDDED, device, dtype))) / asked
    return costs


def asked_alone(target: Target) -> float:
    """Seconds for a case that is asked by itself."""
    return seconds_of(lambda: evaluate(target, spread_cases(ALONE), SAMPLING, concurrency=1)) / (ALONE + 1)


def _together(target: Target, levers: Levers = PLAIN) -> float:
    """Seconds for TOGETHER cases, and one before them."""
    cases = spread_cases(TOGETHER)
    return seconds_of(lambda: evaluate(target, cases, SAMPLING, levers=levers, concurrency=ROWS))


@dataclass(frozen=True)
class ServerCost:
    """Seconds for a server to start and stop and for a case that one client asks; `memory_mib` is the server's own."""

    start: float
    case: float
    memory_mib: float


def server_cost(device: str) -> ServerCost:
    """Start a server of the embedded model, ask it cases, and stop it."""
    cases: list[float] = []
    held: list[float] = []

    def whole() -> None:
        with start_server(EMBEDDED, port=free_port(), device=device) as server:
            cases.append(asked_alone(endpoint_target(server.base_url)))
            held.append(psutil.Process(server.pid).memory_info().rss / 2**20)

    total = seconds_of(whole)
    return ServerCost(total - cases[0] * (ALONE + 1), cases[0], held[0])
