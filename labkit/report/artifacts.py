"""What the report shows of each artifact: its verdict, its files, and a picture or table of what was measured in it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from labkit.evidence import finite
from labkit.levers.table import read_table
from labkit.report.charts import Bars, Chart, latency_chart, loss_chart, memory_bars, risk_bars
from labkit.verification import Finding, Verification
from labkit.verification import adaptation_checks as adaptation
from labkit.verification import edge_checks as edge
from labkit.verification import release_checks as release
from labkit.verification import service_checks as service
from labkit.verification import training_checks as training
from labkit.verification.reading import PackReader
from labkit.verification.rules import RULES
from labkit.verification.verdicts import printable

_FILES = {rule.name: rule.recorded_files for rule in RULES}
FAILURES_SHOWN = 12


@dataclass(frozen=True)
class ShownTable:
    """Rows of an artifact as people read them; the first cell of each names it."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ArtifactView:
    """One artifact of the report. `files` are (name, link, size)."""

    finding: Finding
    anchor: str
    files: tuple[tuple[str, str, str], ...]
    chart: Chart | None = None
    bars: Bars | None = None
    table: ShownTable | None = None


def artifact_views(pack: PackReader, found: Verification) -> list[ArtifactView]:
    """One view for each artifact of the verification. What cannot be drawn has no picture, whatever is in the file."""
    return [_view(pack, finding) for finding in found.artifacts]


def _view(pack: PackReader, finding: Finding) -> ArtifactView:
    shown = {
        training.RUN: lambda: {"chart": loss_chart(pack.rows(training.RUN_LOG, ("step",)))},
        service.SUMMARY: lambda: _evaluation(pack.json(service.SUMMARY)),
        release.BENCHMARK: lambda: {
            "chart": latency_chart(pack.json(release.BENCHMARK)),
            "bars": memory_bars(memory_peaks(pack)),
        },
        adaptation.LEVER_TABLE: lambda: {"table": _levers(pack)},
        edge.REPORT: lambda: {"table": _exports(pack.json(edge.REPORT))},
        service.FIRST_RUN: lambda: {} if pack.exists(release.BENCHMARK) else {"bars": memory_bars(memory_peaks(pack))},
    }
    pictures = _or_else(shown.get(finding.name, dict), {})
    anchor = re.sub(r"[^a-z0-9]+", "-", finding.name.lower()).strip("-")
    return ArtifactView(finding, anchor, _files(pack, finding.name), **pictures)


def _evaluation(summary: Mapping) -> dict:
    failures = _or_else(lambda: tuple(map(_failure, summary["failures"][:FAILURES_SHOWN])), ())
    table = ShownTable("Failures by risk and check", ("Risk", "Check", "Count", "Cases", "Example"), failures)
    bars = _or_else(lambda: risk_bars(summary["by_risk"]), None)
    return {"bars": bars, "table": table if failures else None}


def _failure(row: Mapping) -> tuple[str, ...]:
    return _told(row["risk"], row["check"], row["count"], ", ".join(map(str, row["case_ids"])), row.get("example", ""))


def _levers(pack: PackReader) -> ShownTable:
    rows = read_table(pack.folder).by_group()
    caption = "Passed cases by lever, the least and the most of its seeds"
    return ShownTable(caption, ("Cases", *list(rows[0])[1:]), tuple(_told(*row.values()) for row in rows))


def _exports(report: Mapping) -> ShownTable:
    columns = ("Export", "Size", "Answers that differ", "Fixed", "Broken", "Flagged")
    return ShownTable("The same cases before and after", columns, tuple(map(_export, report["exports"])))


def _export(card: Mapping) -> tuple[str, ...]:
    name = f"{card['kind']} {card['precision']}"
    if "not_run" in card:
        return _told(name, "", f"not run: {card['not_run']}", "", "", "")
    check, size = card["check"], sum(file["bytes"] for file in card["files"].values())
    changed = (", ".join(check[name]) or "none" for name in ("fixed", "broken"))
    differ = f"{len(check['answers_differ'])} of {check['cases']}"
    flagged = "yes" if check["flagged"] else "no"
    return _told(name, readable_size(size), differ, *changed, flagged)


def _told(*cells: object) -> tuple[str, ...]:
    return tuple(printable(str(cell)) for cell in cells)


def memory_peaks(pack: PackReader) -> list[tuple[str, float]]:
    """(what, MiB) for each peak of memory that the pack records: first run, training, and the server by clients."""
    first = _or_else(lambda: pack.fields(service.FIRST_RUN, ("Peak memory",))["Peak memory"].partition(" ")[0], None)
    run = _or_else(lambda: pack.json(training.RUN_ENVIRONMENT), {})
    levels = _or_else(lambda: pack.json(release.BENCHMARK)["levels"], [])
    said = [("first run", first), ("training", run.get("peak_memory_mib"))]
    said.append(("training, on the GPU", run.get("peak_gpu_memory_mib")))
    for level in levels[:4]:
        clients = _or_else(lambda level=level: f"server, clients: {int(level['concurrency'])}", "server")
        said.append((clients, _or_else(lambda level=level: level["peak_memory_mib"], None)))
    known = [(what, finite(size)) for what, size in said]
    return [(what, size) for what, size in known if size]


def _files(pack: PackReader, name: str) -> tuple[tuple[str, str, str], ...]:
    """The files of an artifact that are there, with relative links that open beside the report."""
    found = []
    for file in _FILES.get(name, ()):
        size = _or_else(lambda file=file: pack.path(file).stat().st_size, None)
        if size is not None:
            found.append((file, quote(file), readable_size(size)))
    return tuple(found)


def readable_size(size: int) -> str:
    """Bytes as people read them: 1 kB is 1,000 bytes."""
    for unit, scale in (("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"


def _or_else(read: Callable, default: object):
    """What `read` gives, or `default`: a stranger's file may be wrong in any way, and then it has no picture."""
    try:
        return read()
    except Exception:
        return default
