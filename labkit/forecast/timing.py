"""How a cost is measured."""

import time
from collections.abc import Callable


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def seconds_each(work: Callable[[], object], at_least: float, most: int = 1000) -> float:
    """Mean seconds of `work`, repeated until `at_least` seconds have gone by; the first call warms up."""
    work()
    count, started = 0, time.perf_counter()
    while count < most and (count == 0 or time.perf_counter() - started < at_least):
        work()
        count += 1
    return (time.perf_counter() - started) / count
