"""The command that trains: mini GPT-2 on a text, or a chat model from a recipe."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.app import DeviceOption, RouteOption, app, open_pack
from labkit.errors import LabError

WITH_RECIPE = ("recipe", "out", "device", "resume", "snapshot_seconds")


@app.command()
def train(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="folder for the training run, usually the evidence pack")],
    size: Annotated[str, typer.Option(help="tiny, mini, small or gpt2-124m: sets all of the numbers below")] = "mini",
    steps: Annotated[int | None, typer.Option(help="optimizer steps")] = None,
    minutes: Annotated[float, typer.Option(help="train for a time instead of --steps")] = 0.0,
    seed: Annotated[int, typer.Option(help="the same seed and machine give the same losses on a CPU")] = 13,
    device: DeviceOption = "auto",
    text: Annotated[Path | None, typer.Option(help="UTF-8 text file (default: the shop's corpus)")] = None,
    tokenizer: Annotated[str, typer.Option(help="bpe or char")] = "bpe",
    batch_size: Annotated[str | None, typer.Option(help="windows in one batch, or auto to find it")] = None,
    accumulate: Annotated[int | None, typer.Option(help="batches in one step")] = None,
    block_size: Annotated[int | None, typer.Option(help="context in tokens")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="entries of the bpe tokenizer")] = None,
    n_layer: Annotated[int | None, typer.Option(help="depth")] = None,
    n_head: Annotated[int | None, typer.Option(help="attention heads")] = None,
    n_embd: Annotated[int | None, typer.Option(help="width, a multiple of the heads")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="highest rate of the schedule")] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16")] = "auto",
    resume: Annotated[bool, typer.Option(help="go on with the run that was interrupted in --out")] = False,
    snapshot_seconds: Annotated[float, typer.Option(help="between snapshots; torchrun: one a log row")] = 20.0,
    parallel: Annotated[str, typer.Option(help="under torchrun: ddp or fsdp")] = "ddp",
    recipe: Annotated[Path | None, typer.Option(help="train the chat model of a recipe.yaml instead")] = None,
    route: RouteOption = None,
) -> None:
    """Train mini GPT-2 on a text, or a chat model from a recipe."""
    if recipe:
        _check_recipe_alone(name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE")
        _train_recipe(recipe, out, device, resume, snapshot_seconds)
        return
    from labkit.environment import choose_device
    from labkit.training.parallel import join_world, leave_world, wait_for_all
    from labkit.training.plan import SHOP_TEXT, MiniRun, check_run

    run = MiniRun.of_size(
        size,
        text=text or SHOP_TEXT,
        steps=steps,
        minutes=minutes,
        seed=seed,
        tokenizer=tokenizer,
        batch_size=_batch_size(batch_size),
        accumulate=accumulate,
        block_size=block_size,
        vocab_size=vocab_size,
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        learning_rate=learning_rate,
        precision=precision,
    )
    chosen = choose_device(device).name
    world = join_world(chosen, parallel)
    try:
        check_run(run, chosen, world)  # before the pack: a run that cannot start leaves no file
        _train(run, out, route, device=device, resume=resume, world=world, snapshot_seconds=snapshot_seconds)
        wait_for_all(world)
    finally:
        leave_world(world)


def _train(run, out: Path, route: str | None, world, **how: object) -> None:
    from labkit.progress import StepDisplay
    from labkit.training.mini_gpt2 import train_into_pack, train_mini_gpt2

    if not world.first:
        train_mini_gpt2(out, run, world=world, **how)
        return
    with StepDisplay(None if run.minutes else run.steps) as display:
        result = train_into_pack(open_pack(out, route), run, on_row=display, world=world, **how)
    print(f"{result.verdict}: held-out loss {result.rows[0].val_loss:.4f} -> {result.rows[-1].val_loss:.4f}")
    print(f"sample: {result.sample!r}")


def _check_recipe_alone(given: Iterable[str]) -> None:
    """Raises LabError for an option that a recipe would ignore, and for several processes."""
    if set(given) - set(WITH_RECIPE) or "WORLD_SIZE" in os.environ:
        what = "a recipe sets its text, sizes and steps itself and trains in one process"
        raise LabError(what, "give --recipe with --out, --device, --resume and --snapshot-seconds only")


def _batch_size(text: str | None) -> int | None:
    """The number, 0 for auto, None when not given. Raises LabError for anything else."""
    if text is None:
        return None
    if text == "auto":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise LabError(f"{text!r} is no batch size", "give a number of windows, or auto")
    return int(text)


def _train_recipe(recipe: Path, out: Path, device: str, resume: bool, snapshot_seconds: float) -> None:
    from labkit.progress import StepDisplay
    from labkit.training.recipe import read_recipe, train_from_recipe

    with StepDisplay(read_recipe(recipe).steps) as display:
        rows = train_from_recipe(recipe, out, device, display, resume, snapshot_seconds)
    print(f"saved {out.name}: held-out loss {rows[-1].val_loss:.4f}")
