"""The command that says whether to fine-tune: adapt-decision."""

from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.app import JsonOption, OutOption, RouteOption, app, open_pack, print_json
from labkit.errors import LabError
from labkit.layout import DATA


@app.command("adapt-decision")
def adapt_decision(
    baseline: Annotated[Path, typer.Argument(help="pack, or eval_results.csv, of the run before any lever")],
    tried: Annotated[
        list[str] | None, typer.Option(help="LEVER=PACK of the same cases: prompt, schema, rag or quantization")
    ] = None,
    adapter_run: Annotated[Path | None, typer.Option(help="pack of the run after LoRA")] = None,
    full_run: Annotated[Path | None, typer.Option(help="pack of the run after full fine-tuning")] = None,
    train: Annotated[Path, typer.Option(help="the chats to train on")] = DATA / "train.jsonl",
    cases: Annotated[Path | None, typer.Option(help="the evaluation's cases (default: beside the baseline)")] = None,
    ask: Annotated[str, typer.Option(help="what is wanted: lora or full")] = "lora",
    owner: Annotated[str, typer.Option(help="who answers for the adapter")] = "",
    privacy: Annotated[str, typer.Option(help="of the training data: public, internal or personal")] = "",
    consent: Annotated[str, typer.Option(help="personal data: who consented, and where that stands")] = "",
    split: Annotated[str, typer.Option(help="how training and evaluation were kept apart (default: computed)")] = "",
    out: OutOption = None,
    route: RouteOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide between no LoRA and LoRA from failure tables; write lora_decision.md."""
    from dataclasses import asdict

    from labkit.decisions.adaptation import decide_adaptation, write_decision

    facts = decide_adaptation(
        baseline, _runs(tried or []), train, adapter_run, full_run, cases, ask, owner, privacy, consent, split
    )
    written = write_decision(open_pack(out, route), facts, baseline, adapter_run)
    drawn = {"decision": written.decision, "reason": written.reason, "next_action": written.next_action}
    refusals = [asdict(refusal) for refusal in written.refusals]
    if as_json:
        print_json({**drawn, "refusals": refusals, "facts": asdict(written)})
    else:
        print(f"{written.decision}\nreason: {written.reason}\nnext: {written.next_action}")
        for refusal in refusals[1:]:
            print(f"also: {refusal['name']}: {refusal['sentence']} ({refusal['next_action']})")


def _runs(tried: list[str]) -> dict[str, Path]:
    runs: dict[str, Path] = {}
    for text in tried:
        lever, _, path = text.partition("=")
        if not (lever and path):
            raise LabError(f"--tried {text} names no lever and pack", "write --tried prompt=PACK")
        if lever in runs:
            raise LabError(f"--tried {lever} was given twice", "give each lever once, with its best run")
        runs[lever] = Path(path)
    return runs
