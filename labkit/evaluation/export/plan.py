"""What is exported, and the README that says how it is run and what the other tool does not judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.decoding import Sampling
from labkit.evaluation.cases import Case
from labkit.evaluation.levers import Levers
from labkit.evidence import write_atomically

SCHEMA_LEFT_OUT = "`--schema`: the requests carry no response_format, so answers are not kept to a form"


@dataclass(frozen=True)
class Export:
    """The cases, what is changed against the plain run, how to decode, and the server: its URL with /v1, its model."""

    cases: tuple[Case, ...]
    levers: Levers
    sampling: Sampling
    base_url: str
    model: str

    def question(self, case: Case) -> str:
        """The last turn of what a case is asked, its note or passage included."""
        return self.levers.asked(case).messages[-1]["content"]

    @property
    def left_out(self) -> list[str]:
        return [SCHEMA_LEFT_OUT] if self.levers.constrained else []


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Raises LabError where the folder cannot be written."""
    for name, text in files.items():
        write_atomically(folder / name, text.encode("utf-8"))


def readme(title: str, command: str, words: Sequence[str], left_out: Sequence[str]) -> str:
    """How the files are run, and each check or lever that the other tool does not have."""
    listed = [f"- {line}" for line in left_out] or ["Everything was translated."]
    lines = [f"# {title}", "", "Start the server, then run in this folder:", "", f"    {command}", "", *words, ""]
    return "\n".join([*lines, "## Not translated", "", *listed]) + "\n"
