"""The learner's training run: mini GPT-2 on a text file, interrupted and taken up again, and the evidence it leaves."""

from collections.abc import Callable
from pathlib import Path

import torch

from labkit.environment import environment_report
from labkit.evidence import Pack
from labkit.gpt2 import GPT2
from labkit.training.log import LogRow
from labkit.training.parallel import ALONE, World
from labkit.training.plan import MiniRun, as_interrupted, check_run, measured, prepare, tokens_per_second
from labkit.training.resume import SNAPSHOT_SECONDS, OtherRun, Snapshots
from labkit.training.run_files import RUN_FOLDER, TRACE, FinishedRun, write_run

LESSON = "13.2"
SNAPSHOT = f"{RUN_FOLDER}.resume.pt"  # beside the run folder and not in it: it is no evidence


def train_into_pack(pack: Pack, run: MiniRun, device: str = "auto", **more: object) -> FinishedRun:
    """`train_mini_gpt2` into the pack's folder, then every file entered into its manifest."""
    with pack.replacing(RUN_FOLDER, TRACE):
        result = train_mini_gpt2(pack.folder, run, device, **more)
        pack.record(RUN_FOLDER, LESSON)
        pack.record(TRACE, LESSON)
    return result


def continue_into_pack(pack: Pack, run: MiniRun, device: str = "auto", **more: object) -> FinishedRun:
    """`train_into_pack` for a notebook that is run again: goes on with this very run where it was interrupted.

    A snapshot of another run, whose numbers or device were changed since, is left behind.
    """
    try:
        return train_into_pack(pack, run, device, resume=True, **more)
    except OtherRun:
        return train_into_pack(pack, run, device, **more)


def train_mini_gpt2(
    out: Path,
    run: MiniRun,
    device: str = "auto",
    on_row: Callable[[LogRow], None] = lambda row: None,
    resume: bool = False,
    world: World = ALONE,
    snapshot_seconds: float = SNAPSHOT_SECONDS,
) -> FinishedRun | None:
    """Train and write RUN_FOLDER and TRACE into `out`. The same seed and machine give the same losses on a CPU.

    With `resume`, a run that was killed goes on from its last snapshot: on a CPU the log then has the losses of a run
    that was never interrupted. Raises LabError before anything is written for an absent device, an unusable text, or
    numbers that make no run, and later as `Trainer.run` does; then the last good snapshot stays. Returns None in a
    process of `world` that writes nothing.
    """
    report = environment_report(device)
    check_run(run, report.device, world)
    snapshots = Snapshots(Path(out) / SNAPSHOT, snapshot_seconds)
    if not resume and world.first:
        snapshots.discard()
    prepared = prepare(run)
    torch.manual_seed(run.seed)
    model = GPT2(prepared.config)
    if found := snapshots.numbers() if resume else {}:
        run = as_interrupted(run, **found)
    else:
        run = measured(run, lambda tried: tokens_per_second(prepared, model, tried, report.device))
    if report.device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # the measuring and whatever else this process did are not the run
    trainer = prepared.trainer(model, run, report.device, world=world)
    snapshots.describe(prepared.made_of(run, report.device, trainer.precision.name, world))
    if resume and snapshots.load(trainer):
        for row in trainer.rows:
            on_row(row)
    rows = trainer.run(on_row, snapshots.after_step)
    weights = trainer.state()["model"]  # every process holds a share of them, and process 0 gets them whole
    if not world.first:
        return None
    whole = GPT2(prepared.config)
    whole.load_state_dict(weights)
    done = FinishedRun(run, report, trainer.precision, whole.eval(), prepared.tokenizer, tuple(rows), world)
    write_run(out, done)
    snapshots.discard()
    return done
