"""How much memory a training step needs: LoRA, QLoRA and full fine-tuning of a Llama-architecture model.

The parts are not all there at once, so the estimate looks at three moments and takes the largest: the loss (every
saved activation, and the logits three times), the backward pass of a layer, and the optimizer's step. What
`torch.cuda.max_memory_allocated` shows is `torch_peak`; the CUDA context comes on top.
"""

from dataclasses import dataclass

from labkit.errors import LabError
from labkit.landscape.configs import PLAIN, model_at
from labkit.landscape.memory import GIB, OVERHEAD, both_units, size_text
from labkit.landscape.models import Model
from labkit.landscape.quantization import find_quantization
from labkit.landscape.saved_activations import (
    LORA_TARGETS,
    Step,
    checkpointed_bytes,
    layer_bytes,
    layer_working_bytes,
    linear_sizes,
    logits_bytes,
    saved_bytes,
)
from labkit.landscape.tables import UNKNOWN
from labkit.landscape.weights import weight_bytes

MODES = ("lora", "qlora", "full")
PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "overhead", "total", "torch_peak")
LLAMA_LIKE = (*PLAIN, "olmo2")  # their blocks are those that saved_activations.py counts
NEEDED = ("params_total_b", "layers", "hidden_size", "n_heads", "n_kv_heads", "head_dim", "intermediate_size", "vocab")


@dataclass(frozen=True)
class Precision:
    """How the trained numbers are kept; bytes per number. `states` are AdamW's two moments, which torch keeps in the
    type of the weight; `master` is an fp32 copy beside 16-bit weights; `copy` what autocast makes of each weight."""

    name: str
    trained: int
    gradient: int
    states: int
    master: int
    copy: int
    compute: int


# bf16: as torch.optim.AdamW on 16-bit weights. mixed: fp32 weights under autocast, which is the `bf16=True` of
# transformers' Trainer. bf16-master: 16-bit weights, fp32 master and moments, as DeepSpeed keeps them.
PRECISIONS = {
    row.name: row
    for row in (
        Precision("fp32", trained=4, gradient=4, states=8, master=0, copy=0, compute=4),
        Precision("bf16", trained=2, gradient=2, states=4, master=0, copy=0, compute=2),
        Precision("mixed", trained=4, gradient=4, states=8, master=0, copy=2, compute=2),
        Precision("bf16-master", trained=2, gradient=2, states=8, master=4, copy=0, compute=2),
    )
}
# An adapter is kept in fp32 by peft itself (autocast_adapter_dtype), also on a 16-bit model.
DEFAULTS = {"lora": ("bf16", "fp32"), "qlora": ("nf4-dq", "fp32"), "full": ("", "mixed")}


@dataclass(frozen=True)
class TrainingPlan:
    """What is trained, and how. `quant` is the format of the frozen weights ("" for the mode's own), `precision` that
    of the trained numbers. `keeps_logits`: the loop holds the model's whole output during backward, not the loss alone.
    """

    mode: str
    quant: str = ""
    precision: str = ""
    context: int = 512
    batch: int = 4
    rank: int = 16
    targets: tuple[str, ...] = LORA_TARGETS
    dropout: float = 0.05
    checkpointing: bool = False
    accumulate: int = 1
    keeps_logits: bool = False

    def __post_init__(self):
        for name in ("context", "batch", "rank", "accumulate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise LabError(
                    f"{name} is {value!r}", f"give --{'r' if name == 'rank' else name} as a whole number of at least 1"
                )
        if not 0 <= self.dropout < 1:
            raise LabError(f"dropout is {self.dropout}", "give --dropout as 0 or more, and below 1")
        unknown = sorted(set(self.targets) - set(LORA_TARGETS))
        if unknown or not self.targets:
            raise LabError(
                f"targets are {', '.join(unknown) or 'none'}", f"choose from {', '.join(LORA_TARGETS)}, comma-separated"
            )


