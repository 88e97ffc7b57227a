"""A pack's README as an engineer who was not there uses it: its commands, run in order from the text itself."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from healthy_pack import healthy_folder
from tiny_server import SMALL, live

from labkit.errors import LabError
from labkit.evaluation.cases import COLUMNS, load_cases
from labkit.evidence import Pack, read_csv, read_json, sha256_of
from labkit.layout import ROOT
from labkit.release import CHECK, PREVIOUS, differences, require_release, running_contract, write_contract, write_readme
from labkit.serving.contract import Limits, ServerSettings, contract_document
from labkit.serving.ports import free_port
from labkit.serving.smoke import wait_until_ready
from labkit.verification import Verdict, verify

SECTIONS = ["Set up", "Start", "Start", "Test", "Stop", "Roll back", "Roll back", "Roll back"]


def blocks(readme: str) -> list[tuple[str, str]]:
    """(section, commands) of each `sh` block, in order."""
    found = re.findall(r"^## (.+?)$|^```sh\n(.*?)^```$", readme, re.M | re.S)
    sections, section = [], ""
    for heading, commands in found:
        section = heading or section
        if commands:
            sections.append((section, commands))
    return sections


def contract_of(model, port: int, limits: Limits, **settings) -> dict:
    """What a server of `model` on `port` states at /contract: the same function makes both."""
    settings = ServerSettings(port=port, limits=limits.within(model.context_length), **settings)
    return contract_document(settings, model)


@pytest.fixture
def pack(tmp_path_factory, tmp_path) -> Pack:
    return Pack(shutil.copytree(healthy_folder(tmp_path_factory), tmp_path / "local_cpu"), "local_cpu")


@pytest.fixture
def workbook(tmp_path) -> Path:
    """What Set up asks for: a workbook that was installed before, here by the Python that runs the tests."""
    root = tmp_path / "workbook"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("labkit", "notebooks/routes"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    (root / "data").symlink_to(ROOT / "data", target_is_directory=True)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy2(ROOT / name, root / name)
    (root / ".venv").mkdir()
    (root / ".venv" / "bin").symlink_to(Path(sys.executable).parent, target_is_directory=True)
    (root / ".venv" / ".installed").touch()
    return root


def run_text(commands: str, folder: Path) -> tuple[int, str, bool]:
    """Run `commands` with sh in `folder`: the exit code, what was printed, and whether a process was left behind."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    log = folder / "printed.txt"
    try:
        with open(log, "w") as printed:
            how = {"cwd": folder, "env": environment, "stdout": printed, "stderr": subprocess.STDOUT}
            code = subprocess.run(["sh", "-e", "-c", commands], timeout=300, check=False, **how).returncode
    finally:
        left = started_in(folder)
        for process in left:
            process.kill()
    return code, log.read_text(), bool(left)


