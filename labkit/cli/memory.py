"""The command that says how much memory a model needs, to answer and to train: memory."""

from typing import Annotated

import typer

from labkit.cli.app import JsonOption, app, print_json
from labkit.errors import LabError

LORA = "lora, qlora"
# Options that say nothing about answering, with the value that means "not given".
TRAINING = {"precision": "", "targets": "", "r": 16, "dropout": 0.05, "accumulate": 1}


@app.command()
def memory(
    model: Annotated[
        str, typer.Argument(help="a model of the landscape (a name or hub id), or a model's folder or config.json")
    ],
    quant: Annotated[
        str, typer.Option(help="format of the weights, for example bf16, int8, nf4, Q4_K_M (default: the mode's)")
    ] = "",
    context: Annotated[
        int | None, typer.Option(help="tokens of a sequence, prompt and answer (default: 4096, training 512)")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="sequences at once (default: 1, training 4)")] = None,
    prompt: Annotated[
        int | None, typer.Option(help="inference: tokens of a prompt that are read in one piece (default: the context)")
    ] = None,
    cards: Annotated[int, typer.Option(help="inference: GPUs that the layers are split over")] = 1,
    mode: Annotated[str, typer.Option(help="inference, lora, qlora or full")] = "inference",
    r: Annotated[int, typer.Option(help=f"{LORA}: rank of the adapter")] = 16,
    targets: Annotated[str, typer.Option(help=f"{LORA}: projections, comma-separated (default: all seven)")] = "",
    dropout: Annotated[float, typer.Option(help=f"{LORA}: dropout before the adapter")] = 0.05,
    precision: Annotated[
        str,
        typer.Option(help="of what is trained: fp32, bf16, mixed (autocast), bf16-master (default: fp32, full mixed)"),
    ] = "",
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="training: gradient checkpointing")] = False,
    accumulate: Annotated[int, typer.Option(help="training: batches for each optimizer step")] = 1,
    keep_logits: Annotated[
        bool, typer.Option("--keep-logits", help="training: the loop holds the model's output during backward")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Estimate memory before downloading or renting: each part and the total, in GB and GiB."""
    from labkit.landscape.memory import memory_estimate
    from labkit.landscape.saved_activations import LORA_TARGETS
    from labkit.landscape.training_memory import TrainingPlan, training_memory

    given = {"precision": precision, "targets": targets, "r": r, "dropout": dropout, "accumulate": accumulate}
    if mode.lower() == "inference":
        odd = [f"--{name}" for name, value in given.items() if value != TRAINING[name]]
        odd += ["--checkpointing"] * checkpointing + ["--keep-logits"] * keep_logits
        if odd:
            raise LabError(f"{', '.join(odd)} means nothing for inference", "add --mode lora, qlora or full")
        context, batch = 4096 if context is None else context, 1 if batch is None else batch
        estimate = memory_estimate(model, quant, context, batch, prompt, cards)
    elif prompt is not None or cards != 1:
        raise LabError("--prompt and --cards mean nothing for training", "leave them out, or leave --mode out")
    else:
        plan = TrainingPlan(
            mode=mode.lower(),
            quant=quant,
            precision=precision,
            context=512 if context is None else context,
            batch=4 if batch is None else batch,
            rank=r,
            targets=tuple(name.strip() for name in targets.split(",")) if targets else LORA_TARGETS,
            dropout=dropout,
            checkpointing=checkpointing,
            accumulate=accumulate,
            keeps_logits=keep_logits,
        )
        estimate = training_memory(model, plan)
    if as_json:
        print_json(estimate.as_dict())
    else:
        print(estimate.as_text(), end="")
