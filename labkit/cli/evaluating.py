"""What `labkit eval` does with its options: the levers, the judge, the run and the files for other tools."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.adaptation.prompts import find_prompt, read_prompt
from labkit.adaptation.rag import open_library
from labkit.cli.app import LOCAL_SERVER
from labkit.decoding import Sampling
from labkit.endpoint import root_url
from labkit.errors import LabError
from labkit.evaluation.cases import Case
from labkit.evaluation.export import EXPORTS, Export
from labkit.evaluation.judging import Judge, open_judge, with_grades
from labkit.evaluation.levers import Levers
from labkit.evaluation.records import cases_with_review, write_evaluation
from labkit.evaluation.resume import AnswersSoFar
from labkit.evaluation.runner import evaluate, run_id
from labkit.evaluation.targets import Target, endpoint_target, model_target
from labkit.evidence import Pack
from labkit.layout import EMBEDDED
from labkit.progress import AnswerDisplay
from labkit.serving.running import recorded_model


@dataclass(frozen=True)
class Run:
    target: Target
    sampling: Sampling
    levers: Levers
    concurrency: int
    repeats: int
    judge: Judge | None


def require_one_place(base_url: str | None, **here: str | None) -> None:
    """Raises LabError for an option of a model in this process that a server elsewhere would not honour."""
    given = [f"--{name}" for name, value in here.items() if value not in (None, "auto")]
    if base_url is not None and given:
        what = f"{' and '.join(given)} cannot be given together with --base-url"
        raise LabError(what, "the model of a server is chosen where it is started: give them to `labkit serve`")


def served(base_url: str, adapter: str) -> Target:
    """What a server answers with: `adapter` where it is given, else the model that labkit started there, or the first.
    Loads no torch."""
    return endpoint_target(base_url, model=adapter or recorded_model(base_url))


def loaded(model: str, device: str, dtype: str, backend: str | None, adapter: str) -> Target:
    """A model in this process."""
    from labkit.generation import load_chat_model

    return model_target(load_chat_model(model, device, dtype, backend, adapter=adapter))


def levers(rag: Sequence[Path] | None, prompt: str | None, schema: bool) -> Levers:
    return Levers(open_library(rag) if rag else None, find_prompt(prompt) if prompt else None, schema)


def judge(base_url: str | None, model: str | None, prompt: Path | None) -> Judge | None:
    if base_url is None:
        if model or prompt:
            raise LabError("there is no judge to give a model or a prompt to", "give --judge and its server's URL")
        return None
    return open_judge(base_url, model, read_prompt(prompt) if prompt else None)


def run(wanted: Run, pack: Pack, cases: Sequence[Case], resume: bool) -> dict:
    """Ask, judge, grade and write; returns the summary. What was answered is kept until it is written."""
    cases = cases_with_review(pack, cases)
    how = (wanted.concurrency, wanted.repeats)
    name = run_id(wanted.target, cases, wanted.sampling, *how, wanted.levers)
    so_far, total = AnswersSoFar(pack.folder, name, resume), len(cases) * wanted.repeats
    if resume:
        print(f"run {name}: {len(so_far.held)} of {total} answers are there already", file=sys.stderr)
    with AnswerDisplay(total) as display:
        results = evaluate(wanted.target, cases, wanted.sampling, display, wanted.levers, *how, so_far)
    if wanted.judge:
        with AnswerDisplay(total, "grades") as display:
            results = with_grades(wanted.judge, results, display)
    summary = write_evaluation(
        pack, results, wanted.target, wanted.sampling, levers=wanted.levers, concurrency=wanted.concurrency
    )
    if all(result.answered for result in results):
        so_far.remove()
    return summary


def export_cases(
    tool: str,
    out: Path | None,
    cases: Sequence[Case],
    levers: Levers,
    sampling: Sampling,
    base_url: str | None,
    model: str | None,
) -> None:
    """Write what `tool` needs to ask the cases at a server into the folder `out`, and say how it is run."""
    if tool not in EXPORTS:
        raise LabError(f"there is no export for {tool!r}", f"choose {' or '.join(EXPORTS)}")
    if out is None:
        raise LabError("there is no folder to export to", "give --out, for example --out exported")
    server = f"{root_url(LOCAL_SERVER if base_url is None else base_url)}/v1"
    print(EXPORTS[tool](Export(tuple(cases), levers, sampling, server, model or EMBEDDED), out))
