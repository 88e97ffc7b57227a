"""For lm-evaluation-harness (EleutherAI): one task for each risk, judged by labkit's own checks.

The harness asks and counts, the checks are ours: its metrics compare strings, and would judge other things than our
checks do. So labkit must be installed beside it, as the extra `lm-eval` has it.
"""

import json
from pathlib import Path

import yaml

from labkit.evaluation.cases import RISKS, Case
from labkit.evaluation.export.plan import Export, readme, write_files

TAG = "labkit_cases"
NO_CLOCK = "latency_ms"  # the harness tells its metrics no time
VERDICTS = '''"""The verdicts of labkit's checks, for lm-evaluation-harness. It needs labkit in its environment."""

from labkit.evaluation.checks import Answer, judge, parse_checks


def process_results(doc, results):
    verdict = judge(Answer(results[0], 0.0), parse_checks(doc["check"], doc["expected"]))
    return {"passed": float(verdict.passed)}
'''


def write_lm_eval(export: Export, folder: Path) -> str:
    """Write the tasks, their data and README.md into `folder`; returns the command that runs them."""
    files, left_out = {"labkit_checks.py": VERDICTS}, list(export.left_out)
    for risk in RISKS:
        rows = [_row(export, case) for case in export.cases if case.risk == risk]
        kept = [row for row in rows if row["check"]]
        left_out += [
            f"`{row['case_id']}`: nothing but its latency was to be judged" for row in rows if not row["check"]
        ]
        if kept:
            files[f"{risk}.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
            files[f"{risk}.yaml"] = _task(export, risk)
    timed = [case.case_id for case in export.cases if NO_CLOCK in case.check]
    if timed:
        left_out.append(f"`{NO_CLOCK}` of {', '.join(timed)}: the harness tells no metric how long an answer took")
    if export.sampling.temperature:
        left_out.append("`--seed`: the harness sends a seed of its own")
    command = _command(export)
    words = ["The tasks are judged by labkit's checks: install `labkit` and `lm_eval` in one environment. `passed` is"]
    words += ["the share of cases that pass, for each risk on its own."]
    write_files(folder, files | {"README.md": readme("The cases for lm-evaluation-harness", command, words, left_out)})
    return command


def _row(export: Export, case: Case) -> dict[str, str]:
    checks = [part.strip() for part in case.check.split(";")]
    return {
        "case_id": case.case_id,
        "question": export.question(case),
        "answer": case.expected_behavior,
        "check": ";".join(check for check in checks if not check.startswith(NO_CLOCK)),
        "expected": case.expected,
    }


def _task(export: Export, risk: str) -> str:
    prompt, sampling = export.levers.prompt, export.sampling
    decoding = {"until": [], "max_gen_toks": sampling.max_tokens, "temperature": sampling.temperature}
    decoding |= {"top_p": sampling.top_p} if sampling.top_p != 1.0 else {}
    task = {
        "task": f"labkit_{risk}",
        "tag": TAG,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{risk}.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {**decoding, "do_sample": sampling.temperature > 0},
        "metric_list": [{"metric": "passed", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1, "levers": export.levers.label},
    }
    if prompt and prompt.system:
        task["description"] = prompt.system
    if prompt and prompt.examples:
        samples = [{"question": user, "answer": assistant} for user, assistant in prompt.examples]
        task |= {"num_fewshot": len(samples), "fewshot_config": {"sampler": "first_n", "samples": samples}}
    # A tag of the harness's own, which no library writes.
    return _yaml(task) + "process_results: !function labkit_checks.process_results\n"


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)


def _command(export: Export) -> str:
    server = f"base_url={export.base_url}/chat/completions,model={export.model},max_retries=1"
    turns = " --fewshot_as_multiturn" if export.levers.prompt and export.levers.prompt.examples else ""
    return (
        f"OPENAI_API_KEY=${{LABKIT_API_KEY:-none}} python -m lm_eval run --model local-chat-completions "
        f"--model_args {server} --tasks {TAG} --include_path . --apply_chat_template{turns} --output_path results"
    )
