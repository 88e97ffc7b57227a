"""Make colab_runtime.csv: the version of every package that the workbook touches, as Colab's freezes list them.

    python data/landscape/colab_runtime.py FREEZES [SITE_PACKAGES ...]

FREEZES is a folder with pip-freeze.txt and pip-freeze.gpu.txt of https://github.com/googlecolab/backend-info, and
SOURCE.txt, whose first line is their commit and date. What is touched is found by following the requirements of this
project through what is installed in the interpreter that runs this, and in each of SITE_PACKAGES: `make test-colab`
leaves Colab's own versions in .venv-colab, which require other packages than the locked ones.
"""

import csv
import re
import sys
import tomllib
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUT = HERE / "colab_runtime.csv"
COLUMNS = ("package", "version", "runtime", "source_url", "seen")
# Python and platform of Colab's machines, which decide which requirements apply there.
COLAB = {
    "python_version": "3.13",
    "python_full_version": "3.13.0",
    "sys_platform": "linux",
    "platform_machine": "x86_64",
}
COLAB |= {"platform_system": "Linux", "os_name": "posix", "implementation_name": "cpython", "extra": ""}
# No requirement of ours, and still in the way or underfoot: the kernel, peft's quarrel, and compiled packages at hand.
UNDERFOOT = ("accelerate", "ipykernel", "ipython", "protobuf", "pyarrow", "scipy", "torchao", "torchtune", "pip")


def applies(requirement: Requirement, extras: set[str]) -> bool:
    return not requirement.marker or any(requirement.marker.evaluate({**COLAB, "extra": e}) for e in {"", *extras})


def touched(installed: dict[str, Distribution]) -> set[str]:
    """The canonical names of all that the workbook needs, directly or through a dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    queue = [Requirement(text) for text in (*project["dependencies"], *UNDERFOOT)]
    found: dict[str, set[str]] = {}
    while queue:
        requirement = queue.pop()
        name, extras = canonicalize_name(requirement.name), set(requirement.extras)
        if name in found and extras <= found[name]:
            continue
        found[name] = found.get(name, set()) | extras
        if name in installed:
            needs = map(Requirement, installed[name].requires or ())
            queue += [need for need in needs if applies(need, found[name])]
    return set(found)


def by_name(paths: list[str] | None = None) -> dict[str, Distribution]:
    found = distributions(path=paths) if paths else distributions()
    return {canonicalize_name(d.metadata["Name"]): d for d in found if d.metadata["Name"]}


def freeze(path: Path) -> dict[str, str]:
    """Name to version; a package that was installed from an address has its version in the file's name there."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition(" @ ") if " @ " in line else line.partition("==")
        if rest and not line.startswith("#"):
            wheel = re.search(r"/[\w.]+-([\w.%]+)-[^/]*\.whl", rest)
            found[canonicalize_name(name)] = wheel[1].replace("%2B", "+") if wheel else rest
    return found


def rows(names: set[str], cpu: dict[str, str], gpu: dict[str, str]):
    """Package, version and runtime: one row where both runtimes agree, else one for each."""
    for name in sorted(names):
        versions = (cpu.get(name, "absent"), gpu.get(name, "absent"))
        if versions[0] == versions[1]:
            yield name, versions[0], "both"
        else:
            yield name, versions[0], "cpu"
            yield name, versions[1], "gpu"


def main(freezes: Path, site_packages: list[str]) -> None:
    commit, date = (freezes / "SOURCE.txt").read_text(encoding="utf-8").split()[:2]
    address = f"https://github.com/googlecolab/backend-info/tree/{commit}"
    names = touched(by_name()).union(*(touched(by_name([path])) for path in site_packages))
    made = rows(names, freeze(freezes / "pip-freeze.txt"), freeze(freezes / "pip-freeze.gpu.txt"))
    with open(OUT, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([*row, address, date[:10]] for row in made)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
