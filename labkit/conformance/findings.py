"""The verdicts, the findings that carry them, and how one probe becomes a finding whatever the server does."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labkit.conformance.wire import Wire

DETAIL_LIMIT = 200  # characters; an error message of a stranger's server may be a page of HTML


class Verdict(StrEnum):
    """IGNORED is accepted and without effect; REFUSED a clear error of 4xx or 501; WRONG an answer against the API."""

    SUPPORTED = "supported"
    PARTLY = "partly"
    IGNORED = "ignored"
    REFUSED = "refused"
    WRONG = "wrong"
    NOT_OFFERED = "not offered"


Outcome = tuple[Verdict, str]


class Settled(Exception):
    """The verdict of a probe before its last check: the server refused, failed or fell silent."""

    def __init__(self, verdict: Verdict, detail: str):
        super().__init__(detail)
        self.outcome: Outcome = (verdict, detail)


class TimedOut(Settled):
    """No whole answer within the time of one request."""


@dataclass(frozen=True)
class Finding:
    """One line of the report: a feature, what the endpoint did with it, and the fact that shows it."""

    feature: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True)
class Probe:
    """One row of the table of probes. `sent` says in a line what is sent and what is right."""

    group: str
    feature: str
    check: Callable[["Wire"], Outcome]
    sent: str

    def ask(self, wire: "Wire") -> Finding:
        """Run the probe. Never raises: an answer that cannot even be read is a finding too."""
        try:
            verdict, detail = self.check(wire)
        except Settled as settled:
            verdict, detail = settled.outcome
        except Exception as error:
            verdict, detail = Verdict.WRONG, f"the answer could not be read ({type(error).__name__})"
        return Finding(self.feature, verdict, one_line(detail))


def one_line(text: str) -> str:
    """`text` on one line, without control characters, and shortened: it may quote a stranger's server."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 2 * DETAIL_LIMIT]).split())
    return line if len(line) <= DETAIL_LIMIT else line[:DETAIL_LIMIT] + " ..."
