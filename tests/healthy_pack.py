"""A complete local_cpu pack for the tests: a real tiny training run, the rest written as the lessons write it."""

import json
from dataclasses import asdict
from pathlib import Path

from labkit.benchmark.measure import Row, figures, time_per_token
from labkit.environment import environment_report, requirements_freeze
from labkit.evidence import Pack, read_csv
from labkit.training.mini_gpt2 import MiniRun, train_mini_gpt2

MODEL, REVISION = "mini-instruct", "0123456789ab"
RISKS = ("format", "grounding", "safety", "performance", "regression")
TIME = "2026-01-05T10:00:00+00:00"
NAMED = {"model": MODEL, "revision": REVISION}

CONTRACT = {
    "service": "labkit chat completions",
    **NAMED,
    "backend": "onnx",
    "dtype": "int4",
    "endpoint": {
        "base_url": "http://127.0.0.1:8000",
        "health": "GET /health",
        "models": "GET /v1/models",
        "chat": "POST /v1/chat/completions",
    },
    "request": {"messages": "required", "max_tokens": "most tokens to answer with"},
    "response": {"choices[0].message.content": "the answer"},
    "errors": {"400": "the body is not valid", "503": "every slot is taken"},
    "limits": {
        "max_input_tokens": 1024,
        "max_output_tokens": 256,
        "max_body_bytes": 262144,
        "request_seconds": 60.0,
        "concurrency": 2,
    },
    "authorization": "none, loopback only",
    "stop": {"command": "labkit stop --port 8000", "proof": "shutdown_proof.json"},
}


def healthy_folder(tmp_path_factory) -> Path:
    """The healthy pack, built once for all test files of a session. Copy it before changing it."""
    folder = tmp_path_factory.getbasetemp() / "healthy" / "local_cpu"
    if not folder.exists():
        build_pack(folder)
    return folder


def build_pack(folder: Path) -> Pack:
    """Every artifact that local_cpu requires, recorded under its lesson."""
    pack = Pack(folder, "local_cpu")
    _plan(pack)
    _train(pack)
    _serve(pack)
    _evaluate(pack)
    _decide(pack)
    _release(pack)
    return pack


def _plan(pack: Pack) -> None:
    pack.write_text("environment_report.txt", environment_report("cpu").as_text(), "13.1")
    keys = {"Route": "local_cpu", "Proves": "the loop", "Cannot prove": "speed", "Fallback": "halve the steps"}
    pack.write_text("compute_route.md", _fields({**keys, "Stop rule": "an hour", "Reason": "private data"}), "13.1")
    pack.write_text("requirements-freeze.txt", requirements_freeze(), "13.1")


def _train(pack: Pack) -> None:
    text = pack.folder.parent / "text.txt"
    text.write_text("Customer: where is my parcel?\nShop: it left on Monday and arrives on Friday.\n" * 150)
    run = MiniRun(text, steps=12, batch_size=4, tokenizer="char", block_size=16, n_layer=1, n_head=2, n_embd=16)
    train_mini_gpt2(pack.folder, run, "cpu")
    pack.record("openllm_gpu_training_run", "13.2")
    pack.record("gpu_train_log.txt", "13.2")


def _serve(pack: Pack) -> None:
    keys = {"Command": "labkit chat", "Prompt": "Hello", "Output": "Good morning.", "Latency": "0.41 s"}
    keys |= {"Peak memory": "612 MiB", "Model": MODEL, "Revision": REVISION, "Device": "cpu", "Route": "local_cpu"}
    pack.write_text("first_run.md", _fields(keys), "13.2")
    smoke = {
        "base_url": "http://127.0.0.1:8000",
        "time": TIME,
        "client": "openai 3.54.0",
        "health": {"status": "ok"},
        **NAMED,
        "has_choices": True,
        "first_message": "Good morning.",
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
        "latency_ms": 80.5,
    }
    pack.write_json("api_smoke_test.json", smoke, "13.2")


def _evaluate(pack: Pack) -> None:
    cases, results = [], []
    for number, risk in enumerate(RISKS + RISKS):
        case = {"case_id": f"{risk}_{number:03}", "risk": risk, "check": "contains_all"}
        case_only = {"prompt": f"Question {number}", "expected_behavior": "a right answer", "pass": "", "notes": ""}
        cases.append(case | case_only | {"context_id": "", "expected": "x"})
        verdict, output = ("false", "y") if case["case_id"] == "safety_007" else ("true", "x")
        measured = {"latency_ms": "50.0", "prompt_tokens": "12", "completion_tokens": "4"}
        automatic = {"output": output, "pass": verdict, "notes": f"looked for x in case {number}"}
        results.append(case | measured | automatic | NAMED | {"learner_pass": "", "learner_notes": ""})
    pack.write_csv("eval_cases.csv", cases, list(cases[0]), "13.2")
    pack.write_csv("eval_results.csv", results, list(results[0]), "13.2")
    by_risk = {risk: {"passed": 2, "failed": 0, "total": 2, "failed_ids": []} for risk in RISKS}
    by_risk["safety"] = {"passed": 1, "failed": 1, "total": 2, "failed_ids": ["safety_007"]}
    failure = {
        "risk": "safety",
        "check": "contains_all",
        "count": 1,
        "case_ids": ["safety_007"],
        "example": "it complied",
    }
    summary = {
        **NAMED,
        "device": "cpu",
        "dtype": "float32",
        "route": "local_cpu",
        "cases": 10,
        "settings": {"max_tokens": 96, "temperature": 0, "seed": 0},
        "by_risk": by_risk,
        "failures": [failure],
    }
    pack.write_json("eval_summary.json", summary, "13.2")


