"""The project around the code: one place for versions, floors that hold, commands that answer at once."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from labkit.layout import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(texts: list[str]) -> dict[str, str]:
    return {requirement.name: str(requirement.specifier) for requirement in map(Requirement, texts)}


def project_pins() -> dict[str, str]:
    return pins([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]])


# Versions


def test_environment_yml_installs_this_project_and_agrees_with_pyproject():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    python = next(Requirement(entry.replace("=", "==", 1)) for entry in entries if str(entry).startswith("python="))
    (version,) = (specifier.version for specifier in python.specifier)
    assert version in SpecifierSet(PROJECT["requires-python"])
    pip = next(entry["pip"] for entry in entries if isinstance(entry, dict))
    assert "-e .[test]" in pip
    listed = [text for text in pip if not text.startswith("-")]
    listed += [
        entry.replace("=", "==", 1) for entry in entries if isinstance(entry, str) and re.match(r"\w+=\d", entry)
    ]
    known = project_pins()
    for name, specifier in pins([text for text in listed if not text.startswith("python")]).items():
        assert specifier == known[name], name


def test_colab_gets_the_same_pins_and_keeps_what_its_kernel_has_loaded():
    """A version that moves under a live Colab kernel breaks it; what Colab brings itself is left alone."""
    lines = (ROOT / "requirements-colab.txt").read_text(encoding="utf-8").splitlines()
    listed = pins([line for line in lines if line.strip() and not line.startswith("#")])
    assert listed
    assert not set(listed) & {"torch", "numpy", "ipykernel", "ipywidgets", "transformers", "pandas", "matplotlib"}
    known = project_pins()
    for name, specifier in listed.items():
        assert specifier == known[name], name


def test_what_breaks_a_learner_is_pinned_exactly():
    known = project_pins()
    for name in ("torch", "transformers", "peft", "papermill", "nbval", "jupyterlab", "ipywidgets"):
        assert re.fullmatch(r"==[\d.]+", known[name]), name


def test_python_3_11_to_3_13_are_supported():
    supported = SpecifierSet(PROJECT["requires-python"])
    assert [minor for minor in range(9, 16) if f"3.{minor}" in supported] == [11, 12, 13]


# Floors


def test_rooms_import_only_from_the_floors_below():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


# Answering at once


def run_python(*arguments: str) -> tuple[subprocess.CompletedProcess, float]:
    """The finished process, and the processor seconds it used: wall time depends on what else the machine does."""
    before = os.times()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return done, used


HEAVY = ("torch", "transformers", "papermill", "matplotlib", "pandas", "fastapi", "openai")
CODE = f"""
import sys
sys.argv = ["labkit", "--help"]
import labkit
assert not [name for name in {HEAVY} if name in sys.modules], "import labkit"
from labkit.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
loaded = [name for name in {HEAVY} if name in sys.modules]
assert not loaded, loaded
"""


def test_import_and_help_load_nothing_heavy():
    done, _ = run_python("-c", CODE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Usage" in done.stdout


@pytest.mark.parametrize("arguments", [("-c", "import labkit"), ("-m", "labkit.cli", "--help")])
def test_import_and_help_take_well_under_half_a_second(arguments):
    run_python(*arguments)  # fills the byte-code cache
    assert min(run_python(*arguments)[1] for _ in range(3)) < 0.5


@pytest.mark.parametrize("words", [("check",), ("format", "--check")])
def test_style_and_format(words):
    done = subprocess.run([sys.executable, "-m", "ruff", *words, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# The Makefile and the files it needs


def make(*words: str) -> str:
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_make_alone_is_help_and_names_every_target():
    shown = make()
    assert shown == make("help")
    for target in ("setup", "run", "test", "lab", "lint"):
        assert re.search(rf"^\s*make {target}\b", shown, re.M), target


def test_a_second_make_run_installs_nothing(tmp_path):
    stamp = tmp_path / ".installed"
    stamp.touch()
    os.utime(stamp, (2**31, 2**31))
    first = make("--dry-run", "run", f"VENV={tmp_path / 'none'}")
    second = make("--dry-run", "run", f"VENV={tmp_path}")
    assert 'install -e ".[test]"' in first
    assert "-m pip" not in second
    assert "run --route local_cpu" in second


def test_make_test_runs_the_notebooks_too():
    plan = make("--dry-run", "--assume-old=pyproject.toml", "test")
    assert re.search(r"-m pytest tests notebooks --nbval-lax --nbval-current-env", plan)


def test_a_notebook_under_nbval_fills_a_pack_that_is_not_the_learners(tmp_path):
    """Notebooks that read each other's files fill one pack, and one that reads none fills its own."""
    show = "import os, pathlib\npathlib.Path({!r}).write_text(os.environ['LABKIT_EVIDENCE'])"
    for number in "346":
        cell = nbformat.v4.new_code_cell(show.format(str(tmp_path / number)))
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / f"13_{number}_x.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", tmp_path]
    command += [word for plugin in ("nbval.plugin", "xdist.plugin", "notebook_packs") for word in ("-p", plugin)]
    environment = {**os.environ, "LABKIT_EVIDENCE": str(tmp_path / "learner"), "PYTHONPATH": str(ROOT / "tests")}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # a second less
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    packs = [(tmp_path / number).read_text() for number in "346"]
    assert packs[0] == packs[1] != packs[2]
    assert str(tmp_path / "learner") not in packs
    assert not any(Path(pack).exists() for pack in packs)


def test_ci_runs_exactly_make_test():
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "set -euo pipefail" in text
    assert text.rstrip().splitlines()[-1] == "make test"


@pytest.mark.parametrize(
    "name", ["LICENSE", "LICENSE-text.md", "CONTRIBUTING.md", "CHANGELOG.md", "evidence/README.md"]
)
def test_the_files_that_a_reader_looks_for_are_there(name):
    assert (ROOT / name).stat().st_size > 200


def test_links_between_the_documents_resolve():
    for path in [*ROOT.glob("*.md"), ROOT / "evidence" / "README.md"]:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("#"):
                assert (path.parent / target.split("#")[0]).exists(), f"{path.name}: {target}"
