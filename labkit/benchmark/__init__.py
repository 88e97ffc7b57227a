"""Latency and throughput of any OpenAI-compatible server, measured through its own API, alone or against another."""

from labkit.benchmark.comparison import compare, ratios, spread
from labkit.benchmark.levels import LOCAL_CLAIM, benchmark, client_counts, write_benchmark
from labkit.benchmark.measure import Load, Row, Target, open_target, percentile, run_level

__all__ = [
    "LOCAL_CLAIM",
    "Load",
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
    "write_benchmark",
]
