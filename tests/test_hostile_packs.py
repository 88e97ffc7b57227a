"""Hostile packs against the verifier: damaged bytes, forged facts, runs of one character, links, giants, dead code."""

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from healthy_pack import edit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pack_mutations import DAMAGE, FACTS, damage, forge_hash
from rule_packs import CHECKPOINT, base_folder, change, record

from labkit.evidence import MANIFEST, Pack, read_manifest, same_text
from labkit.report.page import write_report
from labkit.verification import Verdict, verify
from labkit.verification.decision_checks import billions
from labkit.verification.reading import HASH_LIMIT, MOST_LINES, READ_LIMIT, TEXT_LIMIT, is_filled, parse_fields

SECONDS = 2.0  # of processor time for a verdict; benchmarks/fuzz_packs.py holds it to one, alone on a machine


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    verify(base_folder(folder, "adapted"))  # the first verdict also imports torch
    return folder


@pytest.fixture
def pack(root, tmp_path) -> Path:
    return Path(shutil.copytree(root / "adapted", tmp_path / "local_cpu"))


def judged(folder: Path):
    """The verification, made within the time that a pack may take, and fit to be printed as JSON."""
    started = time.process_time()
    verification = verify(folder)
    seconds = time.process_time() - started
    json.dumps(verification.as_dict(), allow_nan=False).encode()
    assert seconds < SECONDS
    return verification


def finding(folder: Path, name: str):
    return next(f for f in judged(folder).findings if f.name == name)


@pytest.mark.parametrize("fact", FACTS)
def test_a_changed_fact_is_never_believed_though_its_hash_is_forged(pack, fact):
    seed = random.Random(fact)
    forge_hash(pack, FACTS[fact](pack, seed))
    assert judged(pack).exit_code > 0


@pytest.mark.parametrize("number", range(40))
def test_a_damaged_file_is_a_verdict_within_a_second(root, pack, number):
    seed = random.Random(number)
    name, kind = damage(pack, seed)
    if number % 2:
        forge_hash(pack, name)
    verification = judged(pack)
    entry = read_manifest(root / "adapted")["files"].get(name)
    same = (pack / name).is_file() and entry and same_text(pack / name, entry["sha256"])  # other line ends
    if number % 2 == 0 and kind != "name" and name not in (MANIFEST, "eval_cases.csv") and not same:
        assert finding(pack, "manifest hashes match").verdict is not Verdict.SUPPORTED or verification.exit_code > 0


@pytest.mark.parametrize(
    ("name", "piece"),
    [
        ("README.md", "## a" + " " * 3_000_000 + "b"),
        ("README.md", "```\n" + "\n" * 3_000_000),
        ("release_gates.md", "| format | x | " + "9" * 3_000_000 + " | pass | x |"),
        ("gpu_train_log.txt", "\nstep " + " " * 3_000_000),
        ("compute_route.md", "- Reason: x\n" + "a\n" * 1_500_000),
        ("openllm_gpu_training_run/README.md", "\n" * 3_000_000),
        ("model_decision.md", "- a" * 1_000_000),
        ("lora_decision.md", "|" * 3_000_000),
        ("eval_results.csv", "x" * 3_000_000),
        ("api_smoke_test.json", " " * 3_000_000),
    ],
)
def test_a_run_of_one_character_does_not_keep_a_check_busy(pack, name, piece):
    """Each of these took minutes with a pattern that tries every beginning against every end."""
    path = pack / name
    path.write_text(path.read_text() + piece)
    forge_hash(pack, name)
    judged(pack)


def test_a_pack_of_giants_is_read_only_in_part(pack):
    (pack / "README.md").write_text("x" * (TEXT_LIMIT + 1))
    forge_hash(pack, "README.md")
    assert "more than the" in finding(pack, "README.md").detail
    for name in ("compute_route.md", "first_run.md", "model_decision.md"):
        (pack / name).write_text((pack / name).read_text() + "x" * (READ_LIMIT // 2))
        forge_hash(pack, name)
    assert any(f"more than {READ_LIMIT} bytes" in f.detail for f in judged(pack).findings)


@pytest.mark.parametrize("name", ["README.md", "eval_results.csv"])
def test_a_text_of_a_million_lines_is_not_read(pack, name):
    (pack / name).write_text("a\n" * 1_000_000)
    forge_hash(pack, name)
    assert f"more than {MOST_LINES}" in finding(pack, name).detail


def test_a_file_of_terabytes_is_not_hashed(pack):
    with open(pack / "first_run.md", "r+b") as file:
        file.truncate(HASH_LIMIT + 1)
    manifest = read_manifest(pack)
    manifest["files"]["first_run.md"]["bytes"] = HASH_LIMIT + 1
    (pack / MANIFEST).write_text(json.dumps(manifest))
    assert finding(pack, "first_run.md").verdict is Verdict.NOT_YET


@pytest.mark.parametrize("target", ["/dev/zero", "../outside.json", "first_run.md", "loop"])
def test_a_link_in_a_pack_is_never_followed_out_of_it(pack, target):
    (pack.parent / "outside.json").write_text((pack / "api_smoke_test.json").read_text())
    (pack / "api_smoke_test.json").unlink()
    (pack / "api_smoke_test.json").symlink_to("api_smoke_test.json" if target == "loop" else target)
    assert finding(pack, "api_smoke_test.json").verdict is not Verdict.SUPPORTED


def test_a_pipe_does_not_block(pack):
    (pack / "first_run.md").unlink()
    os.mkfifo(pack / "first_run.md")
    assert finding(pack, "first_run.md").verdict is Verdict.NOT_YET


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"model": "a", "model": "b"}', "stands twice"),
        ('{"a": NaN}', "not readable JSON"),
        ('\ufeff{"a": 1}', "not readable JSON"),
    ],
)
def test_json_that_two_programs_read_differently_is_not_read(pack, text, said):
    (pack / "api_smoke_test.json").write_text(text)
    forge_hash(pack, "api_smoke_test.json")
    assert said in finding(pack, "api_smoke_test.json").detail


