"""Run the checks of a symptom on this machine, each once."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from labkit.doctor import machine, model, network, packages
from labkit.doctor.findings import Finding, Question, State, not_here
from labkit.doctor.table import Symptom, find_symptoms
from labkit.errors import LabError
from labkit.landscape.tables import age_text

CHECKS: dict[str, Callable[[Question], Finding]] = {
    check.__name__: check
    for check in (
        machine.gpu_memory,
        machine.model_fits,
        machine.free_memory,
        machine.free_disk,
        machine.device,
        machine.load,
        network.hub,
        network.hub_cache,
        network.port,
        packages.versions,
        packages.colab,
        packages.vllm,
        packages.widgets,
        model.licence,
        model.japanese,
    )
}

# What the workbook runs without: a problem for who names the symptom, and else only a limit.
UNNEEDED = ("hub", "vllm", "japanese")


@dataclass(frozen=True)
class Diagnosis:
    """One symptom, and what its checks found here."""

    symptom: Symptom
    findings: tuple[Finding, ...]


def examine(symptom: str = "", question: Question | None = None) -> tuple[Diagnosis, ...]:
    """The symptoms that the text `symptom` speaks of (all without it), each with its checks made on this machine.

    A check that several symptoms name is made once. Raises LabError for a text that fits no symptom, and for a port
    that is none.
    """
    asked = question or Question()
    if not 1 <= asked.port <= 65535:
        raise LabError(f"{asked.port} is not a port", "choose a --port from 1 to 65535")
    found: dict[str, Finding] = {}
    diagnoses = []
    for row in find_symptoms(symptom):
        for name in row.checks:
            found[name] = found.get(name) or _made(name, asked, bool(symptom.strip()))
        diagnoses.append(Diagnosis(row, tuple(found[name] for name in row.checks)))
    return tuple(diagnoses)


def _made(name: str, question: Question, named: bool) -> Finding:
    """The check's finding; one that cannot be made here says why, and stops no other. `named`: for a symptom that the
    learner has, not in a look at everything."""
    try:
        finding = CHECKS[name](question)
    except LabError as error:
        return not_here(name, str(error))
    only_a_limit = finding.state is State.PROBLEM and name in UNNEEDED and not named
    return replace(finding, state=State.LIMIT) if only_a_limit else finding


def exit_code(diagnoses: Sequence[Diagnosis]) -> int:
    """1 where a check found a problem, else 0. A limit, and what could not be checked here, is none."""
    return int(any(finding.state is State.PROBLEM for one in diagnoses for finding in one.findings))


def as_dict(diagnoses: Sequence[Diagnosis]) -> dict:
    """What `labkit doctor --json` prints."""
    return {
        "exit_code": exit_code(diagnoses),
        "symptoms": [
            {
                "symptom": one.symptom.symptom,
                "title": one.symptom.title,
                "first_check": one.symptom.first_check,
                "findings": [asdict(finding) for finding in one.findings],
                "fallback": one.symptom.fallback,
                "source_url": one.symptom.source_url,
                "age": age_text(one.symptom),
            }
            for one in diagnoses
        ],
    }
