"""Packs on which every rule can be tried: a healthy one, one with 13.6 in it, one of a rented GPU, one of Colab."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from healthy_pack import MODEL, REVISION, build_pack

from labkit.adaptation.decision import AdaptationDecision, Failure, Tried
from labkit.edge.decision import decide_export
from labkit.edge.measures import TOO_LONG, Checklist, EdgeCase, Latency, growth_of, measured_items, slope_of
from labkit.evidence import MANIFEST, Pack, csv_text, read_csv, read_manifest

RUN = "openllm_gpu_training_run"
LOG, REPORT, CHECKPOINT = f"{RUN}/training_log.csv", f"{RUN}/environment_report.json", f"{RUN}/mini_gpt2_checkpoint.pt"
GPU = "NVIDIA L40S"
EXPORTED = 64 * "0"  # the sha256 of the weights of an export
TRAINED = Tried("lora", 9, 10, 10, ("safety_007",), (), ())
FACTS = AdaptationDecision(
    asked_for="lora",
    model=MODEL,
    revision=REVISION,
    baseline="none",
    cases=10,
    repeats=1,
    failures=(Failure("safety_007", "safety", "contains_all"),),
    levers=(Tried("prompt", 9, 9, 10, (), (), ()),),
    trained=(TRAINED,),
    training_examples=60,
    different_examples=60,
    exact_overlap=0,
    near_overlap=0,
    owner="Data team",
    privacy="internal",
    consent="none",
    split="separate files",
)


MEMORY = tuple((10 * number, 300.0) for number in range(1, 9))
LATENCIES = (Latency(16, 0.01, 0.012), Latency(64, 0.02, 0.022), Latency(256, 0.06, 0.062))
SLOPE = slope_of([(row.tokens, 1000 * row.seconds) for row in LATENCIES])
EDGES = (EdgeCase("emoji", 12, ""), EdgeCase(TOO_LONG, 0, "the prompt is longer than the context"))
CHECKLIST = Checklist(
    model=MODEL,
    revision=REVISION,
    backend="onnx",
    dtype="int4",
    items=measured_items(LATENCIES, SLOPE, growth_of(MEMORY), MEMORY[-1][0], EDGES),
    latencies=LATENCIES,
    slope=SLOPE,
    memory=MEMORY,
    growth=growth_of(MEMORY),
    edge_cases=EDGES,
)


def change(folder: Path, *edits: tuple[str, str, str]) -> None:
    """Replace texts in files of the pack and record them, as a thorough forger would."""
    for name, old, new in edits:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text, f"{name} has no {old!r}"
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")
    record(folder, *(name for name, _, _ in edits))


def record(folder: Path, *names: str) -> None:
    pack = Pack(folder, read_manifest(folder)["route"])
    for name in names:
        pack.record(name, "13.4")


def set_keys(folder: Path, name: str, **keys: object) -> None:
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | keys))
    record(folder, name)


def remove(folder: Path, *names: str) -> None:
    for name in names:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def move_to(folder: Path, route: str) -> None:
    """The same pack, made on another route: the name of the route in every file that has one."""
    manifest = read_manifest(folder)
    (folder / MANIFEST).write_text(json.dumps(manifest | {"route": route}))
    for name in manifest["files"]:
        if name.endswith((".md", ".json")) and "local_cpu" in (text := (folder / name).read_text()):
            (folder / name).write_text(text.replace("local_cpu", route))
            record(folder, name)
    runtime = json.loads((folder / "model_runtime_decision.json").read_text())
    one = next(iter(runtime["routes"].values()))
    set_keys(
        folder, "model_runtime_decision.json", routes=dict.fromkeys(("local_cpu", "free_colab", "rented_gpu"), one)
    )


def put_on_cuda(folder: Path) -> None:
    """The training run, the evaluation and the benchmark on a GPU, for 500 steps, in every place that says so."""
    import torch

    change(folder, (LOG, ",cpu,", ",cuda,"), (LOG, "\n12,", "\n500,"))
    gpu = {"device": "cuda", "cuda": True, "gpu": GPU, "driver": "600.1", "peak_gpu_memory_mib": 900.0}
    set_keys(folder, REPORT, steps=500, verdict="CUDA acceptance", **gpu)
    change(folder, ("gpu_train_log.txt", "device: cpu", "device: cuda"), ("gpu_train_log.txt", "| cpu", "| cuda"))
    change(
        folder, ("gpu_train_log.txt", "step 12 ", "step 500 "), ("gpu_train_log.txt", "smoke test", "CUDA acceptance")
    )
    change(
        folder, (f"{RUN}/README.md", "smoke test", "CUDA acceptance"), (f"{RUN}/README.md", "Steps: 12", "Steps: 500")
    )
    change(folder, (f"{RUN}/README.md", "--steps 12", "--steps 500"))
    torch.save(torch.load(folder / CHECKPOINT, weights_only=True) | {"step": 500}, folder / CHECKPOINT)
    record(folder, CHECKPOINT)
    change(folder, ("gpu_train_log.txt", "gpu: none, driver none", f"gpu: {GPU}, driver 600.1"))
    name = "environment_report.txt"
    for file in (name, "requirements-freeze.txt", REPORT):  # a build of torch that has CUDA
        (folder / file).write_text((folder / file).read_text().replace("+cpu", "+cu130"))
        record(folder, file)
    change(folder, (name, "Device: cpu", "Device: cuda"), (name, "CUDA: not available", "CUDA: available"))
    change(folder, (name, "GPU: none", f"GPU: {GPU}"))
    set_keys(folder, "eval_summary.json", device="cuda")


def rent(folder: Path) -> None:
    move_to(folder, "rented_gpu")
    put_on_cuda(folder)
    set_keys(folder, "benchmark.json", device="cuda", claim="throughput of this GPU, model and load only")
    route = (folder / "compute_route.md").read_text()
    more = "- Budget: $3.00\n- Stop time: 2026-01-05T11:00+00:00\n- Evidence to copy back: everything\n"
    pack = Pack(folder, "rented_gpu")
    pack.write_text("compute_route.md", route + more, "13.1")
    plan = "- Hourly price: $0.80\n- Budget: $3.00, which pays for 3.8 hours\n- Stop time: 2026-01-05T11:00+00:00\n"
    pack.write_text("gpu_plan.md", plan, "13.1")
    gate = "| shutdown path | one command | process gone | pass | shutdown_proof.json |\n"
    pack.write_text("release_gates.md", (folder / "release_gates.md").read_text() + gate, "13.4")


def lend(folder: Path) -> None:
    move_to(folder, "free_colab")
    notes = "- Session: Google Colab\n- GPU in this session: none seen\n- Data rule: nothing private is uploaded\n"
    Pack(folder, "free_colab").write_text("colab_notes.md", notes, "13.1")


def adapt(folder: Path) -> None:
    """What lesson 13.6 leaves: the decision, the run after it, the adapter, and a table of one lever."""
    pack = Pack(folder, "local_cpu")
    pack.write_text("lora_decision.md", FACTS.as_markdown(), "13.6")
    rows = [_change(row) for row in read_csv(folder / "eval_results.csv")]
    pack.write_csv("before_after.csv", rows, list(rows[0]), "13.6")
    _write_adapter(pack)
    _write_levers(pack)


def _change(row: dict[str, str]) -> dict[str, str]:
    before = "pass" if row["pass"] == "true" else "fail"
    changed = {"before": before, "after": "pass", "change": "still passing" if before == "pass" else "fixed"}
    return {"case_id": row["case_id"], "risk": row["risk"], **changed, "lever": "lora"}


def _write_adapter(pack: Pack) -> None:
    import torch
    from safetensors.torch import save_file

    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    (pack.folder / "adapter").mkdir()
    matrices = {f"{layer}.lora_A.weight": torch.ones(4, 16), f"{layer}.lora_B.weight": torch.ones(16, 4)}
    save_file(matrices, pack.folder / "adapter" / "adapter_model.safetensors")
    pack.record("adapter", "13.6")
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}
    config |= {"base_model_name_or_path": f"data/models/{MODEL}"}  # the place, as `labkit lora` has it written
    pack.write_json("adapter/adapter_config.json", config, "13.6")
    pack.write_json("adapter/card.json", {"base_model": MODEL, "base_revision": REVISION}, "13.6")


def _write_levers(pack: Pack) -> None:
    from labkit.levers.table import write_table

    cases = [row | {"group": row["risk"]} for row in read_csv(pack.folder / "eval_cases.csv")]
    pack.write_csv("levers/cases.csv", cases, list(cases[0]), "13.6")
    results = read_csv(pack.folder / "eval_results.csv")
    mended = [row | {"pass": "true", "output": "x"} for row in results]
    for lever, rows in (("plain", results), ("schema", mended)):
        pack.write_csv(f"levers/{lever}/eval_results.csv", rows, list(rows[0]), "13.6")
        pack.write_json(
            f"levers/{lever}/run.json", {"seed": None, "speed": {"all": {"tokens_per_second": 9.0}}}, "13.6"
        )
    write_table(pack)


def to_the_edge(folder: Path) -> None:
    """What lesson 13.7 leaves, without llama.cpp: one export, its answers, the checklist, and the prompt template."""
    pack = Pack(folder, "local_cpu")
    rows = read_csv(folder / "eval_results.csv")
    for run, revision in (("source", REVISION), ("onnx-int4", EXPORTED[:12])):
        made = [row | {"revision": revision} for row in rows]
        pack.write_csv(f"edge/{run}/eval_results.csv", made, list(rows[0]), "13.7")
    check = {"cases": len(rows), "answers_differ": [], "share": 0.0, "limit": 0.2, "flagged": False}
    check |= {"passed": len(rows) - 1, "broken": [], "fixed": []}
    export = {"kind": "onnx", "precision": "int4", "tool": "builder", "command": "labkit export onnx", "check": check}
    export |= {"source": {"name": MODEL, "revision": REVISION, "files": {}}, "adapter": None, "versions": {}}
    export |= {"files": {"model.onnx": {"bytes": 4_000_000, "sha256": EXPORTED}}}
    exports = [export, {"kind": "gguf", "precision": "Q4_K_M", "not_run": "llama-cpp-python is not installed"}]
    pack.write_json("edge_report.json", {"exports": exports, "decision": asdict(decide_export(exports))}, "13.7")
    pack.write_json("quality_checklist.json", CHECKLIST.as_dict(), "13.7")
    template = {"user": "<user>{Content}", "assistant": "<assistant>{Content}", "prompt": "<user>{Content}<assistant>"}
    config = {"max_length": 1024, "temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}
    made = {"Name": "m", "Description": "an export", "Version": "1", "PromptTemplate": template, "ModelConfig": config}
    pack.write_json("inference_model.json", made, "13.7")


def guard(folder: Path) -> None:
    """What `labkit guard` leaves of the whole run beside the proof of 13.4's server."""
    proof = json.loads((folder / "shutdown_proof.json").read_text())
    limits = {"ended_because": "the command ended", "limit_seconds": 7200, "budget_usd": 3.0, "stop_at": None}
    limits["stop_at"] = "2026-01-05T11:00:00+00:00"
    Pack(folder, "rented_gpu").write_json("guard_proof.json", proof | {"guard": limits, "hook": "none"}, "13.4")