def test_a_column_that_stands_twice_is_not_read(pack):
    change(pack, ("eval_results.csv", "case_id,", "pass,case_id,"))
    assert "a column twice" in finding(pack, "eval_results.csv").detail


def test_a_file_that_the_manifest_does_not_list_proves_nothing(pack):
    manifest = read_manifest(pack)
    del manifest["files"]["shutdown_proof.json"]
    (pack / MANIFEST).write_text(json.dumps(manifest))
    verification = judged(pack)
    assert "does not list it" in finding(pack, "shutdown_proof.json").detail
    assert next(f for f in verification.claims if "shut down" in f.name).verdict is Verdict.NOT_YET


def test_a_manifest_of_many_thousands_vouches_for_nothing(pack):
    manifest = read_manifest(pack)
    entry = manifest["files"]["README.md"]
    manifest["files"] |= {f"files/{number}": entry for number in range(30_000)}
    (pack / MANIFEST).write_text(json.dumps(manifest))
    assert judged(pack).exit_code == 1


def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_not_loaded(pack):
    held = torch.load(pack / CHECKPOINT, weights_only=True)
    weights = torch.zeros(1).expand(50_000, 50_000)
    torch.save(held | {"model": held["model"] | {"bomb": weights}}, pack / CHECKPOINT)
    record(pack, CHECKPOINT)
    assert "larger than what is stored" in finding(pack, "openllm_gpu_training_run/").detail
    from zipfile import ZIP_DEFLATED, ZipFile

    with ZipFile(pack / CHECKPOINT, "w", ZIP_DEFLATED) as file:
        file.writestr("archive/data/0", bytes(1_000_000))
    record(pack, CHECKPOINT)
    assert "compressed parts" in finding(pack, "openllm_gpu_training_run/").detail


def test_a_notebook_in_a_pack_is_never_run_and_its_text_is_never_markup(pack):
    """verify and report read a stranger's pack: nothing in it may run, in Python or in the browser."""
    cell = {"cell_type": "code", "source": "open('owned', 'w')", "outputs": [], "metadata": {}, "execution_count": None}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    writer = Pack(pack, "local_cpu")
    writer.write_json("notebooks/13_2_run_train_serve.ipynb", notebook, "13.2")
    attack = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    edit(pack, "first_run.md", "Output: Good morning.", f"Output: {attack}")
    edit(pack, "model_decision.md", "Reason: it ships with the workbook", f"Reason: {attack}")
    edit(pack, "eval_results.csv", "looked for x in case 3", f'"{attack}"'.replace('"', ""))
    judged(pack)
    page = write_report(pack).read_text()
    assert attack not in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert not list(pack.parent.rglob("owned"))


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=2_000), name=st.sampled_from(["a.md", "a.txt"]))
def test_fields_of_any_text_are_read(text, name):
    assert all(isinstance(value, str) for value in parse_fields(text, name).values())


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=3_000), kind=st.sampled_from(sorted(DAMAGE)), number=st.integers(0, 2**32))
def test_any_bytes_in_any_artifact_are_a_verdict(root, data, kind, number):
    """The strategies of hypothesis, which also shrink what they find."""
    folder = root / "any"
    if not folder.exists():
        shutil.copytree(root / "adapted", folder)
    seed = random.Random(number)
    name = seed.choice(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()))
    whole, manifest = (folder / name).read_bytes(), (folder / MANIFEST).read_bytes()
    try:
        (folder / name).write_bytes(DAMAGE[kind](data, seed))
        forge_hash(folder, name)
        judged(folder)
    finally:
        (folder / name).write_bytes(whole)
        (folder / MANIFEST).write_bytes(manifest)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("<your reason>", False),
        ("[Your answer here]", False),
        ("Describe the reason here", False),
        ("fill in", False),
        ("lorem ipsum dolor", False),
        ("...", False),
        ("xxx", False),
        ("_____", False),
        ("[POL-01]", True),
        ("<none>", True),
        ("Write to the desk and they answer", True),
        ("none", True),
    ],
)
def test_template_text_is_not_filled(text, filled):
    assert is_filled(text) is filled


@pytest.mark.parametrize(
    ("text", "size"),
    [("4,459,264 parameters, 8.9 MB", 0.004459264), ("5 M parameters", 0.005), ("0.494 B", 0.494), ("big", None)],
)
def test_sizes_are_read_from_words(text, size):
    assert billions(text) == (size if size is None else pytest.approx(size))
