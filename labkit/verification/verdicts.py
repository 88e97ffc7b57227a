"""The three verdicts, the findings that carry them, and how a check's answer becomes one.

A check reads the pack and returns one sentence saying what it found, or raises NotYet or Contradiction. Anything else
it meets (a wrong type deep in a stranger's file) is also a verdict: a bad pack is a result, never a crash.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum

from labkit.errors import LabError

SCHEMA = 1
DETAIL_LIMIT = 300  # characters; a stranger's file may hold a name of ten megabytes
EXIT_SUPPORTED, EXIT_NOT_YET, EXIT_CONTRADICTED = 0, 1, 2


class Verdict(StrEnum):
    SUPPORTED = "supported"
    NOT_YET = "not yet"
    CONTRADICTED = "contradicted"


_SEVERITY = {Verdict.SUPPORTED: 0, Verdict.NOT_YET: 1, Verdict.CONTRADICTED: 2}


class NotYet(Exception):
    """The evidence is missing, unfilled or unreadable. The message says which part."""


class Contradiction(Exception):
    """Two facts in the pack disagree, or one is false by itself. The message names both sides."""


@dataclass(frozen=True)
class Outcome:
    """What one check said: a verdict and the sentence that explains it, fit to be printed."""

    verdict: Verdict
    detail: str

    def __post_init__(self):
        object.__setattr__(self, "detail", printable(self.detail))


@dataclass(frozen=True)
class Finding:
    """One line of the verification table. `next_action` is empty when nothing needs to be done.

    `required` is whether the exit code depends on it: a contradiction always counts, "not yet" only when required.
    """

    name: str
    lesson: str
    verdict: Verdict
    detail: str
    next_action: str
    required: bool


@dataclass(frozen=True)
class Verification:
    """Everything that was read back from one pack. `pack` is the folder's name, never its path."""

    pack: str
    route: str
    lesson: str | None
    artifacts: tuple[Finding, ...]
    cross_checks: tuple[Finding, ...]
    claims: tuple[Finding, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.artifacts + self.cross_checks + self.claims

    @property
    def exit_code(self) -> int:
        """2 when anything is contradicted, 1 when something required is not there yet, else 0."""
        if any(finding.verdict is Verdict.CONTRADICTED for finding in self.findings):
            return EXIT_CONTRADICTED
        missing = any(finding.required and finding.verdict is Verdict.NOT_YET for finding in self.findings)
        return EXIT_NOT_YET if missing else EXIT_SUPPORTED

    def as_dict(self) -> dict:
        """The document of `labkit verify --json`, described in verify.schema.json beside this file."""
        return {"schema": SCHEMA, "exit_code": self.exit_code, **asdict(self)}


def printable(text: str) -> str:
    """`text` on one line, without control characters or broken ones, and shortened: it may quote a hostile file."""
    part = text[: 2 * DETAIL_LIMIT]
    line = " ".join((part if part.isprintable() else "".join(c if c.isprintable() else " " for c in part)).split())
    return line if len(line) <= DETAIL_LIMIT else line[:DETAIL_LIMIT] + " ..."


def judge(check: Callable[..., str], *arguments: object) -> Outcome:
    """Run one check and turn whatever it does into an outcome. Only the interpreter's own exits pass through."""
    try:
        return Outcome(Verdict.SUPPORTED, check(*arguments))
    except NotYet as gap:
        return Outcome(Verdict.NOT_YET, str(gap))
    except Contradiction as conflict:
        return Outcome(Verdict.CONTRADICTED, str(conflict))
    except LabError as error:
        return Outcome(Verdict.NOT_YET, error.what)
    except Exception as error:
        return Outcome(Verdict.NOT_YET, f"the content could not be read ({type(error).__name__})")


def worst(outcomes: list[Outcome]) -> Outcome:
    """The gravest of `outcomes`, with the details of all that are as grave, each said once."""
    verdict = max((outcome.verdict for outcome in outcomes), key=_SEVERITY.__getitem__)
    details = dict.fromkeys(outcome.detail for outcome in outcomes if outcome.verdict is verdict and outcome.detail)
    return Outcome(verdict, "; ".join(details))
