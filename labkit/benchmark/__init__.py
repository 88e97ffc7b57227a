"""Latency and throughput of any OpenAI-compatible server, measured through its own API, alone or against another."""

from labkit.benchmark.comparison import compare, ratios, spread
from labkit.benchmark.levels import LOCAL_CLAIM, benchmark, client_counts, write_benchmark
from labkit.benchmark.measure import Load, Row, Target, open_target, percentile, run_level
from labkit.benchmark.watch import Moment, watch_stream

__all__ = [
    "LOCAL_CLAIM",
    "Load",
    "Moment",
    "Row",
    "Target",
    "benchmark",
    "client_counts",
    "compare",
    "open_target",
    "percentile",
    "ratios",
    "run_level",
    "spread",
    "watch_stream",
    "write_benchmark",
]