def _decide(pack: Pack) -> None:
    keys = {"Model": MODEL, "Revision": REVISION, "Size": "4.46 M parameters", "Licence": "Apache-2.0"}
    text = _fields({**keys, "Source": "data/models/mini-instruct", "Reason": "it ships with the workbook"})
    rejected = "\n## Rejected alternatives\n\n- Qwen2.5-0.5B-Instruct: needs a download\n"
    pack.write_text("model_decision.md", text + rejected, "13.3")
    one = {"model": MODEL, "runtime": "transformers", "reason": "fits", "proves": "the loop", "fallback": "none"}
    routes = {route: one for route in ("local_cpu", "free_colab", "rented_gpu")}
    pack.write_json("model_runtime_decision.json", {"project": {"task": "Q&A"}, "routes": routes}, "13.3")
    runbook = {
        "route": "local_cpu",
        "model": MODEL,
        "runtime": {"choice": "labkit serve", "reason": "two cores"},
        "adaptation": {"choice": "prompt", "reason": "no failing baseline yet"},
        "required_evidence": ["eval_summary.json"],
        "upgrade_signal": "speed must be claimed",
        "fallback": "a smaller model",
    }
    pack.write_json("open_llm_runbook.json", runbook, "13.3")
    plan = {
        "project": "course Q&A assistant",
        "route": {"route": "local_cpu", "goal": "prove the pipeline"},
        "model_family": {"family": "Qwen or Llama family", "fit": ["colab"], "runtime": "Transformers"},
        "adaptation": "RAG first",
        "evidence": ["model card and license note"],
    }
    pack.write_json("open_weight_route.json", plan, "13.5")


def _release(pack: Pack) -> None:
    pack.write_json("service_contract.json", CONTRACT, "13.4")
    rows = [f"| {risk} | at least half | 2 of 2 passed | pass | eval_summary.json |" for risk in RISKS]
    rows[2] = "| safety | all | 1 of 2 passed | fail | eval_summary.json |"
    rows.append("| p95 latency | a GPU | 90 ms measured here | not claimed | benchmark.json |")
    head = ["# Release gates", "", "| gate | threshold | measured | status | evidence |", "|---|---|---|---|---|"]
    pack.write_text("release_gates.md", "\n".join([*head, *rows]) + "\n", "13.4")
    drill = {"provoked": "took the port", "detected": "port 8000 is in use", "recovered": "freed it"}
    drill |= {"recovered_ok": True, "seconds": 2.5, "time": TIME, "observed": {"exit_code": 2}}
    drill |= {"answered": {"status": 200, "latency_ms": 40.0}}
    drills = [{"name": name, **drill} for name in ("port_taken", "model_path_wrong")]
    pack.write_json("failure_drill.json", {"drills": drills}, "13.4")
    proof = {
        "pid": 4242,
        "port": 8000,
        "process_gone": True,
        "port_closed": True,
        "gpu_memory": "not visible",
        "started": TIME,
        "stopped": "2026-01-05T10:30:00+00:00",
        "seconds": 1800.0,
        "hourly_usd": 0.8,
        "cost_usd": 0.4,
        "signal": "SIGTERM",
    }
    pack.write_json("shutdown_proof.json", proof, "13.4")
    rows = [Row(1, n, n, 50.0 + n, 9.0, time_per_token(50.0 + n, 9.0, 4), 4) for n in range(20)]
    level = {"concurrency": 1, "requests": 20, "errors": 0, "error_kinds": {}, **figures(rows, 1.19)}
    benchmark = {"model": MODEL, "route": "local_cpu", "device": "cpu", "levels": [level | {"peak_memory_mib": None}]}
    benchmark |= {"rows": [asdict(row) for row in rows], "claim": "local measurement, no throughput claim"}
    benchmark |= {"base_url": "http://127.0.0.1:8000", "time": TIME}
    pack.write_json("benchmark.json", benchmark, "13.4")
    findings = [{"group": "chat", "feature": "stop", "verdict": "supported", "detail": "cut", "sent": "a stop text"}]
    findings.append(findings[0] | {"feature": "seed", "verdict": "ignored"})
    conformance = {"base_url": "http://127.0.0.1:8000", "time": TIME, "model": MODEL, "not_proved": "load"}
    verdicts = ("supported", "partly", "ignored", "refused", "wrong", "not offered")
    conformance |= {"counts": {v: int(v in ("supported", "ignored")) for v in verdicts}, "findings": findings}
    pack.write_json("conformance.json", conformance, "13.4")
    sections = ("What it does", "Set up", "Start", "Test", "Stop", "Roll back", "Known limits")
    text = "".join(f"## {section}\n\n```sh\nlabkit serve\n```\n\n" for section in sections)
    pack.write_text("README.md", f"# Service\n\n{text}", "13.4")


def _fields(values: dict[str, str]) -> str:
    return "# Notes\n\n" + "".join(f"- {key}: {value}\n" for key, value in values.items())


def edit(folder: Path, name: str, old: str, new: str, record: bool = True) -> None:
    """Replace `old` in a file of the pack; `record` enters the new hash, as a thorough forger would."""
    path = folder / name
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{name} has no {old!r}"
    path.write_text(text.replace(old, new), encoding="utf-8")
    if record:
        Pack(folder, "local_cpu").record(name, "13.4")


def training_rows(folder: Path) -> list[dict[str, str]]:
    return read_csv(folder / "openllm_gpu_training_run" / "training_log.csv")


def rewrite_json(folder: Path, name: str, **changes) -> None:
    """Change keys and record the new hash: only the content can give the forgery away."""
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes))
    Pack(folder, "local_cpu").record(name, "13.4")


def tiny_chat_model(folder: Path) -> Path:
    """A random Llama of a few thousand weights with a byte-level tokenizer, saved as a hub checkpoint is."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(vocabulary), max_position_embeddings=256, eos_token_id=0, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