@dataclass(frozen=True)
class TrainingMemory:
    """The parts in bytes, None where unknown. `moments` are what is there at the same time, without the CUDA context.

    `logits` counts the log-probabilities, and two gradients of that size, at the start of the backward pass.
    """

    model: str
    plan: TrainingPlan
    quant: str
    precision: str
    trainable: int | None
    weights: int | None
    adapter: int | None
    gradients: int | None
    optimizer: int | None
    activations: int | None
    logits: int | None
    overhead: int
    moments: tuple[tuple[str, int], ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def status(self) -> str:
        return UNKNOWN if self.reasons else "ok"

    @property
    def torch_peak(self) -> int | None:
        return max((size for _, size in self.moments), default=None)

    @property
    def total(self) -> int | None:
        return None if self.torch_peak is None else self.torch_peak + self.overhead

    def as_dict(self) -> dict:
        """What `labkit memory --mode … --json` prints: each part in GB and GiB, the moments, status and reasons.

        A training step keeps no key-value cache, so that part is 0.
        """
        sizes = both_units({"kv_cache": 0} | {part: getattr(self, part) for part in PARTS})
        plan = self.plan
        head = {"model": self.model, "mode": plan.mode, "quant": self.quant, "precision": self.precision}
        head |= {"context": plan.context, "batch": plan.batch, "gradient_checkpointing": plan.checkpointing}
        if plan.mode != "full":
            head |= {"rank": plan.rank, "targets": list(plan.targets), "dropout": plan.dropout}
        moments = {name: round(size / GIB, 4) for name, size in self.moments}
        end = {"status": self.status, "reasons": list(self.reasons), "notes": list(self.notes)}
        return {**head, "trainable_parameters": self.trainable, **sizes, "moments_gib": moments, **end}

    def as_text(self) -> str:
        """Lines for a terminal."""
        plan = self.plan
        kept = f"{self.quant} weights, " if self.quant else ""
        lines = [
            f"{self.model}, {plan.mode}, {kept}trained in {self.precision}, {plan.batch} x {plan.context:,} tokens"
        ]
        lines.append(f"Trainable parameters: {UNKNOWN if self.trainable is None else f'{self.trainable:,}'}")
        lines += [f"{part.replace('_', ' ').capitalize()}: {size_text(getattr(self, part))}" for part in PARTS]
        lines += [f"At {name}: {size_text(size)}" for name, size in self.moments]
        lines += [f"Status: {self.status}", *(f"Reason: {text}" for text in self.reasons)]
        return "\n".join([*lines, *(f"Note: {text}" for text in self.notes)]) + "\n"


def training_memory(model: str | Model, plan: TrainingPlan) -> TrainingMemory:
    """What training `model` (a row, a row's name, a folder or config.json) by `plan` needs on one GPU.

    Raises LabError for an unknown model, mode, format or precision, or formats that do not go together.
    """
    row = model_at(model) if isinstance(model, str) else model
    quant, precision = _formats(plan)
    missing = [name for name in NEEDED if not getattr(row, name)]
    if row.model_type not in LLAMA_LIKE or row.attention not in ("gqa", "mha") or missing:
        why = f"training: verify, {', '.join(missing)} unknown" if missing else "training: verify, not a plain layout"
        nothing = (None,) * 7
        return TrainingMemory(row.repo_id, plan, quant, precision.name, *nothing, OVERHEAD, (), (why,), ())
    return _estimate(row, plan, quant, precision)


def trainable_parameters(model: Model, plan: TrainingPlan) -> int:
    """LoRA: r * (inputs + outputs) for each target of each layer (Hu et al. 2021, arXiv 2106.09685). Full: all."""
    if plan.mode == "full":
        return round(model.params_total_b * 1e9)
    sizes = linear_sizes(model)
    return model.layers * plan.rank * sum(sum(sizes[name]) for name in plan.targets)


def copied_bytes(model: Model, plan: TrainingPlan, precision: Precision) -> int:
    """Autocast's copies of trained matrices, kept until backward. A look-up is not a product: an embedding that is not
    also the head gets none, and neither do the norms."""
    count = trainable_parameters(model, plan)
    if plan.mode == "full":
        looked_up = 0 if model.tied_embeddings else model.vocab * model.hidden_size
        count -= looked_up + (2 * model.layers + 1) * model.hidden_size
    return precision.copy * count


def _formats(plan: TrainingPlan) -> tuple[str, Precision]:
    """The format of the frozen weights ("" where none are frozen), and the precision of the trained numbers."""
    mode = plan.mode
    if mode not in MODES:
        raise LabError(f"there is no mode called {mode!r}", f"choose one of inference, {', '.join(MODES)}")
    quant, name = plan.quant or DEFAULTS[mode][0], (plan.precision or DEFAULTS[mode][1]).lower()
    if name not in PRECISIONS or (mode != "full" and name == "bf16-master"):
        known = [key for key in PRECISIONS if mode == "full" or key != "bf16-master"]
        raise LabError(f"--precision {name} is none for {mode}", f"choose one of {', '.join(known)}")
    quant = find_quantization(quant).format if quant else ""
    allowed = {"lora": ("bf16", "fp16", "fp32"), "qlora": ("nf4", "nf4-dq"), "full": ("bf16", "fp32", "")}[mode]
    if quant not in allowed:
        raise LabError(
            f"--quant {quant} cannot be trained by {mode}", f"choose one of {', '.join(filter(None, allowed))}"
        )
    if mode == "full" and quant:
        name = plan.precision.lower() or quant
        if (PRECISIONS[name].trained == 4) != (quant == "fp32"):
            raise LabError(f"--precision {name} has no {quant} weights", "leave --quant out: the precision says it")
    if quant == "fp32" and mode == "lora" and name != "fp32":
        raise LabError(f"an fp32 model with --precision {name} is not counted", "use --precision fp32 or --quant bf16")
    return quant if mode != "full" else "", PRECISIONS[name]


def training_step(plan: TrainingPlan, quant: str, precision: Precision, mask_bytes: int = 1) -> Step:
    """`plan` as autograd sees it; `mask_bytes` per number of a dropout mask is 1 on CUDA, the number's own on a CPU."""
    full, base = plan.mode == "full", 4 if quant == "fp32" else 2
    return Step(
        batch=plan.batch,
        context=plan.context,
        full=full,
        compute=precision.compute if full else base,
        residual=precision.trained if full else base,
        adapter=0 if full else precision.compute,
        casts=not full and precision.trained != base,
        own_inputs=full and bool(precision.copy),
        rank=0 if full else plan.rank,
        targets=() if full else plan.targets,
        dropout=0.0 if full else plan.dropout,
        mask_bytes=mask_bytes,
    )


def _estimate(row: Model, plan: TrainingPlan, quant: str, precision: Precision) -> TrainingMemory:
    step, trainable = training_step(plan, quant, precision), trainable_parameters(row, plan)
    full, reasons = plan.mode == "full", []
    trained = trainable * precision.trained
    weights, why = (trained, "") if full else weight_bytes(row, find_quantization(quant))
    reasons += [why] if why else []
    if weights is None:
        weights = 0
    stored = (checkpointed_bytes if plan.checkpointing else saved_bytes)(row, step)
    stored += copied_bytes(row, plan, precision)
    working = layer_working_bytes(row, step, plan.mode == "qlora")
    again = layer_bytes(row, step) if plan.checkpointing else 0
    held = step.compute * step.tokens * row.vocab if plan.keeps_logits else 0
    logits = 3 * logits_bytes(row, step) + held
    gradients, optimizer = trainable * precision.gradient, trainable * (precision.states + precision.master)
    base = weights + optimizer + (0 if full else trained)
    before = gradients if plan.accumulate > 1 else 0
    head = precision.gradient * row.vocab * row.hidden_size if full and not before else 0
    moments = (
        ("the loss", base + before + stored + logits),
        ("a layer's backward pass", base + before + stored + again + working + head + held),
        ("the optimizer's step", base + gradients + trainable * precision.states // 2),
    )
    return TrainingMemory(
        row.repo_id,
        plan,
        quant,
        precision.name,
        trainable,
        weights,
        0 if full else trained,
        gradients,
        optimizer,
        stored + again,
        logits,
        OVERHEAD,
        moments,
        tuple(reasons),
        _notes(plan),
    )


def _notes(plan: TrainingPlan) -> tuple[str, ...]:
    notes = [
        "the parts are not all there at once: the total is the largest moment and the CUDA context",
        "overhead is a constant that other tools use (650 MiB), not a measurement of your machine",
        "cuBLAS's workspace (about 8 MiB; 32 MiB on Hopper) is not counted",
        "fused attention without a padding mask and AdamW's multi-tensor step are assumed",
    ]
    if plan.mode != "full" and plan.dropout:
        notes.append("each target keeps its own copy of its input, because dropout makes one")
    if not plan.keeps_logits:
        notes.append("the loop keeps the loss alone; one that holds the model's output holds the logits once more")
    return tuple(notes)
