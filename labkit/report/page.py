"""One HTML file about a pack, or about a comparison: it loads nothing, and prints as it looks.

Everything read from a pack is escaped, because a pack may be a stranger's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from labkit.errors import LabError
from labkit.evaluation.compare import CHANGES, Comparison
from labkit.evidence import read_csv, read_manifest, utc_now, write_atomically
from labkit.report import charts
from labkit.report.artifacts import artifact_views
from labkit.report.conclusion import actions, conclusion
from labkit.report.html import render
from labkit.verification import Verification, verify
from labkit.verification.reading import PackReader
from labkit.verification.two_hour_plan import GATES, box_states, passed_gates

REPORT = "report.html"
SHOWN_TIMES = ("lesson", "forecast_minutes", "low", "high", "measured_minutes", "measured_by_forecast", "says")


def write_report(folder: Path) -> Path:
    """Write report.html into the pack: claims first, then each artifact with its pictures, and the 13.0 checklist.

    The manifest does not list it, because it can be made again from the pack at any time. Raises LabError when there
    is no such folder, or it cannot be written to.
    """
    folder = Path(folder)
    found = verify(folder)
    values = {
        "verification": found,
        "conclusion": conclusion(found),
        "actions": actions(found),
        "artifacts": artifact_views(PackReader(folder), found),
        "times": forecast_rows(folder),
        "notebooks": notebooks(folder),
        "draw": charts,
        "commit": _commit(folder),
        "time": utc_now(),
        **checklist(found),
    }
    write_atomically(folder / REPORT, render("report.html", values))
    return folder / REPORT


def checklist(found: Verification) -> dict[str, object]:
    """The plan's boxes and the quality gates of lesson 13.0 against a pack."""
    findings = (*found.artifacts, *found.cross_checks)
    return {
        "boxes": box_states(found.artifacts),
        "gates": list(zip(GATES, passed_gates(findings), strict=True)),
    }


def write_comparison(
    comparisons: Sequence[Comparison], rates: Sequence[Mapping], path: Path, speeds: Sequence[Mapping] = ()
) -> None:
    """One HTML file with every comparison, case by case, the pass rates and the speeds; it loads nothing."""
    values = {"comparisons": comparisons, "rates": rates, "speeds": speeds, "changes": list(CHANGES.values())}
    try:
        write_atomically(path, render("comparison.html", values))
    except OSError as error:
        raise LabError(f"{path.name} cannot be written: {error.strerror}", "give --html another file") from None


def forecast_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of forecast_and_measured.csv; empty when it cannot be read, or has not the columns that are shown."""
    try:
        rows = read_csv(folder / "forecast_and_measured.csv")
    except LabError:
        return []
    return rows if rows and set(SHOWN_TIMES) <= set(rows[0]) else []


def notebooks(folder: Path) -> list[tuple[str, str]]:
    """(name, link) for each executed notebook in the pack."""
    found = sorted((folder / "notebooks").glob("*.ipynb"))
    return [(path.name, "notebooks/" + quote(path.name, errors="replace")) for path in found]


def _commit(folder: Path) -> str:
    try:
        return str(read_manifest(folder).get("git_commit", "unknown"))[:80]
    except LabError:
        return "unknown"
