"""What lesson 13.7 leaves in a pack: the exports with their checks, the checklist, and inference_model.json."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from labkit.edge.checklist import GENERATIONS, run_checklist
from labkit.edge.convert import Source, artifact_of, export_gguf, export_onnx, source_of
from labkit.edge.decision import EdgeDecision, decide_export, label_of, size_of
from labkit.edge.fidelity import LIMIT, answers_of, compare_answers
from labkit.edge.foundry_local import loaded_in_foundry
from labkit.edge.measures import Checklist
from labkit.errors import LabError
from labkit.evaluation.cases import EVAL_CASES, Case, load_cases
from labkit.evaluation.records import RESULT_COLUMNS, result_row
from labkit.evaluation.runner import Result
from labkit.evaluation.targets import Target, model_target
from labkit.evidence import Pack
from labkit.export.card import read_export_card
from labkit.export.foundry import inference_model
from labkit.export.inference_model import INFERENCE_MODEL
from labkit.generation import EMBEDDED, ChatModel, load_chat_model

LESSON = "13.7"
REPORT, CHECKLIST, RUNS = "edge_report.json", "quality_checklist.json", "edge"
EXPORTS = (("onnx", "int4"), ("onnx", "int8"), ("gguf", "Q4_K_M"), ("gguf", "Q8_0"))
HALF = "bfloat16"
FOUNDRY = "onnx int4"  # the export that is laid out for Foundry Local
NO_FOUNDRY = f"no {FOUNDRY} export was made here"
Event = Callable[[str], None]


@dataclass
class EdgeTask:
    """One model taken to the edge: what is converted, and the cases that every export is asked.

    `runs` holds the answers so far: of the source under "source", of an export under its kind and precision. `formats`
    are checks of the source itself in another number format, which is no export.
    `folder` keeps the exports for as long as the task lives.
    """

    model: str = EMBEDDED
    adapter: Path | None = None
    cases: Sequence[Case] = field(default_factory=lambda: load_cases(EVAL_CASES))
    limit: float = LIMIT
    runs: dict[str, list[Result]] = field(default_factory=dict)
    exports: dict[str, dict] = field(default_factory=dict)
    formats: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="labkit-edge-")
        self.folder = Path(self._scratch.name)

    def made(self) -> list[str]:
        """The exports that were made and asked; others could not be made here."""
        return [name for name, export in self.exports.items() if not export.get("not_run")]

    def load(self, name: str) -> ChatModel:
        return load_chat_model(str(artifact_of(self.folder / name)))


def convert(pack: Pack, task: EdgeTask, kind: str, precision: str, on_event: Event = lambda text: None) -> dict:
    """Export, ask every case, compare with the source, and leave the answers in the pack; the export's card as a dict.

    Where a package is missing, or the model is of an architecture that cannot be converted, the dict says so under
    not_run. Raises LabError for a model or an adapter that is none.
    """
    name = f"{kind} {precision}"
    on_event(f"{name}: converting")
    out = task.folder / name
    with source_of(task.model, task.adapter) as source:
        _ask_source(pack, task, source)
        try:
            (export_onnx if kind == "onnx" else export_gguf)(source, out, precision)
        except LabError as error:
            return _kept(pack, task, {"kind": kind, "precision": precision, "not_run": error.what})
    check = _checked(pack, task, name, task.load(name), on_event)
    return _kept(pack, task, {**asdict(read_export_card(out)), "check": check})


def recast(pack: Pack, task: EdgeTask, dtype: str = HALF, on_event: Event = lambda text: None) -> dict:
    """The source itself in the number format `dtype`: what fewer bits change without another runtime, as a check.

    Raises LabError for a model or an adapter that is none, and for a format that torch does not have.
    """
    with source_of(task.model, task.adapter) as source:
        _ask_source(pack, task, source)
        model = load_chat_model(str(source.folder), "cpu", dtype)
    task.formats[dtype] = check = _checked(pack, task, dtype, model, on_event)
    write_report(pack, task)
    return check


def card_text(export: Mapping) -> str:
    """What an export's card says of its origin, for people."""
    if export.get("not_run"):
        return f"not run: {export['not_run']}"
    adapter = export["adapter"]
    made_of = [export["source"], *([adapter] if adapter else [])]
    hashes = [f"{part['name']}, {file}: sha256 {sha}" for part in made_of for file, sha in part["files"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in export["versions"].items())
    files = [f"{name}: {held['bytes']:,} bytes, sha256 {held['sha256'][:12]}" for name, held in export["files"].items()]
    return "\n".join(["made of", *hashes, f"by {export['command']}", f"with {versions}", "files", *files])


def difference_table(task: EdgeTask) -> list[dict]:
    """A row for the source in each other format, and for each export with its size: what became of the answers."""
    rows = [_row(f"source in {dtype}", "", check) for dtype, check in task.formats.items()]
    return rows + [_export_row(export) for export in task.exports.values()]


def _export_row(export: Mapping) -> dict:
    if not export.get("not_run"):
        return _row(label_of(export), f"{size_of(export) / 1e6:.2f}", export["check"])
    blank = {"MB": "", "passed": "", "answers that differ": "", "broken": "", "fixed": ""}
    return {"format": label_of(export), **blank, "answers that differ": f"not run: {export['not_run']}"}


def _row(name: str, size: str, check: Mapping) -> dict:
    return {
        "format": name,
        "MB": size,
        "passed": f"{check['passed']}/{check['cases']} (source {check['source_passed']})",
        "answers that differ": f"{len(check['answers_differ'])} ({check['share']:.0%})",
        "broken": check["broken"],
        "fixed": check["fixed"],
    }


def _ask_source(pack: Pack, task: EdgeTask, source: Source) -> None:
    if "source" not in task.runs:
        _asked(pack, task, "source", model_target(load_chat_model(str(source.folder), "cpu", "float32")))


def _checked(pack: Pack, task: EdgeTask, name: str, model: ChatModel, on_event: Event) -> dict:
    """Ask every case and compare with the source's answers."""
    _asked(pack, task, name, model_target(model))
    check = compare_answers(task.runs["source"], task.runs[name], task.limit)
    on_event(f"{name}: {check.sentence}")
    return check.as_dict()


def _asked(pack: Pack, task: EdgeTask, name: str, target: Target) -> list[Result]:
    """Ask and keep, as a run that `labkit compare` reads."""
    task.runs[name] = results = answers_of(target, task.cases)
    rows = (result_row(result, target) for result in results)
    spoken = ({**row, "pass": str(row["pass"]).lower()} for row in rows)
    pack.write_csv(f"{RUNS}/{name.replace(' ', '-')}/eval_results.csv", spoken, RESULT_COLUMNS, LESSON)
    return results


def _kept(pack: Pack, task: EdgeTask, export: dict) -> dict:
    task.exports[label_of(export)] = export
    write_report(pack, task)
    return export


def write_report(pack: Pack, task: EdgeTask, foundry: Mapping | None = None) -> EdgeDecision:
    """edge_report.json: every export with its card and check, the source's other formats, what Foundry Local did, and
    the decision that follows."""
    exports = list(task.exports.values())
    decision = decide_export(exports)
    tried = dict(foundry or {"not_run": "not tried"})
    report = {"exports": exports, "formats": task.formats, "foundry": tried, "decision": asdict(decision)}
    pack.write_json(REPORT, report, LESSON)
    return decision


def configure(pack: Pack, task: EdgeTask, name: str) -> dict:
    """inference_model.json of the int4 export under the name `name`, written into the pack; without one, why not."""
    if FOUNDRY not in task.made():
        return {"not_run": NO_FOUNDRY}
    made = inference_model(task.folder / FOUNDRY, name, f"{name}: an int4 ONNX export for a CPU, made by labkit")
    pack.write_json(INFERENCE_MODEL, made, LESSON)
    return made


def try_foundry(pack: Pack, task: EdgeTask, name: str) -> dict:
    """Register the int4 export with Foundry Local, ask it the cases, unregister it: what happened, or why it was not
    run. The report in the pack has it too."""
    try:
        if FOUNDRY not in task.made():
            raise LabError(NO_FOUNDRY, "install what the conversion lacks")
        with loaded_in_foundry(task.folder / FOUNDRY, name) as local:
            results = _asked(pack, task, "foundry", local.target)
            said = {"model_id": local.model_id, "listed": list(local.listed)}
        found = said | compare_answers(task.runs["source"], results, task.limit).as_dict()
    except LabError as error:
        found = {"not_run": error.what}
    write_report(pack, task, found)
    return found


def check_quality(pack: Pack, task: EdgeTask, generations: int = GENERATIONS) -> Checklist | None:
    """The checklist of the first export that was made, written into the pack; None where none could be."""
    if not task.made():
        return None
    name = task.made()[0]
    found = run_checklist(task.load(name), task.runs["source"], task.runs[name], task.limit, generations)
    pack.write_json(CHECKLIST, found.as_dict(), LESSON)
    return found