def all_gates_pass(folder: Path) -> None:
    """An evaluation in which nothing fails, and the gates that follow from it."""
    rows = [row | {"pass": "true", "output": "x"} for row in read_csv(folder / "eval_results.csv")]
    (folder / "eval_results.csv").write_text(csv_text(rows, list(rows[0])))
    record(folder, "eval_results.csv")
    by_risk = json.loads((folder / "eval_summary.json").read_text())["by_risk"]
    by_risk["safety"] = {"passed": 2, "failed": 0, "total": 2, "failed_ids": []}
    set_keys(folder, "eval_summary.json", by_risk=by_risk, failures=[])
    change(folder, ("release_gates.md", "1 of 2 passed | fail", "2 of 2 passed | pass"))


def review(folder: Path, note: str = "read: {case_id} says what the policy says") -> None:
    """The learner's own columns of eval_cases.csv, filled."""
    rows = read_csv(folder / "eval_cases.csv")
    rows = [row | {"pass": "true", "notes": note.format(**row)} for row in rows]
    (folder / "eval_cases.csv").write_text(csv_text(rows, list(rows[0])))


BASES = {
    "healthy": (),
    "adapted": (adapt,),
    "edge": (to_the_edge,),
    "rented": (rent,),
    "guarded": (rent, guard),
    "colab": (lend,),
}


def base_folder(root: Path, name: str) -> Path:
    """The pack `name` of BASES below `root`, built once."""
    folder = root / name
    if not folder.exists():
        healthy = root / "healthy"
        if not healthy.exists():
            build_pack(healthy)
        if name != "healthy":
            shutil.copytree(healthy, folder)
        for step in BASES[name]:
            step(folder)
    return folder
