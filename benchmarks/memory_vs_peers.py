"""`labkit memory` against accelerate's estimator and hf-mem, on published measurements.

    python benchmarks/memory_vs_peers.py
    python -m venv peer && peer/bin/pip install hf-mem==0.5.6
    python benchmarks/memory_vs_peers.py --hf-mem peer/bin/python     with hf-mem, which has a venv of its own

The published figures are those of tests/data/memory_truth.csv, the excluded rows left out. accelerate is asked with the
model on the meta device, as its command does it after a download. hf-mem reads the sizes of weights from a
checkpoint's own header, which takes a network; here it is lent labkit's weights, so only its cache is compared.
Prints Markdown tables.
"""

import argparse
import json
import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path

from accelerate.utils import calculate_maximum_sizes

from labkit.generation.architectures import build, config_of
from labkit.landscape.memory import memory_estimate
from labkit.landscape.models import find_model
from labkit.landscape.published import UNITS, PublishedSize, computed_bytes, load_published
from labkit.landscape.quantization import find_quantization

TRUTH = Path(__file__).resolve().parents[1] / "tests" / "data" / "memory_truth.csv"
GROUPS = ("file", "GPU, short context", "GPU, long context")
CACHE_MODELS = (
    "Qwen/Qwen3-8B",
    "google/gemma-3-27b-it",
    "openai/gpt-oss-20b",
    "Qwen/Qwen3.5-9B",
    "deepseek-ai/DeepSeek-V3",
)
CACHE_CONTEXT = 32_768
# accelerate divides the fp32 size: 16 bit by 2, 8 bit by 4, 4 bit by 8.
DIVISORS = ((16, 2), (8, 4), (0, 8))
HF_MEM = """
import json, sys
from hf_mem.safetensors.kv_cache import compute_safetensors_kv_cache_size as size
print(json.dumps([size(config, "BF16", context, 1) for config, context in json.load(sys.stdin)]))
"""


@cache
def accelerate_fp32_bytes(repo_id: str) -> int | None:
    row = find_model(repo_id)
    return calculate_maximum_sizes(build(config_of(row)))[0] if row.dimensions_known else None


def accelerate_bytes(row: PublishedSize) -> float | None:
    """What `accelerate estimate-memory` calls the total size: the weights alone, at any context."""
    size, bits = accelerate_fp32_bytes(row.repo_id), find_quantization(row.format).bits_per_weight
    return None if size is None else size / next(divisor for least, divisor in DIVISORS if bits >= least)


def hf_mem_cache(questions: list[tuple[str, int]], python: str) -> list[int] | None:
    """hf-mem's own figure for each (model, context), or None where it is not installed."""
    asked = []
    for repo_id, context in questions:
        row = find_model(repo_id)
        config = config_of(row).get_text_config()
        values = json.loads(config.to_json_string(use_diff=False))
        if row.head_dim is None:  # DeepSeek's own config.json has none
            values.pop("head_dim", None)
        asked.append([values, context])
    done = subprocess.run([python, "-c", HF_MEM], input=json.dumps(asked), capture_output=True, text=True)
    if done.returncode and "No module named 'hf_mem'" in done.stderr:
        return None
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def error(computed: float, row: PublishedSize) -> float:
    return abs(100 * (computed / UNITS[row.unit] / row.size - 1))


def summary(errors: list[float]) -> str:
    p90 = statistics.quantiles(errors, n=10, method="inclusive")[8]
    return f"{statistics.median(errors):.1f} / {p90:.1f} / {max(errors):.1f}"


def print_accuracy(rows: list[PublishedSize], python: str) -> None:
    print("Absolute error in percent of the published figure: median / 90th percentile / worst.\n")
    print("| group | rows | labkit | accelerate | labkit's weights + hf-mem's cache |\n|---|---|---|---|---|")
    for group in GROUPS:
        held = [row for row in rows if row.group == group and find_model(row.repo_id).dimensions_known]
        ours = [error(computed_bytes(row), row) for row in held]
        theirs = [error(accelerate_bytes(row), row) for row in held]
        caches = hf_mem_cache([(row.repo_id, row.context) for row in held], python) if group != "file" else None
        lent = "not installed" if group != "file" else "-"
        if caches:
            weights = [memory_estimate(row.repo_id, row.format, row.context).weights for row in held]
            lent = summary([error(w + c, row) for w, c, row in zip(weights, caches, held, strict=True)])
        print(f"| {group} | {len(held)} | {summary(ours)} | {summary(theirs)} | {lent} |")


def print_caches(python: str) -> None:
    caches = hf_mem_cache([(name, CACHE_CONTEXT) for name in CACHE_MODELS], python)
    print(f"\nKey-value cache of one sequence of {CACHE_CONTEXT:,} tokens in 16 bit, MiB; accelerate counts none.\n")
    print("| model | attention | labkit | hf-mem | hf-mem / labkit |\n|---|---|---|---|---|")
    for place, name in enumerate(CACHE_MODELS):
        ours, row = memory_estimate(name, context=CACHE_CONTEXT).kv_cache, find_model(name)
        theirs = f"{caches[place] / 2**20:,.0f} | {caches[place] / ours:.1f}" if caches else "not installed | -"
        print(f"| {name} | {row.attention} | {ours / 2**20:,.0f} | {theirs} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf-mem", default=sys.executable, help="the Python of a venv that has hf-mem")
    python = parser.parse_args().hf_mem
    rows = [row for row in load_published(TRUTH) if not row.excluded]
    print_accuracy(rows, python)
    print_caches(python)


if __name__ == "__main__":
    main()
