"""Which export to ship: the smallest whose answers are still those of its source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SOURCE = "source"


@dataclass(frozen=True)
class EdgeDecision:
    """`choice` is kind and precision of an export, or "source" where none may be shipped; `refused` why each is not."""

    choice: str
    reason: str
    refused: dict[str, str]


def decide_export(exports: Sequence[Mapping]) -> EdgeDecision:
    """From the cards of the exports, as dicts, or for one that was not made a dict with `not_run`."""
    refused, candidates = {}, []
    for export in exports:
        name, why = label_of(export), _why_not(export)
        if why:
            refused[name] = why
        else:
            candidates.append((size_of(export), name, export["check"]))
    if not candidates:
        return EdgeDecision(SOURCE, "no export was checked and kept its answers", refused)
    size, name, check = min(candidates, key=lambda found: found[:2])
    differ = f"{len(check['answers_differ'])} of {check['cases']} answers differ, {len(check['broken'])} broken"
    return EdgeDecision(name, f"the smallest that is not flagged: {size / 1e6:.1f} MB, {differ}", refused)


def label_of(export: Mapping) -> str:
    return f"{export['kind']} {export['precision']}"


def size_of(export: Mapping) -> int:
    """Bytes of all files of an export."""
    return sum(file["bytes"] for file in export["files"].values())


def _why_not(export: Mapping) -> str:
    if export.get("not_run"):
        return f"not run: {export['not_run']}"
    if not export.get("check"):
        return "its answers were not compared with the source's"
    if export["check"]["flagged"]:
        return (
            f"flagged: {export['check']['share']:.0%} of its answers differ, {export['check']['limit']:.0%} are allowed"
        )
    return ""
