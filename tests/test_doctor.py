"""Doctor: symptoms are recognised, and each check finds a fault that is really there, or is made to be."""

import contextlib
import json
import socket
import sys
import threading
from collections import namedtuple
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest
import torch
from huggingface_hub import constants
from test_cli import here, refusal

from labkit.doctor import Question, State, examine, exit_code, machine, model, network, packages
from labkit.doctor.examine import CHECKS, UNNEEDED
from labkit.doctor.table import find_symptoms, load_symptoms
from labkit.environment import GIB
from labkit.errors import LabError
from labkit.evidence import json_text
from labkit.landscape import tables
from labkit.landscape.models import find_model
from labkit.serving import running
from labkit.serving.ports import free_port

ASKED = Question()
NINE = {
    "cuda-out-of-memory",
    "download",
    "slow-inference",
    "weak-japanese",
    "licence-risk",
    "port-in-use",
    "vllm-does-not-start",
    "widget-does-not-show",
    "colab-version-clash",
}


# Symptoms


def test_the_nine_symptoms_have_a_check_a_fallback_a_source_and_a_date():
    rows = load_symptoms()
    assert {row.symptom for row in rows} == NINE
    for row in rows:
        assert set(row.checks) <= set(CHECKS), row.symptom
        assert row.source_url.startswith("https://")
        assert row.seen
    assert {name for row in rows for name in row.checks} == set(CHECKS), "a check that no symptom asks for"


@pytest.mark.parametrize(
    ("text", "symptom"),
    [
        ("port-in-use", "port-in-use"),
        ("Weak Japanese", "weak-japanese"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "cuda-out-of-memory"),
        ("OSError: [Errno 98] Address already in use", "port-in-use"),
        ("RuntimeError: Failed to infer device type", "vllm-does-not-start"),
        ("LocalEntryNotFoundError: An error happened while trying to locate the file on the Hub", "download"),
        ("ValueError: numpy.dtype size changed, may indicate binary incompatibility", "colab-version-clash"),
    ],
)
def test_a_symptom_is_found_by_name_and_by_an_error_message(text, symptom):
    assert find_symptoms(text)[0].symptom == symptom


def test_text_that_fits_nothing_names_the_symptoms():
    with pytest.raises(LabError, match=r"no symptom fits 'banana'.*cuda-out-of-memory, download"):
        find_symptoms("banana")
    assert len(find_symptoms("")) == len(NINE)


# Findings and exit codes


def test_what_the_workbook_runs_without_is_a_limit_unless_its_symptom_is_named(monkeypatch):
    assert set(UNNEEDED) <= set(CHECKS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    named = examine("vLLM does not start")
    assert (named[0].findings[0].state, exit_code(named)) == (State.PROBLEM, 1)
    everything = {one.check: one for diagnosis in examine() for one in diagnosis.findings}
    assert everything["vllm"].state is everything["japanese"].state is State.LIMIT
    assert everything["gpu_memory"].state is State.NOT_HERE


def test_a_check_that_cannot_be_made_stops_no_other(monkeypatch):
    (found,) = examine("CUDA out of memory", Question(model="nobody/unknown"))
    assert [one.state for one in found.findings][1] is State.NOT_HERE
    assert "no model called 'nobody/unknown'" in found.findings[1].seen
    assert exit_code([found]) == 0


def test_a_port_that_is_none_is_refused():
    with pytest.raises(LabError, match="70000 is not a port"):
        examine("", Question(port=70000))


# The network


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine; `hub.status` is what it answers."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(server.status)
            self.end_headers()

        def log_message(self, *_):
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Answers)
    server.status = 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def test_a_hub_that_answers_and_one_that_refuses(hub):
    assert network.hub(ASKED).state is State.OK
    hub.status = 503
    found = network.hub(ASKED)
    assert found.state is State.PROBLEM
    assert "answers 503" in found.seen


