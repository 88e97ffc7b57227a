"""Pull a lever: train where it trains, ask every case, and leave the answers in the pack.

`levers/<lever>/` in the pack (`levers/<lever>-<seed>/` for a trained one) has eval_results.csv, which `labkit compare`
and `labkit adapt-decision` read as a run, and run.json: what was changed, what training cost, how fast answers came.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from labkit.adaptation.lora.base import find_base
from labkit.adaptation.lora.run import LoraRun, Sources, tune
from labkit.adaptation.lora.settings import PRESETS
from labkit.adaptation.prompts import find_prompt
from labkit.adaptation.rag import open_library
from labkit.environment import choose_device
from labkit.errors import LabError
from labkit.evaluation.cases import COLUMNS, EVAL_CASES, Case, load_cases
from labkit.evaluation.compare import read_run
from labkit.evaluation.levers import Levers
from labkit.evaluation.records import RESULT_COLUMNS, failure_table, result_row, speed
from labkit.evaluation.runner import evaluate
from labkit.evaluation.targets import Target, model_target
from labkit.evidence import Pack
from labkit.generation import EMBEDDED, ChatModel, Sampling, load_chat_model
from labkit.generation.backends import BITSANDBYTES
from labkit.generation.bits import require_bitsandbytes
from labkit.layout import DATA
from labkit.levers.plan import CASES, FOLDER, LESSON, LEVERS, PLAIN, RESULTS, RUN, Lever
from labkit.levers.table import base_revision

UPDATE_CASES, LABEL_CASES, RARE_CASES = (
    DATA / f"{name}.csv" for name in ("update_cases", "label_cases", "rare_label_cases")
)
ADAPTER = "adapter"  # the pack's own: that of the lever "lora" and the first seed
NEW_POLICY, NEW_FORM, RARE_WORDS = "new policy", "new form", "rare words"
Event = Callable[[str], None]


def case_groups() -> dict[str, tuple[Case, ...]]:
    """The columns of the table: the cases of each risk, those about notes that came after training, and those of the
    form that the model was never taught, with words of the shop and with words that no training shows."""
    groups: dict[str, list[Case]] = {}
    for case in load_cases(EVAL_CASES):
        groups.setdefault(case.risk, []).append(case)
    groups |= {NEW_POLICY: load_cases(UPDATE_CASES), NEW_FORM: load_cases(LABEL_CASES)}
    groups[RARE_WORDS] = load_cases(RARE_CASES)
    return {name: tuple(cases) for name, cases in groups.items()}


@dataclass(frozen=True)
class LeverTask:
    """What every lever is tried on: one model, the same cases, the same decoding, the same chats to train on."""

    model: str = EMBEDDED
    device: str = "auto"
    groups: Mapping[str, Sequence[Case]] = field(default_factory=case_groups)
    data: Path = DATA / "train.jsonl"
    replay: Path = DATA / "replay.jsonl"
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=96))

    @property
    def cases(self) -> list[Case]:
        return [case for cases in self.groups.values() for case in cases]


def pull_all(
    pack: Pack,
    task: LeverTask,
    levers: Sequence[Lever] = LEVERS,
    seeds: Sequence[int] = (13,),
    on_event: Event = lambda text: None,
) -> None:
    """Pull each of `levers` alone, the trained ones once for each of `seeds`. Raises LabError as `pull` does.

    A number format that this machine cannot run, because bitsandbytes is absent or has no code for the device, is told
    as not run, and the others go on.
    """
    for lever in levers:
        if why := _cannot_run(lever.dtype, task.device):
            on_event(f"{lever.name}: not run: {why}")
            continue
        for seed in seeds if lever.trained else seeds[:1]:
            pull(pack, lever, task, seed, on_event)


def with_plain(pack: Pack, levers: Sequence[Lever], model: str = EMBEDDED) -> list[Lever]:
    """`levers`, with the plain run of `model` first where neither they nor the pack have it: a lever is nothing
    without it, and a run on other weights is another model's."""
    plain = pack.path(f"{FOLDER}/{PLAIN.name}")
    there = PLAIN in levers or (
        (plain / RESULTS).is_file() and base_revision(read_run(plain)) == find_base(model).revision
    )
    return list(levers) if there else [PLAIN, *levers]


def _cannot_run(dtype: str, device: str) -> str:
    """Why no model can be loaded in `dtype` here; empty where one can."""
    if dtype not in BITSANDBYTES:
        return ""
    try:
        require_bitsandbytes(dtype, choose_device(device).name)
    except LabError as error:
        return error.what
    return ""


