"""Commands that train on chats, and join what was trained to its base: lora, merge."""

from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.app import DeviceOption, ModelOption, app


@app.command()
def lora(
    data: Annotated[Path, typer.Argument(help='chats to learn: JSONL, {"messages": [...]} on each line')],
    out: Annotated[Path, typer.Option("--out", help="folder for the adapter, its log and its card")],
    model: ModelOption = "mini-instruct",
    preset: Annotated[str, typer.Option(help="mini (for the embedded model) or seed (QLoRA): sets all below")] = "mini",
    replay: Annotated[Path | None, typer.Option(help="chats of what must not be forgotten, mixed in")] = None,
    replay_share: Annotated[float | None, typer.Option(help="their share of each epoch, 0 to below 1")] = None,
    held_out: Annotated[Path | None, typer.Option(help="chats for the held-out loss, never trained on")] = None,
    held_out_share: Annotated[float | None, typer.Option(help="without --held-out: the share kept for it")] = None,
    r: Annotated[int | None, typer.Option("--r", help="rank of the adapter")] = None,
    alpha: Annotated[int | None, typer.Option(help="the adapter counts alpha / r times")] = None,
    dropout: Annotated[float | None, typer.Option(help="share of its input that the adapter does not see")] = None,
    targets: Annotated[str | None, typer.Option(help="layers, comma-separated (default: by architecture)")] = None,
    quant: Annotated[str | None, typer.Option(help="none, nf4 (QLoRA) or int8: how the frozen base is held")] = None,
    full: Annotated[bool | None, typer.Option("--full", help="train every weight; writes a checkpoint")] = None,
    epochs: Annotated[float | None, typer.Option(help="times that each chat is seen")] = None,
    steps: Annotated[int | None, typer.Option(help="optimizer steps, in place of --epochs")] = None,
    batch_size: Annotated[int | None, typer.Option(help="chats in one batch")] = None,
    accumulate: Annotated[int | None, typer.Option(help="batches in one step")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="highest rate of the schedule")] = None,
    warmup_share: Annotated[float | None, typer.Option(help="share of the steps in which the rate rises")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="AdamW's decay of matrices")] = None,
    max_length: Annotated[int | None, typer.Option(help="longest chat in tokens (default: the model's)")] = None,
    patience: Annotated[int | None, typer.Option(help="stop after so many log rows without a lower loss")] = None,
    log_every: Annotated[int | None, typer.Option(help="steps between two log rows")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16")] = None,
    checkpointing: Annotated[bool | None, typer.Option("--checkpointing", help="less memory, more time")] = None,
    seed: Annotated[int | None, typer.Option(help="order of the chats, split and first weights")] = None,
    trainer: Annotated[str, typer.Option(help="labkit, or trl for TRL's SFTTrainer")] = "labkit",
    device: DeviceOption = "auto",
    resume: Annotated[bool, typer.Option(help="go on with the run that was interrupted in --out")] = False,
    snapshot_seconds: Annotated[float, typer.Option(help="between snapshots")] = 20.0,
) -> None:
    """Fine-tune a model on chats: LoRA, QLoRA, or with --full every weight."""
    from labkit.adaptation.lora.settings import preset as named
    from labkit.errors import LabError

    if replay_share is not None and replay is None:
        raise LabError("--replay-share is of the chats of --replay, which is missing", "add --replay data/replay.jsonl")
    if held_out_share is not None and held_out is not None:
        raise LabError("--held-out gives the held-out chats, so no share is kept", "leave out one of the two options")
    settings = named(
        preset,
        replay_share=replay_share,
        held_out_share=held_out_share,
        r=r,
        alpha=alpha,
        dropout=dropout,
        targets=tuple(part.strip() for part in targets.split(",")) if targets else None,
        quant=quant,
        full=full,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        warmup_share=warmup_share,
        weight_decay=weight_decay,
        max_length=max_length,
        patience=patience,
        log_every=log_every,
        precision=precision,
        checkpointing=checkpointing,
        seed=seed,
    )
    from labkit.adaptation.lora.run import Sources, tune
    from labkit.evidence import recorded
    from labkit.progress import StepDisplay

    with recorded(out, "13.6"), StepDisplay(settings.steps or None) as display:
        done = tune(
            Sources(data, replay, held_out), out, model, settings, device, trainer, display, resume, snapshot_seconds
        )
    print(f"trained {done.trainable:,} of {done.total:,} parameters in {done.seconds} s, saved {out.name}")
    print(f"held-out loss {done.rows[0].val_loss:.4f} -> {done.kept_loss:.4f} (step {done.kept_step})")


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="folder that labkit lora wrote")],
    out: Annotated[Path, typer.Option("--out", help="folder for the checkpoint, empty or new")],
    model: Annotated[str, typer.Option("--model", help="where the adapter's base is (default: as on its card)")] = "",
) -> None:
    """Make one plain checkpoint of an adapter and its base model."""
    from labkit.adaptation.lora.merge import merge_adapter

    print(f"saved {merge_adapter(adapter, out, model).name}")