def test_a_hub_that_cannot_be_reached_is_told_and_offline_is_no_problem(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    found = network.hub(ASKED)
    assert (found.state, "cannot be reached" in found.seen) == (State.PROBLEM, True)
    assert "HF_HUB_OFFLINE=1" in found.next_step
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert network.hub(ASKED).state is State.NOT_HERE


def test_a_broken_off_download_is_found_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    assert network.hub_cache(ASKED).state is State.OK
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    blobs = tmp_path / "models--Qwen--Qwen3-8B" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc").touch()
    assert network.hub_cache(ASKED).state is State.OK
    (blobs / "def.incomplete").touch()
    found = network.hub_cache(ASKED)
    assert found.state is State.PROBLEM
    assert "Qwen/Qwen3-8B" in found.next_step


def test_the_port_names_who_listens(tmp_path, monkeypatch):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        number = listener.getsockname()[1]
        found = network.port(Question(port=number))
        assert found.state is State.PROBLEM
        assert f"process {psutil.Process().pid}" in found.seen
        monkeypatch.setattr(running, "STATE", tmp_path)
        facts = {"host": "127.0.0.1", "base_url": "", "model": "mini", "revision": "", "device": "cpu", "backend": ""}
        running.record_server(psutil.Process().pid, port=number, started="", limits={}, **facts)
        ours = network.port(Question(port=number))
        assert "a labkit server that serves mini" in ours.seen
        assert f"labkit stop --port {number}" in ours.next_step
    assert network.port(Question(port=free_port())).state is State.OK


# The machine


def test_little_memory_names_the_largest_processes(monkeypatch):
    assert machine.free_memory(ASKED).state in (State.OK, State.PROBLEM)
    memory = namedtuple("memory", "total available")(8 * GIB, GIB // 2)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    found = machine.free_memory(ASKED)
    assert found.state is State.PROBLEM
    assert "0.5 of 8.0 GiB free" in found.seen
    assert "GiB)" in found.seen


def test_the_disk_must_hold_the_models_weights_where_they_are_downloaded(monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage(6 * GIB))
    assert machine.free_disk(ASKED).state is State.OK
    found = machine.free_disk(Question(model="Qwen/Qwen3-8B"))
    assert found.state is State.PROBLEM
    assert "the hub cache wants 15." in found.seen
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage(GIB))
    assert "the workbook wants 2.0 GiB" in machine.free_disk(ASKED).seen


def test_a_driver_without_a_cuda_build_is_a_problem(monkeypatch):
    monkeypatch.setattr(machine, "_has_nvidia", lambda: False)
    assert machine.device(ASKED).state is State.OK
    monkeypatch.setattr(machine, "_has_nvidia", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "this machine has an NVIDIA driver" in machine.device(ASKED).seen


def test_a_busy_machine_and_too_many_threads_are_problems(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(psutil, "getloadavg", lambda: (0.5, 0, 0))
    assert machine.load(ASKED).state is State.OK
    monkeypatch.setattr(psutil, "getloadavg", lambda: (6.0, 0, 0))
    assert "the busiest: " in machine.load(ASKED).seen
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert "OMP_NUM_THREADS=2" in machine.load(ASKED).next_step


def test_a_model_larger_than_what_is_free_does_not_fit(monkeypatch):
    monkeypatch.setattr(machine, "where_it_runs", lambda: ("the GPU", 16.0))
    assert machine.model_fits(ASKED).state is State.OK
    found = machine.model_fits(Question(model="meta-llama/Meta-Llama-3.1-70B-Instruct"))
    assert found.state is State.PROBLEM
    assert "16.0 GiB free in the GPU" in found.seen


def test_a_full_card_is_told_with_who_holds_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20 * GIB, 24 * GIB))
    assert machine.gpu_memory(ASKED).state is State.OK
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2 * GIB, 24 * GIB))
    found = machine.gpu_memory(ASKED)
    assert found.state is State.PROBLEM
    assert "2.0 of 24.0 GiB free on NVIDIA L4" in found.seen


# What is installed


@pytest.mark.pinned
def test_a_package_that_is_not_as_pinned_is_named(monkeypatch):
    assert packages.versions(ASKED).state is State.OK
    real = packages.installed_version
    monkeypatch.setattr(packages, "installed_version", lambda name: "1.0" if name == "limits" else real(name))
    monkeypatch.delitem(sys.modules, "limits", raising=False)
    found = packages.versions(ASKED)
    assert "limits 1.0 is installed and ==" in found.seen
    monkeypatch.setattr(packages, "installed_version", lambda name: None if name == "bm25s" else real(name))
    assert "bm25s is not installed" in packages.versions(ASKED).seen


def test_in_colab_only_what_it_lacks_is_compared(monkeypatch):
    assert packages.colab(ASKED).state is State.NOT_HERE
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab-20261101")
    assert "20261101" in packages.colab(ASKED).seen
    monkeypatch.setattr(packages, "installed_version", lambda name: None)
    found = packages.versions(ASKED)
    assert "papermill is not installed" in found.seen
    assert "torch" not in found.seen
    assert "requirements-colab.txt" in found.next_step


