"""The `labkit` command: each command is a few lines around a room's functions.

Rooms are imported inside the commands, so that `labkit --help` loads neither torch nor transformers.
"""

import sys

from labkit.cli import (  # noqa: F401  (each adds its commands to the application)
    adapt_decision,
    adaptation,
    evidence,
    exporting,
    forecast,
    grading,
    guard,
    landscape,
    memory,
    model,
    quantization,
    service,
    sharing,
    training,
    tuning,
)
from labkit.cli.app import app
from labkit.errors import LabError


def main() -> None:
    """Run a command; a LabError becomes two lines and its exit code, never a traceback."""
    try:
        app()
    except LabError as error:
        place = f" ({error.where})" if error.where else ""
        print(f"error: {error.what}{place}\nnext: {error.next_step}", file=sys.stderr)
        sys.exit(error.exit_code)