def pull(pack: Pack, lever: Lever, task: LeverTask, seed: int = 13, on_event: Event = lambda text: None) -> dict:
    """Pull one lever and leave its run in the pack; returns run.json.

    Raises LabError for a model that cannot be loaded, a number format that this machine cannot run, and as `tune` does.
    """
    on_event(f"{lever.name}: {lever.title}" + (f", seed {seed}" if lever.trained else ""))
    with _tuned(pack, lever, task, seed, on_event) as (folder, trained):
        target = model_target(_load(lever, task, folder))
        levers = _levers(lever)
        results = evaluate(target, task.cases, task.sampling, levers=levers, concurrency=target.concurrency)
    name = run_name(lever, seed)
    run = {
        "lever": asdict(lever) | {"tuning": asdict(lever.tuning) if lever.tuning else None},
        "seed": seed if lever.trained else None,
        "levers": levers.as_dict(),
        "target": _facts(target),
        "speed": speed(results),
        "failures": failure_table(results),
        "training": _training(trained) if trained else None,
    }
    rows = (result_row(result, target, levers) for result in results)
    spoken = (row | {"pass": str(row["pass"]).lower()} for row in rows)
    with pack.replacing(f"{FOLDER}/{name}"):
        pack.write_csv(f"{FOLDER}/{name}/{RESULTS}", spoken, RESULT_COLUMNS, LESSON)
        pack.write_json(f"{FOLDER}/{name}/{RUN}", run, LESSON)
    cases = (case.as_row() | {"group": group} for group, found in task.groups.items() for case in found)
    pack.write_csv(f"{FOLDER}/{CASES}", cases, (*COLUMNS, "group"), LESSON)
    return run


def run_name(lever: Lever, seed: int) -> str:
    return f"{lever.name}-{seed}" if lever.trained else lever.name


def _levers(lever: Lever) -> Levers:
    return Levers(
        library=open_library() if lever.rag else None,
        prompt=find_prompt(lever.prompt) if lever.prompt else None,
        constrained=lever.constrained,
    )


def _load(lever: Lever, task: LeverTask, tuned: Path | None) -> ChatModel:
    """The model as the lever has it: its base, its base in another format, with an adapter, or a tuned checkpoint."""
    if tuned and lever.tuning.full:
        return load_chat_model(str(tuned), task.device)
    return load_chat_model(task.model, task.device, lever.dtype, adapter=str(tuned or ""))


@contextmanager
def _tuned(
    pack: Pack, lever: Lever, task: LeverTask, seed: int, on_event: Event
) -> Iterator[tuple[Path | None, LoraRun | None]]:
    """What training leaves, in a folder that goes again; the adapter of the lever "lora" stays in the pack."""
    if not lever.trained:
        yield None, None
        return
    settings = replace(lever.tuning, seed=seed)
    sources = Sources(task.data, task.replay if settings.replay_share else None)
    with tempfile.TemporaryDirectory(prefix="labkit-") as scratch:
        folder = Path(scratch) / lever.name
        done = tune(sources, folder, task.model, settings, task.device)
        on_event(f"{lever.name}: trained in {done.seconds:.0f} s, held-out loss {done.kept_loss:.3f}")
        if lever.name == "lora" and not (pack.path(ADAPTER) / "card.json").exists():
            _keep(folder, pack)
        yield folder, done


def _keep(adapter: Path, pack: Pack) -> None:
    """Copy the adapter into the pack whole or not at all: a run killed in between must find nothing half done."""
    half = pack.path(f".{ADAPTER}")
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(adapter, half)
    shutil.rmtree(pack.path(ADAPTER), ignore_errors=True)
    half.rename(pack.path(ADAPTER))
    pack.record(ADAPTER, LESSON)


def _training(done: LoraRun) -> dict:
    return {
        "seconds": done.seconds,
        "steps": done.rows[-1].step,
        "trainable_parameters": done.trainable,
        "total_parameters": done.total,
        "held_out_loss": round(done.kept_loss, 4),
        "base_revision": done.base.revision,
    }


def _facts(target: Target) -> dict:
    return {name: getattr(target, name) for name in ("model", "revision", "device", "dtype", "backend")}


def bases_compared(task: LeverTask, steps: int = 8) -> list[dict]:
    """The first steps of LoRA on the base as it is and on the base in 4 bits (QLoRA), on this machine: seconds for a
    step after the first one, and the held-out loss before and after."""
    rows = []
    for quant, base in (("none", "16 or 32 bits"), ("nf4", "nf4")):
        if why := _cannot_run("" if quant == "none" else quant, task.device):
            rows.append({"base": base, "seconds a step": f"not run: {why}", "loss before": "", "loss after": ""})
            continue
        settings = replace(PRESETS["mini"], quant=quant, steps=steps, log_every=1)
        with tempfile.TemporaryDirectory(prefix="labkit-") as scratch:
            done = tune(Sources(task.data, task.replay), Path(scratch) / quant, task.model, settings, task.device)
        second, last = done.rows[2], done.rows[-1]
        each = (last.elapsed_seconds - second.elapsed_seconds) / (last.step - second.step)
        loss = {"loss before": f"{done.rows[0].val_loss:.3f}", "loss after": f"{last.val_loss:.3f}"}
        rows.append({"base": base, "seconds a step": f"{each:.2f}", **loss})
    return rows