def test_a_version_that_is_loaded_but_not_installed_asks_for_a_restart(monkeypatch):
    monkeypatch.setattr(packages, "version_warnings", lambda found: ("numpy 1 is loaded but 2 is on the disk",))
    assert "restart" in packages.versions(ASKED).next_step


def test_what_vllm_lacks_is_named_one_by_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "an NVIDIA GPU that torch sees" in packages.vllm(ASKED).seen
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 1))
    assert "compute capability 7.0 (this card has 6.1)" in packages.vllm(ASKED).seen
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert "not installed in this environment" in packages.vllm(ASKED).seen
    real = packages.installed_version
    monkeypatch.setattr(packages, "installed_version", lambda name: "0.33" if name == "vllm" else real(name))
    monkeypatch.setattr(packages.importlib.metadata, "requires", lambda name: ["torch==1.2.3", "numpy"])
    assert "==1.2.3 is wanted" in packages.vllm(ASKED).seen
    monkeypatch.setattr(packages.importlib.metadata, "requires", lambda name: ["numpy"])
    assert packages.vllm(ASKED).state is State.OK


@pytest.mark.pinned
def test_the_widgets_manager_must_be_there_enabled_and_of_the_same_generation(monkeypatch, tmp_path):
    assert packages.widgets(ASKED).state is State.OK
    real = packages.installed_version
    monkeypatch.setattr(
        packages, "installed_version", lambda name: "1.1" if name == "jupyterlab_widgets" else real(name)
    )
    assert "beside jupyterlab_widgets 1.1" in packages.widgets(ASKED).seen
    monkeypatch.setattr(packages, "settings_files", lambda: [tmp_path / "page_config.json"])
    (tmp_path / "page_config.json").write_text(json_text({"disabledExtensions": {packages.MANAGER: True}}))
    assert "disabled in page_config.json" in packages.widgets(ASKED).seen
    monkeypatch.setattr(packages, "labextensions", lambda: [tmp_path])
    assert f"no {packages.MANAGER} in JupyterLab's folders" in packages.widgets(ASKED).seen
    monkeypatch.setattr(packages, "installed_version", lambda name: None)
    assert "ipywidgets is not installed" in packages.widgets(ASKED).seen


# The model


def test_the_licence_of_a_model_is_judged_for_production_use(monkeypatch):
    monkeypatch.setattr(tables, "today_utc", lambda: date(2999, 1, 1))
    old = model.licence(ASKED)
    assert (old.state, "the row has expired" in old.seen) == (State.PROBLEM, True)
    monkeypatch.setattr(tables, "today_utc", lambda: date(2026, 11, 28))
    assert model.licence(ASKED).state is State.OK
    found = model.licence(Question(model="mistralai/Codestral-22B-v0.1"))
    assert found.state is State.PROBLEM
    assert "production use: no" in found.seen
    assert "https://" in found.next_step
    assert "no model called 'x/y'" in model.licence(Question(model="x/y")).seen


def test_japanese_is_counted_where_the_tokenizer_is_and_read_from_the_table_where_not():
    found = model.japanese(ASKED)
    assert found.state is State.PROBLEM
    assert "2.8 tokens on a character of the 20 Japanese cases" in found.seen
    taught = next(row for row in ("cyberagent/calm3-22b-chat",) if find_model(row).japanese)
    assert model.japanese(Question(model=taught)).state is State.OK
    low = model.japanese(Question(model="meta-llama/Meta-Llama-3.1-8B-Instruct"))
    assert (low.state, "omits Japanese" in low.seen) == (State.PROBLEM, True)
    assert model.japanese(Question(model="x/y")).state is State.NOT_HERE


# The command


def test_the_command_prints_the_table_and_exits_by_what_it_found(capsys):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        number = listener.getsockname()[1]
        out, _ = here(capsys, "doctor", "port in use", "--port", number, code=1)
    assert f"problem port: port {number}" in " ".join(out.split())
    assert "Start on another port" in " ".join(out.split())
    said = json.loads(here(capsys, "doctor", "port-in-use", "--port", free_port(), "--json")[0])
    assert (said["exit_code"], said["symptoms"][0]["findings"][0]["state"]) == (0, "ok")
    assert "no symptom fits" in refusal(capsys, "doctor", "banana")
