"""Lies that a person made by hand and entered into the manifest: each is told by the rule that it is a lie against."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rule_packs import CHECKLIST, base_folder, change, record, set_keys

from labkit.benchmark.measure import Row, figures
from labkit.evidence import MANIFEST, csv_text, read_csv, read_manifest
from labkit.levers.table import COLUMNS, TABLE, read_table
from labkit.verification import Verdict, verify
from labkit.verification import overclaims as over
from labkit.verification.row_checks import embedded_revision
from labkit.verification.wording import claims, plain

Change = Callable[[Path], None]
CARD = "card.json"


def keys(name: str, **values: object) -> Change:
    return lambda folder: set_keys(folder, name, **values)


def said(name: str, old: str, new: str) -> Change:
    return lambda folder: change(folder, (name, old, new))


def readme(sentence: str) -> Change:
    return said("README.md", "# Service\n", f"# Service\n\n{sentence}\n")


def rows(name: str, **cells: str) -> Change:
    def edit(folder: Path) -> None:
        held = [row | cells for row in read_csv(folder / name)]
        (folder / name).write_text(csv_text(held, list(held[0])))
        record(folder, name)

    return edit


def levels(**values: object) -> Change:
    def edit(folder: Path) -> None:
        held = json.loads((folder / "benchmark.json").read_text())["levels"]
        set_keys(folder, "benchmark.json", levels=[level | values for level in held])

    return edit


def every_lever_passes(folder: Path) -> None:
    """The runs below levers/ and the table that follows from them, edited alike."""
    rows("levers/schema/eval_results.csv", **{"pass": "true", "output": "y"})(folder)
    (folder / TABLE).write_text(csv_text(read_table(folder).as_rows(), COLUMNS))
    record(folder, TABLE)


def recorded_in(year: int) -> Change:
    def edit(folder: Path) -> None:
        manifest = read_manifest(folder)
        manifest["files"]["first_run.md"]["written"] = f"{year}-01-01T00:00:00+00:00"
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return edit


def edited_case(folder: Path) -> None:
    """The expected value of a case, changed after its answer was judged."""
    held = [row | {"expected": "z"} for row in read_csv(folder / "eval_cases.csv")]
    (folder / "eval_cases.csv").write_text(csv_text(held, list(held[0])))


def other_lines(folder: Path) -> None:
    held = read_csv(folder / "eval_results.csv")
    lines = (json.dumps({"case_id": row["case_id"], "pass": True}) + "\n" for row in held)
    (folder / "eval_results.jsonl").write_text("".join(lines))
    record(folder, "eval_results.jsonl")


def fast_summary(folder: Path) -> None:
    speed = {"completion_tokens": 40, "seconds": 0.01, "tokens_per_second": 4000.0}
    set_keys(folder, "eval_summary.json", speed={"all": speed})


def export(**values: object) -> Change:
    def edit(folder: Path) -> None:
        report = json.loads((folder / "edge_report.json").read_text())
        report["exports"][0] |= values
        set_keys(folder, "edge_report.json", exports=report["exports"])

    return edit


def export_check(**values: object) -> Change:
    def edit(folder: Path) -> None:
        held = json.loads((folder / "edge_report.json").read_text())["exports"][0]["check"]
        export(check=held | values)(folder)

    return edit


def slow_prompt(folder: Path) -> None:
    held = json.loads((folder / "quality_checklist.json").read_text())["latencies"]
    set_keys(folder, "quality_checklist.json", latencies=[row | {"slowest": 9.0} for row in held])


def one_gpu_second(folder: Path) -> None:
    """A p95 gate of a rented GPU that passes with a number of its own."""
    gate = "| p95 latency | at most 5000 ms on a rented GPU | 12 ms over 20 requests | pass | benchmark.json |"
    old = "| p95 latency | a GPU | 90 ms measured here | not claimed | benchmark.json |"
    change(folder, ("release_gates.md", old, gate))


def wide(text: str) -> str:
    """The full-width forms of ASCII, which Japanese keyboards write."""
    return "".join(chr(ord(letter) + 0xFEE0) if letter > " " else letter for letter in text)


def answer(row: int, **cells: str) -> Change:
    """One row of eval_results.csv."""

    def edit(folder: Path) -> None:
        held = read_csv(folder / "eval_results.csv")
        held[row] |= cells
        (folder / "eval_results.csv").write_text(
            csv_text(held, [*held[0], *(key for key in cells if key not in held[0])])
        )
        record(folder, "eval_results.csv")

    return edit


def request(number: int, **values: object) -> Change:
    """One row of benchmark.json, with levels that follow from the rows."""

    def edit(folder: Path) -> None:
        report = json.loads((folder / "benchmark.json").read_text())
        report["rows"][number] |= values
        rows = [Row(**row) for row in report["rows"]]
        level = report["levels"][0] | figures(rows, report["levels"][0]["seconds"])
        set_keys(folder, "benchmark.json", rows=report["rows"], levels=[level])

    return edit


def drill(number: int, **values: object) -> Change:
    def edit(folder: Path) -> None:
        drills = json.loads((folder / "failure_drill.json").read_text())["drills"]
        drills[number] |= values
        set_keys(folder, "failure_drill.json", drills=drills)

    return edit


def gate(name: str, measured: str, status: str, evidence: str) -> Change:
    row = f"| {name} | a threshold | {measured} | {status} | {evidence} |\n| p95"
    return said("release_gates.md", "| p95", row)


def part(name: str, key: str, **values: object) -> Change:
    """Some keys of an object in a JSON file."""
    return lambda folder: set_keys(folder, name, **{key: json.loads((folder / name).read_text())[key] | values})


def in_order(*changes: Change) -> Change:
    def edit(folder: Path) -> None:
        for each in changes:
            each(folder)

    return edit


def table(name: str, **cells: str) -> Change:
    """A table of number formats; `cells` are those of its second row."""
    first = {"format": "float32", "backend": "transformers", "dtype": "float32", "size_bytes": "17840000"}
    first |= {"tokens_per_second": "90", "perplexity": "1.5", "kl": "0", "top1_agreement": "1"}
    second = first | {"format": "onnx-int4", "backend": "onnx", "dtype": "int4", "size_bytes": "4000000", "kl": "0.01"}

    def edit(folder: Path) -> None:
        (folder / name).write_text(csv_text([first, second | cells], list(first)))
        record(folder, name)

    return edit


def notebook(name: str, title: str, printed: str = "", error: bool = False, route: str = "local_cpu") -> Change:
    """An executed copy as papermill leaves it, as small as it can be."""
    outputs: list[dict] = [{"output_type": "stream", "name": "stdout", "text": [printed or "ran\n"]}]
    outputs += [{"output_type": "error", "ename": "RuntimeError", "evalue": "", "traceback": []}] if error else []
    cells = [{"cell_type": "markdown", "metadata": {}, "source": [f"# {title}"]}]
    cells += [{"cell_type": "code", "metadata": {}, "source": [f'route = "{route}"\n'], "outputs": outputs}]

    def edit(folder: Path) -> None:
        (folder / "notebooks").mkdir(exist_ok=True)
        (folder / "notebooks" / name).write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4}))
        record(folder, f"notebooks/{name}")

    return edit


def copied_run(folder: Path) -> None:
    """The answers of the source as those of an export, whose times are then the source's, case for case."""
    for run in ("source", "onnx-int4"):
        name = f"edge/{run}/eval_results.csv"
        held = [row | {"latency_ms": f"{50 + at}.0"} for at, row in enumerate(read_csv(folder / name))]
        (folder / name).write_text(csv_text(held, list(held[0])))
        record(folder, name)


