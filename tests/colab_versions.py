"""Print pip's lines for an environment with Colab's versions: `make test-colab` makes .venv-colab of them.

    python tests/colab_versions.py wanted         what the workbook touches directly, and torch
    python tests/colab_versions.py constraints    every version of data/landscape/colab_runtime.csv

torch keeps the version of pyproject.toml, whose CPU build the README tells how to get; what only belongs to Colab's own
builds of it is left out. Needs nothing but Python, since it runs before anything is installed.
"""

import csv
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNEL = ("accelerate", "ipykernel", "ipython", "protobuf", "pyarrow", "torchao")  # what is there beside our needs
OWN = re.compile(r"torch|pip|setuptools|triton|nvidia-.*|cuda-.*")


def colab() -> dict[str, str]:
    """Package to version on the CPU runtime, where this project does not choose itself."""
    with open(ROOT / "data" / "landscape" / "colab_runtime.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["runtime"] != "gpu" and row["version"] != "absent"]
    return {row["package"]: row["version"] for row in rows if not OWN.fullmatch(row["package"])}


def project() -> dict[str, str]:
    """Package to requirement, as pyproject.toml lists them."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    return {re.match(r"[\w-]+", line)[0]: line for line in lines}


def wanted() -> list[str]:
    brought = colab()
    names = [name for name in (*project(), *KERNEL) if name in brought]
    return [project()["torch"], *(f"{name}=={brought[name]}" for name in names)]


def main(what: str) -> None:
    print("\n".join({"wanted": wanted, "constraints": lambda: [f"{n}=={v}" for n, v in colab().items()]}[what]()))


if __name__ == "__main__":
    main(sys.argv[1])
