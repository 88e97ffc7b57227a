"""One HTML file about a pack, or about a comparison: it loads nothing, and prints as it looks.

Everything read from a pack is escaped, because a pack may be a stranger's.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from labkit.errors import LabError
from labkit.evaluation.compare import CHANGES, Comparison
from labkit.evidence import read_csv, read_json, read_manifest, utc_now, write_atomically
from labkit.report.conclusion import actions, conclusion
from labkit.report.curve import PLOT_HEIGHT, PLOT_MARGIN, PLOT_WIDTH, loss_plot
from labkit.verification import verify

REPORT = "report.html"
SHOWN_TIMES = ("lesson", "forecast_minutes", "low", "high", "measured_minutes", "measured_by_forecast", "says")
TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


def write_report(folder: Path) -> Path:
    """Write report.html into the pack: claims first, then cross-checks and artifacts, the loss curve, the failures.

    The manifest does not list it, because it can be made again from the pack at any time. Raises LabError when there
    is no such folder, or it cannot be written to.
    """
    folder = Path(folder)
    verification = verify(folder)
    html = _template("report.html").render(
        verification=verification,
        conclusion=conclusion(verification),
        actions=actions(verification),
        plot=loss_plot(_log_rows(folder)),
        size=(PLOT_WIDTH, PLOT_HEIGHT, PLOT_MARGIN),
        risks=risk_table(folder),
        times=forecast_rows(folder),
        notebooks=notebooks(folder),
        commit=_commit(folder),
        time=utc_now(),
    )
    write_atomically(folder / REPORT, _storable(html))
    return folder / REPORT


def write_comparison(
    comparisons: Sequence[Comparison], rates: Sequence[Mapping], path: Path, speeds: Sequence[Mapping] = ()
) -> None:
    """One HTML file with every comparison, case by case, the pass rates and the speeds; it loads nothing."""
    html = _template("comparison.html").render(
        comparisons=comparisons, rates=rates, speeds=speeds, changes=list(CHANGES.values())
    )
    try:
        write_atomically(path, _storable(html))
    except OSError as error:
        raise LabError(f"{path.name} cannot be written: {error.strerror}", "give --html another file") from None


def risk_table(folder: Path) -> list[dict]:
    """One row for each risk of eval_summary.json, with the ids that failed; empty when it cannot be read."""
    try:
        by_risk = read_json(folder / "eval_summary.json").get("by_risk")
    except LabError:
        return []
    if not isinstance(by_risk, dict):
        return []
    rows = []
    for risk, counts in by_risk.items():
        if isinstance(counts, dict):
            failed = counts.get("failed_ids")
            ids = ", ".join(map(str, failed)) if isinstance(failed, list) else ""
            rows.append({"risk": risk, "passed": counts.get("passed"), "total": counts.get("total"), "ids": ids})
    return rows


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


def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _storable(html: str) -> bytes:
    """UTF-8 without control characters, which a hostile file name may hold and HTML forbids."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "?", html).encode("utf-8", errors="replace")


def _log_rows(folder: Path) -> list[dict[str, str]]:
    try:
        return read_csv(folder / "openllm_gpu_training_run" / "training_log.csv")
    except LabError:
        return []


def _commit(folder: Path) -> str:
    try:
        return str(read_manifest(folder).get("git_commit", "unknown"))
    except LabError:
        return "unknown"
