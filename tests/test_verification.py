"""Verification: a good pack is believed, a missing artifact is "not yet", a falsified one is named, nothing crashes."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from healthy_pack import edit, healthy_folder, rewrite_json, training_rows
from jsonschema import Draft202012Validator

from labkit import verification
from labkit.errors import LabError
from labkit.evidence import FORMS, Pack, csv_text, read_manifest, sha256_of
from labkit.routes import load_route
from labkit.verification import LESSONS, Finding, Verdict, Verification, verify
from labkit.verification.claims import cuda_accepted, fast
from labkit.verification.crosschecks import CROSS_CHECKS
from labkit.verification.reading import PackReader
from labkit.verification.rules import RULES
from labkit.verification.training_checks import parameter_count
from labkit.verification.verdicts import SCHEMA, NotYet

RUN = "openllm_gpu_training_run"
LOG = f"{RUN}/training_log.csv"
REQUIRED = load_route("local_cpu").required_artifacts


@pytest.fixture
def pack(tmp_path_factory, tmp_path) -> Path:
    return Path(shutil.copytree(healthy_folder(tmp_path_factory), tmp_path / "local_cpu"))


def finding(verification: Verification, name: str) -> Finding:
    return next(f for f in verification.findings if f.name == name)


def test_a_healthy_cpu_pack_is_supported_as_a_smoke_test_and_not_as_cuda(pack):
    verification = verify(pack)
    assert verification.exit_code == 0
    assert {f.name for f in verification.artifacts} >= set(REQUIRED)
    assert all(f.verdict is Verdict.SUPPORTED and f.detail and not f.next_action for f in verification.artifacts)
    assert all(f.verdict is Verdict.SUPPORTED for f in verification.cross_checks)
    assert finding(verification, "Training: smoke test").verdict is Verdict.SUPPORTED
    cuda = finding(verification, "Training: CUDA acceptance (GPU)")
    assert cuda.verdict is Verdict.NOT_YET
    assert "cpu" in cuda.detail
    assert "rented_gpu" in cuda.next_action
    speed = finding(verification, "Throughput and latency of a service")
    assert (speed.verdict, "cannot be claimed from local_cpu" in speed.detail) == (Verdict.NOT_YET, True)


def test_claims_give_counts_by_risk_and_the_learners_own_review(pack):
    verification = verify(pack)
    risks = finding(verification, "The five risks were tried")
    assert risks.detail == "format 2 of 2; grounding 2 of 2; safety 1 of 2; performance 2 of 2; regression 2 of 2"
    assert finding(verification, "The cases were reviewed by a person").detail.startswith("0 of 10")
    gates = finding(verification, "The release gates are passed")
    assert (gates.verdict, "safety" in gates.detail) == (Verdict.NOT_YET, True)


def test_the_learner_may_fill_the_cases_by_hand(pack):
    path = pack / "eval_cases.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    header = rows[0]
    for row in rows[1:]:
        row[header.index("pass")], row[header.index("notes")] = "true", f"read it: {row[0]} holds"
    path.write_text("\n".join(",".join(row[: len(header)]) for row in rows) + "\n")
    verification = verify(pack)
    assert verification.exit_code == 0, [f for f in verification.findings if f.verdict is not Verdict.SUPPORTED]
    assert finding(verification, "The cases were reviewed by a person").verdict is Verdict.SUPPORTED


def test_an_evaluation_made_after_the_gates_is_not_called_a_contradiction(pack):
    """A learner who runs 13.2 again has told no lie; the gates are old, and the next action says so."""
    edit(pack, "release_gates.md", "1 of 2 passed", "0 of 2 passed")
    assert finding(verify(pack), "gates repeat the evaluation").verdict is Verdict.CONTRADICTED
    held = read_manifest(pack)
    held["files"]["release_gates.md"]["written"] = "2026-01-01T00:00:00+00:00"
    held["files"]["eval_summary.json"]["written"] = "2026-01-02T00:00:00+00:00"
    (pack / "manifest.json").write_text(json.dumps(held))
    found = finding(verify(pack), "gates repeat the evaluation")
    assert found.verdict is Verdict.NOT_YET
    assert "made again after release_gates.md" in found.detail


def test_a_throughput_claim_needs_a_benchmark_on_the_gpu_too(pack):
    """An evaluation on a GPU must not lend its device to a benchmark that ran on a CPU."""
    held = read_manifest(pack) | {"route": "rented_gpu"}
    (pack / "manifest.json").write_text(json.dumps(held))
    for name, device in (("eval_summary.json", "cuda"), ("benchmark.json", "cpu")):
        (pack / name).write_text(json.dumps(json.loads((pack / name).read_text()) | {"device": device}))
    with pytest.raises(NotYet, match=r"benchmark\.json says that the model ran on cpu"):
        fast(PackReader(pack))


def test_a_cuda_acceptance_needs_a_long_run_on_a_named_gpu_with_its_figures(pack):
    edit(pack, LOG, ",cpu,", ",cuda,")
    report = f"{RUN}/environment_report.json"
    facts = {"gpu": "NVIDIA X", "driver": "600.1", "steps": 500, "peak_gpu_memory_mib": 900.0}
    for change, missing in (
        ({"steps": 12}, "an acceptance needs 500"),
        ({"gpu": "none"}, "names no gpu"),
        ({"driver": ""}, "names no driver"),
        ({"peak_gpu_memory_mib": 0.0}, "no peak of GPU memory"),
    ):
        rewrite_json(pack, report, **facts | change)
        with pytest.raises(NotYet, match=missing):
            cuda_accepted(PackReader(pack))
    rewrite_json(pack, report, **facts)
    assert "500 steps on NVIDIA X" in cuda_accepted(PackReader(pack))


def test_a_smoke_test_of_another_server_does_not_prove_the_contract(pack):
    rewrite_json(pack, "api_smoke_test.json", base_url="http://127.0.0.1:8123")
    verification = verify(pack)
    assert finding(verification, "smoke test of the contract's server").verdict is Verdict.NOT_YET
    assert finding(verification, "The API keeps its contract for one client").verdict is Verdict.NOT_YET


def test_a_device_edited_to_cuda_is_contradicted_and_both_sides_are_named(pack):
    edit(pack, LOG, ",cpu,", ",cuda,", record=False)
    verification = verify(pack)
    assert verification.exit_code == 2
    agreed = finding(verification, "training device agrees")
    assert "training_log.csv says cuda, environment_report.json and 1 more say cpu" in agreed.detail
    folder = finding(verification, f"{RUN}/")
    assert folder.verdict is Verdict.CONTRADICTED
    assert "environment_report.json and 1 more say cpu" in folder.detail
    assert "changed after it was recorded" in folder.detail
    assert finding(verification, "Training: smoke test").verdict is Verdict.CONTRADICTED


def test_every_training_file_edited_to_cuda_still_meets_the_readme(pack):
    edit(pack, LOG, ",cpu,", ",cuda,")
    edit(pack, f"{RUN}/environment_report.json", '"device": "cpu"', '"device": "cuda"')
    edit(pack, "gpu_train_log.txt", "device: cpu", "device: cuda")
    edit(pack, "gpu_train_log.txt", "| cpu", "| cuda")
    verification = verify(pack)
    assert verification.exit_code == 2
    assert "README.md says smoke test" in finding(verification, "training device agrees").detail
    edit(pack, f"{RUN}/README.md", "smoke test", "CUDA acceptance")
    assert "CUDA is not available" in finding(verify(pack), "training device agrees").detail


def test_one_cuda_row_among_cpu_rows_is_contradicted(pack):
    rows = training_rows(pack)
    rows[1]["device"] = "cuda"
    (pack / LOG).write_text(csv_text(rows, list(rows[0])))
    assert "training_log.csv says cpu and cuda" in finding(verify(pack), "training device agrees").detail


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_artifact_is_not_yet_with_a_next_action(pack, name):
    shutil.rmtree(pack / name) if name.endswith("/") else (pack / name).unlink()
    verification = verify(pack)
    found = finding(verification, name)
    assert (found.verdict, verification.exit_code) == (Verdict.NOT_YET, 1)
    assert "missing" in found.detail or "gone" in found.detail
    assert found.next_action


FORGERIES = {  # artifact -> (file, old text, new text, what the detail must say); the forger records the new hash
    "environment_report.txt": ("", "Device: cpu", "Device: cuda", "CUDA not available"),
    "compute_route.md": ("", "Route: local_cpu", "Route: rented_gpu", "compute_route.md says rented_gpu"),
    "requirements-freeze.txt": ("", "torch==", "torch==9.", "environment_report.txt says 2"),
    "first_run.md": ("", "Latency: 0.41 s", "Latency: 0.00 s", "nothing was measured"),
    "openllm_gpu_training_run/": (
        f"{RUN}/environment_report.json",
        '"parameter_count": 4032',
        '"parameter_count": 7000000000',
        "mini_gpt2_checkpoint.pt has parameter_count 4032",
    ),
    "gpu_train_log.txt": ("", "step 12 | train loss ", "step 12 | train loss 1", "training_log.csv says"),
    "api_smoke_test.json": ("", '"total_tokens": 12', '"total_tokens": 13', "are not the total of 13"),
    "eval_cases.csv": ("", ",safety,", ",format,", "no case for safety"),
    "eval_results.csv": (
        "",
        "regression_009,regression",
        "regression_009,format",
        "regression_009: eval_results.csv says",
    ),
    "eval_summary.json": ("", '"passed": 1', '"passed": 2', "eval_summary.json on safety: 2 of 2 passed"),
    "model_decision.md": ("", "- Size: 4.46 M", "- Size: 7 B", "says 7 B parameters"),
    "model_runtime_decision.json": (
        "",
        '"fallback": "none"',
        '"fallback": "_____"',
        "not filled: routes.local_cpu.fallback",
    ),
    "open_llm_runbook.json": ("", '"reason": "two cores"', '"reason": ""', "not filled: reason"),
    "open_weight_route.json": ("", '"route": "local_cpu"', '"route": "moon"', "names the route 'moon'"),
    "service_contract.json": ("", '"concurrency": 2', '"concurrency": "unknown"', "not filled: concurrency"),
    "release_gates.md": ("", "1 of 2 passed | fail", "2 of 2 passed | pass", "eval_summary.json says 1 of 2"),
    "failure_drill.json": ("", '"recovered_ok": true', '"recovered_ok": false', "did not recover"),
    "shutdown_proof.json": ("", '"cost_usd": 0.4', '"cost_usd": 0.04', "1800 s at $0.80 an hour are $0.40"),
    "README.md": ("", "## Roll back", "## Thanks", "not filled: Roll back"),
    "conformance.json": ("", '"verdict": "ignored"', '"verdict": "supported"', "its findings are 2 supported"),
    "benchmark.json": ("", '"completion_tokens": 80', '"completion_tokens": 8000', "its rows show 80"),
}


def test_every_required_artifact_has_a_forgery():
    assert set(FORGERIES) >= set(REQUIRED)


@pytest.mark.parametrize("name", FORGERIES)
def test_a_falsified_artifact_is_not_supported_even_when_its_hash_is_forged_too(pack, name):
    file, old, new, said = FORGERIES[name]
    edit(pack, file or name, old, new)
    found = finding(verify(pack), name)
    assert found.verdict is not Verdict.SUPPORTED
    assert said in found.detail, found.detail
    assert found.next_action


@pytest.mark.parametrize("name", [n for n in REQUIRED if n not in ("eval_cases.csv", f"{RUN}/")])
def test_a_change_after_recording_is_contradicted(pack, name):
    """What was measured is changed by nobody; a form may be, and is then waited for."""
    with open(pack / name, "a") as file:
        file.write(",\n")
    verification = verify(pack)
    assert verification.exit_code == (1 if name in FORMS else 2)
    assert "changed after it was recorded" in finding(verification, name).detail


def test_what_an_endpoint_supports_is_optional_and_each_feature_counts_once(pack):
    held = json.loads((pack / "conformance.json").read_text())
    assert finding(verify(pack), "conformance.json").detail.endswith("8000: 1 supported, 1 ignored")
    rewrite_json(pack, "conformance.json", findings=held["findings"][:1] * 2)
    assert finding(verify(pack), "conformance.json").verdict is Verdict.NOT_YET
    rewrite_json(pack, "conformance.json", findings=[held["findings"][0] | {"verdict": "splendid"}])
    assert "a verdict that is none of" in finding(verify(pack), "conformance.json").detail
    (pack / "conformance.json").unlink()
    Pack(pack, "local_cpu").record("README.md", "13.4")  # the manifest forgets what is gone
    found = verify(pack)
    assert (found.exit_code, "conformance.json" in {f.name for f in found.artifacts}) == (0, False)


@pytest.mark.parametrize(("notes", "route"), [("gpu_plan.md", "rented_gpu"), ("colab_notes.md", "free_colab")])
def test_a_form_of_a_gpu_route_is_required_and_must_be_filled(tmp_path, notes, route):
    pack = Pack(tmp_path / route, route)
    assert finding(verify(pack.folder), notes).verdict is Verdict.NOT_YET
    pack.write_text(notes, "- GPU: T4\n- Price: _____\n- Stop time: 18:00\n", "13.1")
    assert finding(verify(pack.folder), notes).detail == f"{notes}: not filled: Price"
    pack.write_text(notes, "- GPU: T4\n- Price: 0.40\n- Stop time: 18:00\n", "13.1")
    assert finding(verify(pack.folder), notes).verdict is Verdict.SUPPORTED


def forge_run(pack: Path, change) -> None:
    rows = training_rows(pack)
    change(rows)
    (pack / LOG).write_text(csv_text(rows, list(rows[0])))
    Pack(pack, "local_cpu").record(LOG, "13.2")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.__delitem__(slice(2, None)), "fewer than three"),
        (lambda rows: rows[-1].update(val_loss="99.0"), "held-out loss went from"),
        (lambda rows: rows[2].update(train_loss="nan"), "not a finite number"),
        (lambda rows: rows.reverse(), "steps do not rise"),
    ],
)
def test_a_training_log_that_shows_no_learning_is_not_supported(pack, change, said):
    forge_run(pack, change)
    assert said in finding(verify(pack), f"{RUN}/").detail


def test_a_checkpoint_is_loaded_as_weights_only_and_counted(pack):
    path = pack / RUN / "mini_gpt2_checkpoint.pt"
    held = torch.load(path, weights_only=True)
    assert parameter_count(held["model"]) == 4032  # the head is tied to the embedding and counted once

    torch.save({**held, "model": Path("code that a pickle would run")}, path)
    Pack(pack, "local_cpu").record(RUN, "13.2")
    assert "does not load as weights only" in finding(verify(pack), f"{RUN}/").detail

    held["model"]["transformer.wpe.weight"][0, 0] = float("nan")
    torch.save(held, path)
    Pack(pack, "local_cpu").record(RUN, "13.2")
    assert "not finite" in finding(verify(pack), f"{RUN}/").detail


def test_another_model_in_one_file_is_named(pack):
    rewrite_json(pack, "api_smoke_test.json", model="Qwen/Qwen2.5-7B-Instruct")
    verification = verify(pack)
    assert verification.exit_code == 1
    assert "api_smoke_test.json says Qwen/Qwen2.5-7B-Instruct" in finding(verification, "one model throughout").detail
    for claim in ("The API keeps its contract for one client", "The release gates are passed"):
        assert "one model throughout" in finding(verification, claim).detail


def test_a_benchmark_that_claims_throughput_on_a_cpu_is_contradicted(pack):
    rewrite_json(pack, "benchmark.json", claim="serves 10,000 users")
    found = finding(verify(pack), "benchmark.json")
    assert (found.verdict, "local_cpu on cpu cannot prove" in found.detail) == (Verdict.CONTRADICTED, True)


@pytest.mark.parametrize(
    ("forged", "said"),
    [
        ({"p95_ms": 60.0}, "says p95_ms 60.0, its rows give 68.0"),
        ({"ttft_p50_ms": None}, "says ttft_p50_ms None, its rows give 9.0"),
        ({"tokens_per_second": 670.0}, "claims 670 tokens per second: 80 tokens in 1.19 s are not"),
        ({"errors": 3}, "says that 17 requests were answered, its rows show 20"),
        ({"concurrency": 8}, "its rows show 0"),
    ],
)
def test_a_level_of_the_benchmark_must_recompute_from_its_rows(pack, forged, said):
    level = json.loads((pack / "benchmark.json").read_text())["levels"][0]
    rewrite_json(pack, "benchmark.json", levels=[level | forged])
    found = finding(verify(pack), "benchmark.json")
    assert (found.verdict, said in found.detail) == (Verdict.CONTRADICTED, True), found.detail


def test_rows_of_a_level_that_is_not_there_contradict_the_benchmark(pack):
    held = json.loads((pack / "benchmark.json").read_text())
    rewrite_json(pack, "benchmark.json", rows=[*held["rows"], held["rows"][0] | {"concurrency": 4}])
    assert "has rows of [4] clients and no such level" in finding(verify(pack), "benchmark.json").detail


def test_a_p95_gate_passed_on_a_cpu_is_contradicted(pack):
    edit(pack, "release_gates.md", "| not claimed |", "| pass |")
    assert "cannot prove" in finding(verify(pack), "release_gates.md").detail


def test_a_results_row_without_its_case_is_named(pack):
    edit(pack, "eval_results.csv", "format_000", "format_99")
    verification = verify(pack)
    assert "format_99" in finding(verification, "results match the cases").detail
    assert verification.exit_code == 2


def test_a_lesson_sees_its_own_artifacts_only(pack):
    (pack / "README.md").unlink()
    first = verify(pack, lesson="13.1")
    assert [f.name for f in first.artifacts] == [
        "environment_report.txt",
        "compute_route.md",
        "requirements-freeze.txt",
    ]
    assert first.exit_code == 0
    assert all("13.2" in f.lesson for f in verify(pack, lesson="13.2").findings)
    assert verify(pack, lesson="13.4").exit_code == 1
    assert verify(pack, lesson="13.0").artifacts == ()


@pytest.mark.parametrize(("route", "command"), [("local_cpu", "run"), ("free_colab", "run --route free_colab")])
def test_what_comes_next_is_run_on_the_packs_own_route(tmp_path, route, command):
    Pack(tmp_path, route)
    found = verify(tmp_path)
    actions = [one.next_action for one in (*found.artifacts, *found.cross_checks, *found.claims)]
    assert f"run `labkit {command} --lesson 13.1`" in actions
    assert all(f"`labkit {command}" in action for action in actions if "`labkit run" in action)


def test_unknown_lesson_and_missing_folder_are_clear_errors(pack, tmp_path):
    with pytest.raises(LabError, match=r"no lesson '13\.99'"):
        verify(pack, lesson="13.99")
    with pytest.raises(LabError, match="no pack in nowhere"):
        verify(tmp_path / "nowhere")
    assert LESSONS == ("13.0", "13.1", "13.2", "13.3", "13.4", "13.5", "13.6", "13.7")


def test_an_empty_folder_and_a_run_killed_half_way_are_not_yet(pack, tmp_path):
    (tmp_path / "empty").mkdir()
    empty = verify(tmp_path / "empty")
    assert empty.exit_code == 1
    assert {f.verdict for f in empty.findings} == {Verdict.NOT_YET}

    half = Pack(tmp_path / "half", "local_cpu")
    for name in ("environment_report.txt", "compute_route.md", "requirements-freeze.txt"):
        half.write_text(name, (pack / name).read_text(), "13.1")
    verification = verify(half.folder)
    assert verification.exit_code == 1
    assert finding(verification, "environment_report.txt").verdict is Verdict.SUPPORTED
    assert not [f for f in verification.findings if f.verdict is Verdict.CONTRADICTED]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1, "route": 7, "files": {}}', '{"schema": 1}'])
def test_a_broken_manifest_vouches_for_nothing(pack, content):
    (pack / "manifest.json").write_text(content)
    verification = verify(pack)
    assert verification.exit_code == 1
    assert not [f for f in verification.artifacts if f.verdict is Verdict.SUPPORTED]


def test_a_manifest_that_names_a_file_outside_the_pack_is_contradicted(pack):
    manifest = read_manifest(pack)
    outside = pack.parent / "text.txt"
    outside.write_text("not the pack's")
    entry = {**manifest["files"]["README.md"], "sha256": sha256_of(outside)}
    manifest["files"]["../text.txt"] = entry
    (pack / "manifest.json").write_text(json.dumps(manifest))
    assert "../text.txt" in finding(verify(pack), "manifest hashes match").detail


GARBAGE = (b"", b"\x00\xff\xfe\x80" * 50, b"[" * 100_000, b"NaN", b"a,b\n1\n", b"\xef\xbb\xbf{}")


def test_garbage_in_any_file_is_a_verdict_and_never_a_crash(pack):
    for name in sorted(p.relative_to(pack).as_posix() for p in pack.rglob("*") if p.is_file()):
        whole, manifest = (pack / name).read_bytes(), (pack / "manifest.json").read_bytes()
        for garbage in (*GARBAGE, whole[: len(whole) // 2]):
            (pack / name).write_bytes(garbage)
            verification = verify(pack)
            assert verification.exit_code > 0, (name, garbage[:20])
            assert finding(verification, _artifact_of(name)).verdict is not Verdict.SUPPORTED, (name, garbage[:20])
            json.dumps(verification.as_dict(), allow_nan=False).encode()
        if name != "manifest.json":
            Pack(pack, "local_cpu").record(name, "13.4")  # with its hash forged the half file must not crash it either
            verify(pack)
        (pack / name).write_bytes(whole)
        (pack / "manifest.json").write_bytes(manifest)


def _artifact_of(name: str) -> str:
    if name in ("manifest.json",):
        return "manifest hashes match"
    return f"{RUN}/" if name.startswith(RUN) else name


def test_wrong_types_deep_in_json_are_verdicts(pack):
    generator = random.Random(7)
    wrong = (None, [], {}, "", -1, "x", True, [[]], 1e308)
    for path in sorted(pack.glob("*.json")):
        if path.name == "manifest.json":
            continue
        whole = json.loads(path.read_text())
        for key in whole:
            path.write_text(json.dumps(whole | {key: generator.choice(wrong)}))
            Pack(pack, "local_cpu").record(path.name, "13.4")
            assert json.dumps(verify(pack).as_dict(), allow_nan=False), (path.name, key)
        path.write_text(json.dumps(whole))
        Pack(pack, "local_cpu").record(path.name, "13.4")


def test_as_dict_is_json_with_a_schema_and_no_path(pack):
    document = json.dumps(verify(pack).as_dict())
    held = json.loads(document)
    assert (held["schema"], held["exit_code"], held["pack"], held["route"]) == (1, 0, "local_cpu", "local_cpu")
    assert {"name", "lesson", "verdict", "detail", "next_action", "required"} == set(held["artifacts"][0])
    assert str(pack.parent) not in document


def test_every_document_is_the_one_that_is_described(pack):
    schema = json.loads((Path(verification.__file__).parent / "verify.schema.json").read_text())
    assert schema["properties"]["schema"]["const"] == SCHEMA
    validator = Draft202012Validator(schema)
    for folder, lesson in ((pack, None), (pack, "13.2"), (pack.parent, None)):
        validator.validate(json.loads(json.dumps(verify(folder, lesson).as_dict())))
    (pack / "first_run.md").write_text("x" * 5_000)
    validator.validate(json.loads(json.dumps(verify(pack).as_dict())))


def test_the_tables_are_consistent():
    names = [rule.name for rule in RULES]
    assert len(names) == len(set(names))
    for route in ("local_cpu", "free_colab", "rented_gpu"):
        assert set(load_route(route).required_artifacts) <= set(names)
    assert {artifact for cross in CROSS_CHECKS for artifact in cross.artifacts} <= set(names)