def lever_never_pulled(folder: Path) -> None:
    name = "levers/schema/run.json"
    held = json.loads((folder / name).read_text())
    set_keys(folder, name, **held, lever={"name": "schema", "constrained": True, "rag": False, "prompt": ""})
    rows("levers/schema/eval_results.csv", levers="plain")(folder)


def prompt_run(folder: Path) -> None:
    """A run of the lever prompt that mends a case, beside a decision that says that it mended none."""
    shutil.copytree(folder / "levers" / "schema", folder / "levers" / "prompt")
    record(folder, "levers/prompt/eval_results.csv", "levers/prompt/run.json")


def embedded_answers(folder: Path) -> None:
    """Answers that say that they are the embedded model's, with the text of a longer one."""
    set_keys(folder, "eval_summary.json", revision=embedded_revision())
    rows("eval_results.csv", revision=embedded_revision(), output="x " + 20 * "xq7-")(folder)


PUBLIC, SPEED = f"no overclaim: {over.PUBLIC}", f"no overclaim: {over.SPEED_ELSEWHERE}"
TOKENS, LOAD, GATES = (
    "answers fit their tokens and times",
    "benchmark agrees with its log",
    "gates repeat the evaluation",
)
LEVERS, NOTEBOOKS = "decision rests on the levers' runs", "executed notebooks"
EXPORTED = {"model.onnx": {"bytes": 4_000_000, "sha256": 64 * "f"}}
LIES = {
    "a gate passes below its threshold": (
        "healthy",
        said("release_gates.md", "1 of 2 passed | fail", "1 of 2 passed | pass"),
        "gates repeat the evaluation",
        "passes safety with 1 of 2, and a release needs 2",
    ),
    "a gate without evidence": (
        "healthy",
        said("release_gates.md", "| p95", "| accuracy | high | 100 % | pass | trust me |\n| p95"),
        "release_gates.md",
        "on the evidence of trust me",
    ),
    "one package in two versions": (
        "healthy",
        said("requirements-freeze.txt", "torch==", "torch==9.0\ntorch=="),
        "requirements-freeze.txt",
        "pins torch twice",
    ),
    "a p95 that nothing measured": ("rented", one_gpu_second, "gates repeat the evaluation", "benchmark.json says"),
    "a file of the future": ("healthy", recorded_in(2999), "times in order", "which is still to come"),
    "a case edited after its answer": ("healthy", edited_case, "verdicts follow from the answers", "was edited since"),
    "other verdicts in the second file": ("healthy", other_lines, "verdicts follow from the answers", "safety_007"),
    "a check that does not exist": (
        "healthy",
        lambda folder: (
            rows("eval_results.csv", check="sounds_good")(folder),
            rows("eval_cases.csv", check="sounds_good")(folder),
        ),
        "verdicts follow from the answers",
        "no check called 'sounds_good'",
    ),
    "full-width digits": (
        "healthy",
        rows("eval_results.csv", latency_ms=wide("50.0")),
        "eval_results.csv",
        wide("50.0"),
    ),
    "digits with a separator": ("healthy", rows("eval_results.csv", latency_ms="5_0.0"), "eval_results.csv", "'5_0.0'"),
    "levers and table edited alike": ("adapted", every_lever_passes, "lever_table.csv", "its answer fails the check"),
    "requests faster than their answers": (
        "healthy",
        levels(seconds=0.1, tokens_per_second=800.0),
        "benchmark.json",
        "too long for 1 clients",
    ),
    "tokens per second of no row": ("healthy", fast_summary, "eval_summary.json", "in at least 0.5 s"),
    "a benchmark of a smaller model": (
        "healthy",
        keys("benchmark.json", model="tiny"),
        "one model throughout",
        "benchmark.json says tiny",
    ),
    "features of another model": (
        "healthy",
        keys("conformance.json", model="other"),
        "one model throughout",
        "conformance.json says other",
    ),
    "a server that is another": (
        "healthy",
        keys("api_smoke_test.json", health={"status": "ok", "model": "other", "revision": "1"}),
        "one model throughout",
        "health in api_smoke_test.json says other",
    ),
    "an open service without keys": (
        "healthy",
        said("service_contract.json", "http://127.0.0.1", "http://0.0.0.0"),
        PUBLIC,
        "serves at 0.0.0.0 without authorization",
    ),
    "a claim over two lines": ("healthy", readme("This is production\nready."), PUBLIC, "README.md says"),
    "a claim in bold": ("healthy", readme("This is **production** ready."), PUBLIC, "README.md says"),
    "a claim in full-width letters": (
        "healthy",
        readme(f"It is {wide('production ready')}."),
        PUBLIC,
        "README.md says",
    ),
    "a claim with unseen characters": ("healthy", readme("It is pro\u200bduction ready."), PUBLIC, "README.md says"),
    "a claim in Japanese": ("healthy", readme("本番環境で利用可能です。"), PUBLIC, "README.md says"),
    "a speed in Japanese": ("healthy", readme("毎秒1万トークンを処理します。"), SPEED, "README.md says"),
    "a claim in the gates": (
        "healthy",
        said("release_gates.md", "# Release gates\n", "# Release gates\n\nIt serves 5,000 users.\n"),
        SPEED,
        "release_gates.md says",
    ),
    "a claim in the open route": (
        "healthy",
        said("open_weight_route.json", "prove the pipeline", "a production ready API"),
        PUBLIC,
        "open_weight_route.json says",
    ),
    "a size that the model has not": (
        "healthy",
        said("model_decision.md", "Size: 4.46 M", "Size: 7 B"),
        "model_decision.md",
        "says 7 B parameters, the landscape",
    ),
    "a licence that the model has not": (
        "healthy",
        said("model_decision.md", "Licence: Apache-2.0", "Licence: MIT, any use is permitted"),
        "model_decision.md",
        "mini-instruct stands under Apache License 2.0",
    ),
    "an adapter of two bases": (
        "adapted",
        keys("adapter/adapter_config.json", base_model_name_or_path="meta-llama/Llama-3-8B"),
        "adapter/",
        "adapter_config.json says meta-llama/Llama-3-8B",
    ),
    "an adapter of somebody else's base of that name": (
        "adapted",
        lambda folder: (
            keys("adapter/card.json", base_model="meta-llama/Llama-3-8B")(folder),
            keys("adapter/adapter_config.json", base_model_name_or_path="somebody/Llama-3-8B")(folder),
        ),
        "adapter/",
        "adapter_config.json says somebody/Llama-3-8B",
    ),
    "an adapter of another size": (
        "adapted",
        keys(f"adapter/{CARD}", trainable_parameters=10**9),
        "adapter/",
        "holds 128",
    ),
    "passes of an export that its answers lack": (
        "edge",
        export_check(passed=10),
        "edge_report.json",
        "onnx int4: passed",
    ),
    "cases that no export was asked": ("edge", export_check(cases=1000), "edge_report.json", "onnx int4: cases"),
    "an export of another size": (
        "edge",
        export(files={"model.onnx": {"bytes": 6, "sha256": 64 * "0"}}),
        "edge_report.json",
        "less than a bit",
    ),
    "the card of another export": ("edge", export(files=EXPORTED), "edge_report.json", "none of the card's files"),
    "an export of another source": (
        "edge",
        export(source={"name": "big", "revision": "another", "files": {}}),
        "edge_report.json",
        "the card of onnx int4 says another",
    ),
    "answers of another engine": (
        "edge",
        lambda folder: (
            rows("edge/onnx-int4/eval_results.csv", backend="transformers")(folder),
            record(folder, "edge_report.json"),
        ),
        "edge_report.json",
        "was answered by transformers",
    ),
    "a checklist against its latencies": ("edge", slow_prompt, "quality_checklist.json", "latency over length"),
    "an answer longer than its tokens": (
        "healthy",
        answer(0, output="x " * 9),
        TOKENS,
        "9 words in 4 tokens",
    ),
    "an answer that the tokenizer counts otherwise": (
        "healthy",
        embedded_answers,
        TOKENS,
        "says 4 tokens, its answer has",
    ),
    "an answer in no time": ("healthy", answer(0, latency_ms="0.0"), TOKENS, "4 tokens in no time"),
    "a first token after the last": ("healthy", answer(0, ttft_ms="99.0"), TOKENS, "first token after 99 ms"),
    "more tokens than were allowed": (
        "healthy",
        answer(0, completion_tokens="97", max_tokens="96"),
        TOKENS,
        "and 96 were allowed",
    ),
    "answers of another number format": ("healthy", answer(0, quantization="int4"), TOKENS, "says quantization int4"),
    "answers of another temperature": ("healthy", answer(0, temperature="1.5"), TOKENS, "says temperature 1.5"),
    "answers with a lever": (
        "healthy",
        in_order(rows("eval_results.csv", levers="schema"), keys("eval_summary.json", levers={})),
        TOKENS,
        "with the levers schema",
    ),
    "a run that is another's copy": ("edge", copied_run, TOKENS, "has the latencies of"),
    "one case asked twice": (
        "healthy",
        said("eval_cases.csv", "Question 1,", "Question 6,"),
        "eval_cases.csv",
        "asks 1 cases twice",
    ),
    "other answers in the second file": (
        "healthy",
        in_order(other_lines, said("eval_results.jsonl", '"pass": true}', '"pass": true, "output": "w"}')),
        "verdicts follow from the answers",
        "differ, first in safety_007",
    ),
    "a request that begins after it ended": ("healthy", request(0, ttft_ms=60.0), LOAD, "first token after 60 ms"),
    "a time per token of no row": ("healthy", request(0, tpot_ms=0.1), LOAD, "says 0.1 ms per token"),
    "requests per second of no row": ("healthy", levels(requests_per_second=900.0), LOAD, "900 requests per second"),
    "more tokens than the benchmark asked for": (
        "healthy",
        keys("benchmark.json", max_tokens=3),
        LOAD,
        "and 3 were allowed",
    ),
    "a benchmark beyond the contract": (
        "healthy",
        in_order(part("service_contract.json", "limits", max_output_tokens=3), keys("benchmark.json")),
        LOAD,
        "allows max_output_tokens 3, and gave 4",
    ),
    "a benchmark longer than its server": (
        "healthy",
        in_order(
            keys("shutdown_proof.json", stopped="2026-01-05T10:00:00+00:00", seconds=0.0, cost_usd=0.0),
            levels(seconds=100.0, tokens_per_second=0.8, requests_per_second=0.2),
        ),
        LOAD,
        "ran for 0 s",
    ),
    "a failure that was none": (
        "healthy",
        drill(0, observed={"exit_code": 0}),
        "failure_drill.json",
        "observed no failure",
    ),
    "a failure seen after its end": (
        "healthy",
        drill(0, observed={"exit_code": 2, "seconds": 9.0}),
        "failure_drill.json",
        "was seen after 9 s",
    ),
    "a drill that ended after it was written": (
        "healthy",
        drill(0, seconds=1e9),
        "times in order",
        "the drill port_taken",
    ),
    "a gate that passes a drill that failed": (
        "healthy",
        in_order(drill(0, recovered_ok=False), gate("failure drill", "2 of 2 recovered", "pass", "failure_drill.json")),
        GATES,
        "failure_drill.json says 1 of 2",
    ),
    "a gate of a faster answer": (
        "healthy",
        gate("smoke test", "answered in 3 ms", "pass", "api_smoke_test.json"),
        GATES,
        "says 80.5 ms",
    ),
    "a gate of wider limits": (
        "healthy",
        gate("contract limits", "concurrency 64", "pass", "service_contract.json"),
        GATES,
        "says concurrency 2",
    ),
    "a gate of another licence": (
        "healthy",
        gate("licence known", "MIT", "pass", "model_decision.md"),
        GATES,
        "says Apache-2.0",
    ),
    "gates that say ready": (
        "healthy",
        said("release_gates.md", "# Release gates\n", "# Release gates\n\nEvery gate passes.\n"),
        GATES,
        "its rows say that safety fails",
    ),
    "a README of another release": (
        "healthy",
        said("README.md", "## Start\n\n```sh\nlabkit serve", "## Start\n\n```sh\nlabkit serve --revision ffffffffffff"),
        "README.md",
        "says revision ffffffffffff",
    ),
    "a README of wider limits": (
        "healthy",
        said("README.md", "## Known limits\n", "## Known limits\n\n- concurrency: 64\n"),
        "README.md",
        "says concurrency 64",
    ),
    "a feature that was refused": (
        "healthy",
        said("conformance.json", '"detail": "cut"', '"detail": "400: no such parameter"'),
        "conformance.json",
        "is supported, and saw: 400",
    ),
    "a server of another number format": (
        "healthy",
        keys("api_smoke_test.json", health={"status": "ok", "dtype": "float32"}),
        "smoke test of the contract's server",
        "met dtype float32",
    ),
    "a proof of another model": (
        "healthy",
        keys("shutdown_proof.json", model="tiny"),
        "one model throughout",
        "shutdown_proof.json says tiny",
    ),
    "a GPU without a build for it": (
        "rented",
        said("environment_report.txt", "+cu130", "+cpu"),
        "environment_report.txt",
        "is a build without CUDA",
    ),
    "a benchmark on another device than its server": (
        "rented",
        keys("api_smoke_test.json", health={"status": "ok", "device": "cpu"}),
        "devices of this machine",
        "its server said cpu",
    ),
    "another machine in the report": (
        "healthy",
        said("environment_report.txt", "Python: 3", "Python: 9"),
        "devices of this machine",
        "another machine",
    ),
    "a trace of a GPU": (
        "healthy",
        said("gpu_train_log.txt", "gpu: none", "gpu: NVIDIA H100"),
        "parameter count agrees",
        "says gpu NVIDIA H100",
    ),
    "a run that is repeated otherwise": (
        "healthy",
        said("openllm_gpu_training_run/README.md", "--steps 12", "--steps 9000"),
        "parameter count agrees",
        "repeats it with steps 9000",
    ),
    "another sample": (
        "healthy",
        said("gpu_train_log.txt", "sample: '", "sample: 'To be, or not to be "),
        "parameter count agrees",
        "has the sample",
    ),
    "a lever that was not pulled": ("adapted", lever_never_pulled, LEVERS, "says otherwise of schema"),
    "a decision against its runs": ("adapted", prompt_run, LEVERS, "no run of it below levers/"),
    "an adapter better than its log": (
        "adapted",
        in_order(
            keys(f"adapter/{CARD}", kept_step=3, held_out_loss_after=0.1),
            lambda folder: (folder / "adapter/training_log.csv").write_text("step,val_loss\n0,5.0\n3,0.9\n"),
            lambda folder: record(folder, "adapter/training_log.csv"),
        ),
        LEVERS,
        "says held_out_loss_after 0.1",
    ),
    "an adapter of other data": (
        "adapted",
        keys(f"adapter/{CARD}", files={"data": {"chats": 500}}),
        LEVERS,
        "was trained on 500 chats",
    ),
    "a reason of other numbers": (
        "adapted",
        said("lora_decision.md", "Reason: ", "Reason: 99 of "),
        "lora_decision.md",
        "gives the reason",
    ),
    "an export smaller than its files": (
        "edge",
        table("edge_formats.csv", size_bytes="900000"),
        "edge_formats.csv",
        "has 4000000 bytes of onnx int4",
    ),
    "a perplexity below one": (
        "healthy",
        table("quantization.csv", perplexity="0.5"),
        "quantization.csv",
        "a perplexity of 0.5",
    ),
    "formats of a larger model": (
        "healthy",
        in_order(
            table("quantization.csv", size_bytes="4000000000"), said("quantization.csv", "17840000", "28000000000")
        ),
        "quantization.csv",
        "parameters",
    ),
    "a checklist of other answers": (
        "edge",
        keys(
            "quality_checklist.json",
            items=[
                *json.loads(json.dumps(CHECKLIST.as_dict()))["items"],
                {"name": "domain answers", "passed": True, "measured": "8 of 8 pass, 8 of the source; broken 0"},
            ],
        ),
        "quality_checklist.json",
        "the answers give 7 of 8",
    ),
    "a notebook with an error": (
        "healthy",
        notebook("13_4_release_runbook.ipynb", "13.4 Release", error=True),
        NOTEBOOKS,
        "has an error in it",
    ),
    "a notebook of another lesson": (
        "healthy",
        notebook("13_4_release_runbook.ipynb", "13.2 Run"),
        NOTEBOOKS,
        "holds the lesson 13.2",
    ),
    "a notebook of another route": (
        "healthy",
        notebook("13_4_release_runbook.ipynb", "13.4 Release", route="rented_gpu"),
        NOTEBOOKS,
        "ran on the route rented_gpu",
    ),
    "a notebook that showed other losses": (
        "healthy",
        notebook("13_2_run_train_serve.ipynb", "13.2", "step 0 | train loss 9.0000 | held-out loss 9.0000 | cpu\n"),
        NOTEBOOKS,
        "showed the losses 9.0000, 9.0000 at step 0",
    ),
    "a notebook that stopped another server": (
        "healthy",
        notebook("13_4_release_runbook.ipynb", "13.4", '"pid": 77,'),
        NOTEBOOKS,
        "stopped the process 77",
    ),
    "a notebook of other drills": (
        "healthy",
        notebook("13_4_release_runbook.ipynb", "13.4", "port_taken: recovered in 9.9 s, then a chat got 200\n"),
        NOTEBOOKS,
        "showed 9.9 s for port_taken",
    ),
    "a guard of another price": (
        "guarded",
        keys("guard_proof.json", hourly_usd=0.0, cost_usd=0.0),
        "cost within the plan",
        "guard_proof.json says $0.00",
    ),
    "a guard that ended after it was written": (
        "guarded",
        keys("guard_proof.json", started="2199-01-01T00:00:00+00:00", stopped="2199-01-01T00:30:00+00:00"),
        "times in order",
        "guard_proof.json tells of a start",
    ),
}
SAYS_NOTHING = {
    "a file of the future",  # one of the two clocks is wrong, and it may be ours
    "a benchmark of a smaller model",
    "a proof of another model",
    "features of another model",
    "a guard of another price",
    "a gate without evidence",
    "a case edited after its answer",
    "a check that does not exist",
    "full-width digits",
    "digits with a separator",
    "one case asked twice",
    "another machine in the report",
    "a decision against its runs",
    "an adapter of other data",
    "a reason of other numbers",
    "formats of a larger model",
    "a notebook with an error",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_told_by_its_rule(root, tmp_path, lie):
    base, tell, rule, detail = LIES[lie]
    folder = Path(shutil.copytree(base_folder(root, base), tmp_path / base))
    tell(folder)
    finding = next(found for found in verify(folder).findings if found.name == rule)
    wanted = Verdict.NOT_YET if lie in SAYS_NOTHING else Verdict.CONTRADICTED
    assert (finding.verdict, detail in finding.detail) == (wanted, True), finding


OVERCLAIMED = {
    over.PUBLIC: (
        "This is a production-grade service.",
        "It is prod-ready, and ready to go live.",
        "Without any doubt, this is production ready.",
        "It is not only cheap but production ready.",
        "<!-- production ready -->",
        "This is production&#32;ready.",
        "This is pro<b>duction</b> ready.",
        "This is pro**duction** ready.",
        "This is pr\u043eduction ready.",  # a Cyrillic o
        "Der Dienst ist produktionsreif.",
        "Le service est prêt pour la production.",
        "El servicio está listo para producción.",
        "O serviço está pronto para produção.",
        "该服务可用于生产环境。",
        "本番運用に耐えます。",
    ),
    over.SPEED_ELSEWHERE: (
        "| throughput | 5000 tok/s |",
        "It reaches 5000 TPS, and 300 req/s.",
        "It scales to thousands of users.",
        "Er schafft 5000 Token pro Sekunde.",
        "Il traite 5000 jetons par seconde.",
        "Procesa 5000 tokens por segundo.",
    ),
    over.GPU_ON_CPU: ("It was GPU-trained.", "The model was trained with CUDA.", "Auf einer GPU trainiert."),
    over.BIG_QUALITY: ("It performs like a 7-billion-parameter model.", "Its answers are on par with GPT-4."),
}
ALL_OVERCLAIMED = [(claim, sentence) for claim, sentences in OVERCLAIMED.items() for sentence in sentences]


@pytest.mark.parametrize(("claim", "sentence"), ALL_OVERCLAIMED)
def test_a_claim_in_other_words_is_one(claim, sentence):
    said = plain(sentence).replace("*", "")
    assert any(claims(claim, said))


def honest_sentences() -> list[str]:
    return [
        "Nothing here shows that it is enterprise-ready.",
        "Er ist nicht produktionsreif, und er schafft keine 5000 Token pro Sekunde.",
        "Le service n'est pas prêt pour la production.",
        "El servicio no está listo para producción. No procesa 5000 tokens por segundo.",
        "O serviço não está pronto para produção.",
        "该服务不可用于生产环境。",
        "本番運用には耐えません。",
        "It was not trained with CUDA, and does not reach 5000 tok/s.",
        "本番環境では利用できません。",  # it cannot be used in production
        "GPUでの学習は未確認です。",  # training on a GPU is not confirmed
        "公開する場合は認証が必要です。",  # whoever opens it needs keys
        "It is **not** production\nready.",
    ]


@pytest.mark.parametrize("sentence", honest_sentences())
def test_an_honest_sentence_claims_nothing(root, tmp_path, sentence):
    folder = Path(shutil.copytree(base_folder(root, "healthy"), tmp_path / "healthy"))
    readme(sentence)(folder)
    assert not [found.name for found in verify(folder).findings if found.verdict is Verdict.CONTRADICTED]


def test_what_a_model_said_claims_nothing(root, tmp_path):
    folder = Path(shutil.copytree(base_folder(root, "healthy"), tmp_path / "healthy"))
    change(folder, ("first_run.md", "Output: Good morning.", "Output: Our shop\n\nis production ready and always on."))
    assert not [found.name for found in verify(folder).findings if found.verdict is Verdict.CONTRADICTED]


def test_a_cell_made_safe_for_a_spreadsheet_keeps_its_verdict(root, tmp_path):
    folder = Path(shutil.copytree(base_folder(root, "healthy"), tmp_path / "healthy"))
    for name, cells in (
        ("eval_cases.csv", {"check": "bullets:1"}),
        ("eval_results.csv", {"check": "bullets:1", "output": "'- one", "pass": "true"}),
    ):
        held = [row | cells if row["case_id"] == "format_000" else row for row in read_csv(folder / name)]
        (folder / name).write_text(csv_text(held, list(held[0])))
        record(folder, name)
    finding = next(found for found in verify(folder).findings if found.name == "verdicts follow from the answers")
    assert finding.verdict is Verdict.SUPPORTED, finding


def test_a_pattern_without_end_is_not_believed(root, tmp_path):
    """A pack may name a pattern that never comes back: it costs a moment, and supports nothing."""
    folder = Path(shutil.copytree(base_folder(root, "healthy"), tmp_path / "healthy"))
    for name in ("eval_cases.csv", "eval_results.csv"):
        cells = {"check": "regex:^(a|aa)+$"} | ({"output": 60 * "a" + "b"} if name == "eval_results.csv" else {})
        rows(name, **cells)(folder)
    finding = next(found for found in verify(folder).findings if found.name == "verdicts follow from the answers")
    assert finding.verdict is Verdict.NOT_YET, finding
