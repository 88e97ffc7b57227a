"""Runs before anything else in a kernel of the Colab-like environment: what a session of free Colab has."""

import os
import resource
import sys
from pathlib import Path

resource.setrlimit(resource.RLIMIT_DATA, (12 * 2**30, 12 * 2**30))  # of the 12.7 GB that a session shows
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
# The workbook must be found where a learner put it, and not in the checkout that the tests run from.
CHECKOUT = Path(__file__).resolve().parents[2]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != CHECKOUT]
