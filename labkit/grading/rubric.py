"""A rubric: points for what a pack supports. One YAML file; data/rubrics/default.yaml explains each key."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from labkit.errors import LabError
from labkit.evidence import finite
from labkit.grading.standing import ARTIFACTS, CHECKS, CLAIM_NAMES, Standing
from labkit.layout import DATA
from labkit.routes import ROUTE_NAMES
from labkit.verification import Verdict

DEFAULT = DATA / "rubrics" / "default.yaml"
RUBRIC_BYTES = 2**20
_NAMES = frozenset((*ARTIFACTS, *CHECKS, *CLAIM_NAMES))


@dataclass(frozen=True)
class Criterion:
    """Points that are shared among `needs`, names of artifacts, cross-checks and claims. No `routes` means all."""

    title: str
    points: float
    needs: tuple[str, ...]
    routes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rubric:
    title: str
    criteria: tuple[Criterion, ...]

    def of_route(self, route: str) -> tuple[Criterion, ...]:
        return tuple(criterion for criterion in self.criteria if not criterion.routes or route in criterion.routes)


@dataclass(frozen=True)
class Mark:
    """What one criterion earned of what it could."""

    title: str
    points: float
    possible: float


def mark(criterion: Criterion, stands: Mapping[str, Standing]) -> Mark:
    """Each supported need earns its share; a contradicted one takes the whole criterion."""
    verdicts = [stands[name].verdict for name in criterion.needs]
    supported = verdicts.count(Verdict.SUPPORTED)
    earned = 0.0 if Verdict.CONTRADICTED in verdicts else criterion.points * supported / len(verdicts)
    return Mark(criterion.title, earned, criterion.points)


def score(marks: tuple[Mark, ...]) -> float:
    """Percent of the points that could be earned, to one decimal."""
    possible = sum(one.possible for one in marks)
    return round(100 * sum(one.points for one in marks) / possible, 1) if possible else 0.0


def actions_by_gain(rubric: Rubric, route: str, stands: Mapping[str, Standing], most: int = 3) -> tuple[str, ...]:
    """The most useful next actions: contradictions first, then what earns the most points, each action once."""
    gains: dict[str, float] = {}
    names: dict[str, list[str]] = {}
    for criterion in rubric.of_route(route):
        for name in criterion.needs:
            if stands[name].verdict is not Verdict.SUPPORTED:
                action = stands[name].next_action
                gains[action] = gains.get(action, 0.0) + criterion.points / len(criterion.needs)
                names.setdefault(action, []).append(name)
    denied = {stand.next_action: name for name, stand in stands.items() if stand.verdict is Verdict.CONTRADICTED}
    for action, name in denied.items():
        gains.setdefault(action, 0.0)
        names.setdefault(action, [name])
    order = sorted(gains, key=lambda action: (action not in denied, -gains[action], action))
    return tuple(f"{_listed(names[action])}: {action}" for action in order[:most])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def load_rubric(path: Path | None = None) -> Rubric:
    """The rubric in `path`, or the default one. Raises LabError for a file that is not a rubric, with the place."""
    path = DEFAULT if path is None else Path(path)
    try:
        if path.stat().st_size > RUBRIC_BYTES:
            raise _wrong(path, "is larger than a rubric can be")
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise LabError(f"there is no rubric {path.name}", "copy data/rubrics/default.yaml, or give none") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise _wrong(path, f"cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, dict) or set(values) != {"title", "criteria"} or not isinstance(values["criteria"], list):
        raise _wrong(path, "needs the keys title and criteria, and criteria is a list")
    if not _is_text(values["title"]):
        raise _wrong(path, "has a title that is no text")
    criteria = tuple(_criterion(path, place, value) for place, value in enumerate(values["criteria"], start=1))
    titles = [criterion.title for criterion in criteria]
    if not titles or len(set(titles)) < len(titles):
        raise _wrong(path, "needs criteria, each with a title of its own")
    return Rubric(values["title"], criteria)


def _criterion(path: Path, place: int, value: object) -> Criterion:
    where = f"criterion {place}"
    if not isinstance(value, dict) or not {"title", "points", "needs"} <= set(value) <= set(Criterion.__annotations__):
        raise _wrong(path, f"{where} needs title, points and needs, and may have routes")
    if not _is_text(value["title"]):
        raise _wrong(path, f"{where} has a title that is no text")
    points, needs, routes = finite(value["points"]), value["needs"], value.get("routes", [])
    if points is None or isinstance(value["points"], bool) or points <= 0:
        raise _wrong(path, f"{where} has points that are not a number above zero")
    for names, known, what in ((needs, _NAMES, "artifact, cross-check or claim"), (routes, ROUTE_NAMES, "route")):
        if not isinstance(names, list) or (strange := [str(name) for name in names if str(name) not in known]):
            raise _wrong(path, f"{where} names {', '.join(strange) if isinstance(names, list) else names}, no {what}")
    if not needs or len(set(needs)) < len(needs):
        raise _wrong(path, f"{where} needs at least one name, and none twice")
    return Criterion(value["title"], points, tuple(needs), tuple(routes))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _wrong(path: Path, what: str) -> LabError:
    return LabError(f"the rubric {path.name} {what}", "compare it with data/rubrics/default.yaml", where=path.name)