def started_in(folder: Path) -> list[psutil.Process]:
    """The processes whose environment names `folder`: a process group's number may have gone to somebody else."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("PYTHONPATH") == str(folder):
                found.append(process)
    return found


def test_the_commands_of_the_readme_start_test_stop_and_roll_back_the_service(
    pack, workbook, embedded, tiny_model, tiny_model_folder
):
    port = free_port()
    earlier, now = contract_of(tiny_model, free_port(), SMALL), contract_of(embedded, port, Limits(queue=3))
    write_contract(pack, earlier)
    write_contract(pack, now)
    few = {case.risk: case for case in reversed(load_cases())}
    pack.write_csv("eval_cases.csv", (case.as_row() for case in few.values()), COLUMNS, "13.4")
    write_readme(pack, now)
    shutil.copytree(pack.folder, workbook / "evidence" / "local_cpu")
    shutil.copytree(tiny_model_folder, workbook / tiny_model.name)

    found = blocks((workbook / "evidence" / "local_cpu" / "README.md").read_text())
    assert [section for section, _ in found] == SECTIONS
    text = "\n".join(f"echo '## {section}'\n{commands}" for section, commands in found)
    code, printed, left = run_text(text, workbook)
    assert (code, left) == (0, False), printed + (workbook / CHECK / "serve.log").read_text()
    parts = re.split(r"^## .*\n", printed, flags=re.M)[1:]

    setup, started, proved, tested, stopped, _, rolled_back, ended = parts
    assert "Nothing to be done" in setup
    assert started == ""
    assert f'"revision": "{embedded.revision}"' in proved
    assert all(re.search(rf"^ {risk} +\d of 1 ", tested, re.M) for risk in few), tested
    assert f'"revision": "{tiny_model.revision}"' in rolled_back
    for proof in (stopped, ended):
        assert '"process_gone": true' in proof
        assert '"port_closed": true' in proof
    assert len(read_csv(workbook / CHECK / "eval_results.csv")) == 5
    assert read_json(workbook / CHECK / "shutdown_proof.json")["model"] == tiny_model.name
    assert not list((workbook / ".labkit").glob("server-*.json"))
    assert verify(workbook / "evidence" / "local_cpu").artifacts == verify(pack.folder).artifacts  # as it was


def test_every_block_comes_after_a_sentence_and_the_readme_is_supported(pack, tiny_model):
    contract = contract_of(tiny_model, 8123, SMALL)
    pack.write_json("service_contract.json", contract, "13.4")
    write_readme(pack, contract)
    text = (pack.folder / "README.md").read_text()
    assert [section for section, _ in blocks(text)] == SECTIONS
    assert all(re.search(r"\w.*[.:]\n\n$", before) for before in text.split("```sh\n")[:-1])
    assert next(f.verdict for f in verify(pack.folder).artifacts if f.name == "README.md") is Verdict.SUPPORTED
    assert "must lie in the workbook's root too, under the name tiny-llama" in text
    assert "This is the first release of this pack" in text
    assert "--max-input-tokens 80 --max-output-tokens 40 --max-body-bytes 4096" in text


def test_a_release_with_adapters_is_started_with_them(pack, tiny_model):
    weights = pack.path("adapter/adapter_model.safetensors")
    weights.parent.mkdir(exist_ok=True)
    weights.write_bytes(b"weights")
    adapters = {"label": f"{tiny_model.revision}+{sha256_of(weights)[:12]}", "mine": f"{tiny_model.revision}+0123"}
    contract = contract_of(tiny_model, 8123, SMALL)
    write_contract(pack, contract | {"adapters": adapters})
    write_contract(pack, contract)
    write_readme(pack, contract)
    text = (pack.folder / "README.md").read_text()
    asked = "--adapter label=evidence/local_cpu/adapter \\\n    --adapter mine=mine"
    assert asked in text[text.index("## Roll back") :]
    assert asked not in text[: text.index("## Roll back")]
    assert "under the name mine." in text
    assert "under the name label." not in text


def test_a_service_with_a_key_stops_at_once_where_the_key_is_missing(pack, tiny_model, workbook):
    write_readme(pack, contract_of(tiny_model, 8123, SMALL, api_keys=("k",)))
    (_, asked), *_ = [block for block in blocks((pack.folder / "README.md").read_text()) if "KEY" in block[1]]
    code, printed, _ = run_text(f"unset LABKIT_API_KEY\n{asked}\necho not reached", workbook)
    assert code != 0
    assert "put the key of the service into LABKIT_API_KEY" in printed
    assert "not reached" not in printed


def test_the_contract_of_another_release_is_kept_and_that_of_the_same_is_not(pack, tiny_model):
    first = contract_of(tiny_model, 8123, SMALL)
    write_contract(pack, first)
    held = read_json(pack.path(PREVIOUS))
    write_contract(pack, contract_of(tiny_model, 9000, SMALL))
    assert read_json(pack.path(PREVIOUS)) == held, "another port is no other release"
    write_contract(pack, contract_of(tiny_model, 9000, replace(SMALL, queue=7)))
    assert read_json(pack.path(PREVIOUS))["limits"]["queue"] == SMALL.queue
    pack.path("service_contract.json").write_text("{")
    write_contract(pack, first)
    assert read_json(pack.path(PREVIOUS))["limits"]["queue"] == SMALL.queue, "a damaged contract is none"


def test_a_server_that_is_another_release_is_refused_with_each_difference(pack, tiny_model):
    with live(tiny_model, SMALL) as url:
        running = running_contract(url)
        write_contract(pack, running)
        require_release(url, pack.path("service_contract.json"))
        other = running | {"revision": "0123", "limits": running["limits"] | {"queue": 9}}
        pack.write_json("service_contract.json", other, "13.4")
        with pytest.raises(LabError, match="not the release of service_contract") as raised:
            require_release(url, pack.path("service_contract.json"))
    assert f"revision is {tiny_model.revision} instead of 0123" in raised.value.what
    assert "limits.queue is 1 instead of 9" in raised.value.what
    assert differences(running, running | {"service": "another text"}) == []


def test_waiting_for_a_server_ends_when_it_is_ready_or_with_what_it_said(tiny_model):
    with live(tiny_model, SMALL) as url:
        wait_until_ready(url, 0.1)
    with pytest.raises(LabError, match=r"not ready within 0\.3 s: no server answers"):
        wait_until_ready(url, 0.3)
    with pytest.raises(LabError, match="not ready within nan s"):
        wait_until_ready(url, float("nan"))
