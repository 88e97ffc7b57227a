"""Which rows of all tables are too old to trust."""

from collections.abc import Iterable
from datetime import date

from labkit.landscape.families import load_corrections, load_families
from labkit.landscape.licences import load_licences, load_model_licences
from labkit.landscape.models import load_models
from labkit.landscape.prices import load_prices
from labkit.landscape.published import load_published
from labkit.landscape.quantization import load_quantizations
from labkit.landscape.runtimes import load_runtime_support, load_runtimes
from labkit.landscape.tables import age_text, stale

TABLES = {
    "models.csv": load_models,
    "licences.csv": load_licences,
    "model_licence.csv": load_model_licences,
    "runtimes.csv": load_runtimes,
    "runtime_support.csv": load_runtime_support,
    "prices.csv": load_prices,
    "quantization.csv": load_quantizations,
    "published_memory.csv": load_published,
    "families.csv": load_families,
    "corrections.csv": load_corrections,
}


def stale_rows(today: date | None = None) -> list[dict[str, str]]:
    """The expired rows of every table: table, what the row is about, its age, where to look it up again."""
    return [
        {"table": table, "row": _about(row), "age": age_text(row, today), "source": row.source_url}
        for table, load in TABLES.items()
        for row in stale(load(), today)
    ]


def stale_summary(rows: Iterable[dict[str, str]]) -> list[str]:
    """One line for each table that has expired rows."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["table"]] = counts.get(row["table"], 0) + 1
    return [f"{table}: {count} of {len(TABLES[table]())} rows expired" for table, count in counts.items()]


def _about(row) -> str:
    names = ("repo_id", "licence_id", "model_type", "runtime", "provider", "gpu")
    return " / ".join(str(value) for name in names if (value := getattr(row, name, "")))
