"""Release: gates from the pack, the contract of a real server, a README whose commands are real."""

import shutil
from pathlib import Path

import pytest
from healthy_pack import CONTRACT, healthy_folder, rewrite_json
from tiny_server import live

from labkit.errors import LabError
from labkit.evidence import Pack, read_json
from labkit.release import (
    Gate,
    gates,
    gates_table,
    running_contract,
    write_contract,
    write_gates,
    write_readme,
)
from labkit.serving.ports import free_port
from labkit.verification import Verdict, verify


@pytest.fixture
def pack(tmp_path_factory, tmp_path) -> Pack:
    return Pack(shutil.copytree(healthy_folder(tmp_path_factory), tmp_path / "local_cpu"), "local_cpu")


def gate(pack: Pack, name: str) -> Gate:
    return next(row for row in gates(pack) if row.gate == name)


def verdict(pack: Pack, name: str) -> Verdict:
    return next(f.verdict for f in verify(pack.folder).artifacts if f.name == name)


def test_the_gates_hold_every_risk_and_verify_believes_the_table(pack):
    names = [row.gate for row in gates(pack)]
    assert names[:5] == ["format", "grounding", "safety", "performance", "regression"]
    assert {"smoke test", "p95 latency", "shutdown path", "licence known", "contract limits", "failure drill"} <= set(
        names
    )
    write_gates(pack)
    assert verdict(pack, "release_gates.md") is Verdict.SUPPORTED
    assert "Not ready: safety." in (pack.folder / "release_gates.md").read_text()


def test_a_risk_fails_by_its_own_threshold_and_is_not_averaged_away(pack):
    assert gate(pack, "safety") == Gate(
        "safety", "at least 2 of 2 cases (100%)", "1 of 2 passed", "fail", "eval_summary.json"
    )
    assert gate(pack, "format").status == "pass"


def test_p95_is_recorded_on_a_cpu_and_never_claimed(pack):
    row = gate(pack, "p95 latency")
    assert (row.status, "68 ms over 20 requests" in row.measured) == ("not claimed", True)
    (pack.folder / "benchmark.json").unlink()
    assert gate(pack, "p95 latency").measured == "not measured"


def test_p95_counts_on_a_rented_gpu_only_when_the_device_is_cuda(pack):
    rented = Pack.__new__(Pack)
    rented.folder, rented.route = pack.folder, "rented_gpu"
    assert gate(rented, "p95 latency").status == "not claimed"
    rewrite_json(pack.folder, "benchmark.json", device="cuda")
    assert gate(rented, "p95 latency").status == "pass"
    level = read_json(pack.folder / "benchmark.json")["levels"][0]
    rewrite_json(pack.folder, "benchmark.json", levels=[level, level | {"concurrency": 8, "p95_ms": 9000.0}])
    assert "9000 ms over 20 requests, 8 at a time" in gate(rented, "p95 latency").measured
    assert gate(rented, "p95 latency").status == "fail"


def test_shutdown_is_not_claimed_before_it_was_tried(pack):
    assert gate(pack, "shutdown path").status == "pass"
    rewrite_json(pack.folder, "shutdown_proof.json", port_closed=False)
    assert gate(pack, "shutdown path").status == "fail"
    (pack.folder / "shutdown_proof.json").unlink()
    assert gate(pack, "shutdown path").status == "not claimed"


def test_licence_limits_and_drill_gates_fail_on_gaps(pack):
    path = pack.folder / "model_decision.md"
    path.write_text(path.read_text().replace("- Licence: Apache-2.0", "- Licence: _____"))
    assert gate(pack, "licence known").status == "fail"
    rewrite_json(pack.folder, "service_contract.json", limits={"concurrency": 2})
    assert gate(pack, "contract limits").status == "fail"
    rewrite_json(pack.folder, "failure_drill.json", drills=[{"name": "port_taken", "recovered_ok": False}])
    assert gate(pack, "failure drill").status == "fail"


@pytest.mark.parametrize(
    ("name", "lesson"), [("eval_summary.json", "13.2"), ("model_decision.md", "13.3"), ("failure_drill.json", "13.4")]
)
def test_missing_evidence_names_the_lesson_to_run(pack, name, lesson):
    (pack.folder / name).unlink()
    with pytest.raises(LabError, match=f"{name} is not in the pack yet") as raised:
        write_gates(pack)
    assert f"labkit run --lesson {lesson}" in raised.value.next_step


def test_evidence_of_a_wrong_shape_is_a_clear_error(pack):
    rewrite_json(pack.folder, "eval_summary.json", by_risk=7)
    with pytest.raises(LabError, match="incomplete"):
        write_gates(pack)


def test_a_bar_inside_a_cell_does_not_break_the_table():
    text = gates_table([Gate("a|b", "one\nline", "1 of 2", "pass", "x.json")])
    assert "| a\\|b | one line | 1 of 2 | pass | x.json |" in text


def test_a_contract_with_a_gap_is_refused(pack):
    with pytest.raises(LabError, match="does not know its revision"):
        write_contract(pack, CONTRACT | {"revision": "unknown"})
    with pytest.raises(LabError, match=r"limits\.concurrency"):
        write_contract(pack, CONTRACT | {"limits": CONTRACT["limits"] | {"concurrency": None}})
    write_contract(pack, CONTRACT)
    assert verdict(pack, "service_contract.json") is Verdict.SUPPORTED


def test_the_readme_has_the_services_limits_the_routes_limits_and_working_commands(pack):
    write_readme(pack, CONTRACT)
    text = (pack.folder / "README.md").read_text()
    assert verdict(pack, "README.md") is Verdict.SUPPORTED
    for said in ("max_output_tokens: 256", "CUDA acceptance", "labkit serve --model mini-instruct --port 8000"):
        assert said in text
    assert "labkit stop --port 8000" in text
    assert str(Path.home()) not in text
    assert str(pack.folder.parent) not in text


def test_the_contract_comes_from_the_running_server(pack, tiny_model):
    port = free_port()
    with pytest.raises(LabError, match=f"no labkit server at http://127.0.0.1:{port} states its contract"):
        running_contract(f"http://127.0.0.1:{port}")
    with live(tiny_model) as url:
        write_contract(pack, running_contract(f"{url}/v1"))
    assert verdict(pack, "service_contract.json") is Verdict.SUPPORTED
    assert read_json(pack.folder / "service_contract.json")["model"] == tiny_model.name
