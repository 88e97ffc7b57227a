"""The reference packs: real runs, committed, that must verify with today's rules, stay small and name no machine."""

import getpass
import platform
import re
import subprocess
from datetime import timedelta
from pathlib import Path

import nbformat
import pytest

from labkit.evidence import read_manifest
from labkit.layout import REFERENCE, ROOT
from labkit.report.conclusion import conclusion
from labkit.routes import load_route
from labkit.verification import Verdict, timing_checks, verify

PACKS = [manifest.parent for manifest in sorted(REFERENCE.glob("*/manifest.json"))]
MOST_BYTES = 5_000_000
TEXTS = {".txt", ".md", ".json", ".jsonl", ".csv", ".ipynb", ".html"}
FOLDER = re.compile(r"(?:[A-Z]:\\|(?<![\w.:/<>~-])/)(?:home|root|Users|tmp|work|workspace|mnt|private|var)[\\/]\S*")

pytestmark = pytest.mark.skipif(not PACKS, reason="no reference pack is here; `make reference` makes one")


@pytest.fixture(params=PACKS, ids=lambda pack: pack.name)
def pack(request) -> Path:
    return request.param


@pytest.fixture(autouse=True)
def any_clock(monkeypatch):
    """The packs are right on a machine whose clock is behind them, too: nothing in them is of its future."""
    monkeypatch.setattr(timing_checks, "WRONG_CLOCK", timedelta(days=10_000))


def files_of(pack: Path) -> list[Path]:
    return sorted(path for path in pack.rglob("*") if path.is_file())


def words_of(path: Path) -> str:
    """The text of a file, the pictures of a notebook left out: their letters are not words."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
    return nbformat.writes(notebook)


def test_it_verifies_and_everything_that_its_route_requires_is_supported(pack):
    found = verify(pack)
    assert found.exit_code == 0, [finding for finding in found.findings if finding.verdict is not Verdict.SUPPORTED]
    assert found.route == pack.name
    supported = {finding.name for finding in found.artifacts if finding.verdict is Verdict.SUPPORTED}
    assert supported >= set(load_route(found.route).required_artifacts)


def test_it_is_small_and_its_manifest_lists_every_file_but_the_report(pack):
    files = files_of(pack)
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    names = {path.relative_to(pack).as_posix() for path in files}
    manifest = read_manifest(pack)
    assert names - set(manifest["files"]) == {"manifest.json", "report.html"}
    assert re.fullmatch(r"[0-9a-f]{40}", manifest["git_commit"])  # made from a commit, without changes


def test_it_names_no_folder_host_or_person(pack):
    private = {name for name in (platform.node(), getpass.getuser()) if len(name) > 5}
    for path in files_of(pack):
        if path.suffix in TEXTS:
            text = words_of(path)
            assert FOLDER.search(text) is None, (path.name, FOLDER.search(text)[0])
            assert not [name for name in private if name in text], path.name


def test_its_notebooks_were_executed_to_the_end_and_the_report_links_them(pack):
    report = (pack / "report.html").read_text(encoding="utf-8")
    notebooks = sorted((pack / "notebooks").glob("*.ipynb"))
    assert {path.name[:4] for path in notebooks} >= {"13_0", "13_1", "13_2", "13_3", "13_4", "13_5"}
    for path in notebooks:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in cells), path.name
        assert not [out for cell in cells for out in cell.outputs if out.output_type == "error"], path.name
        assert f'href="notebooks/{path.name}"' in report


def test_its_report_says_what_verify_says_today(pack):
    report = (pack / "report.html").read_text(encoding="utf-8")
    found = verify(pack)
    assert conclusion(found) in report
    for finding in found.findings:
        assert finding.name in report or finding.name.replace("'", "&#39;") in report


def test_git_takes_every_file_of_it(pack):
    names = [path.relative_to(ROOT).as_posix() for path in files_of(pack)]
    done = subprocess.run(["git", "check-ignore", "--no-index", *names], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == ""
