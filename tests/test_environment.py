"""The report says what machine this is and why the device was chosen, and gives nobody away."""

import getpass
import json
import platform
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from labkit.environment import (
    choose_device,
    environment_report,
    in_colab,
    peak_memory_mib,
    requirements_freeze,
    version_warnings,
)
from labkit.errors import LabError


def test_report_has_the_facts_a_claim_needs():
    report = environment_report("cpu")
    assert report.python == platform.python_version()
    assert report.torch == torch.__version__
    assert report.cores >= 1
    assert 0 < report.ram_gib < 10_000
    assert report.disk_free_gib > 0
    assert report.device == "cpu"
    assert "--device cpu" in report.device_reason
    assert {"torch", "transformers", "fastapi"} <= set(report.packages)
    json.dumps(report.as_dict())


def test_text_is_one_fact_a_line():
    text = environment_report("cpu").as_text()
    facts = dict(line.split(": ", 1) for line in text.splitlines())
    for key in ("Python", "Platform", "CPU", "RAM", "Disk free", "torch", "Device", "Device reason", "GPU", "VRAM"):
        assert facts[key].strip()


def test_report_names_no_person_and_no_machine(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token_value")
    text = environment_report("cpu").as_text() + json.dumps(environment_report("cpu").as_dict())
    secrets = [str(Path.home()), socket.gethostname(), "hf_secret_token_value", f"/{getpass.getuser()}/"]
    assert not [secret for secret in secrets if secret in text]


def fake_torch(monkeypatch, cuda: bool, mps: bool):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "name"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu"), (True, False, "cuda")]
)
def test_auto_prefers_cuda_then_mps_and_always_has_a_reason(monkeypatch, cuda, mps, name):
    fake_torch(monkeypatch, cuda, mps)
    chosen = choose_device("auto")
    assert chosen.name == name
    assert chosen.reason


@pytest.mark.parametrize("wanted", ["cuda", "mps"])
def test_a_device_that_is_absent_is_refused_with_a_remedy(monkeypatch, wanted):
    fake_torch(monkeypatch, False, False)
    with pytest.raises(LabError, match=f"the device {wanted} was asked for") as caught:
        choose_device(wanted)
    assert "--device" in caught.value.next_step
    assert caught.value.exit_code == 2


def test_an_unknown_device_is_refused():
    with pytest.raises(LabError, match="no device called 'tpu'"):
        choose_device("tpu")


def test_a_package_that_moved_under_the_kernel_is_warned_about(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "papermill", SimpleNamespace(__version__="0.1"))
    assert version_warnings({"papermill": "2.7.0"}) == (
        "papermill 0.1 is loaded but 2.7.0 is on the disk: restart the kernel or session",
    )
    assert version_warnings({"torch": torch.__version__}) == ()


def test_freeze_tells_the_version_that_is_imported(tmp_path, monkeypatch):
    """Of two on the path the first: a report that names the other contradicts the environment that ran."""
    info = tmp_path / "rich-0.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rich\nVersion: 0.0.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "rich==0.0.1" in requirements_freeze().splitlines()


def test_freeze_pins_every_distribution():
    lines = requirements_freeze().splitlines()
    assert f"torch=={torch.__version__}" in lines
    names = [line.split("==")[0] for line in lines]
    assert names == sorted(names)
    assert all(line.count("==") == 1 and "/" not in line for line in lines)


def test_colab_is_seen_by_its_variable(monkeypatch):
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    assert not in_colab()
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    assert in_colab()


def test_peak_memory_is_of_this_process():
    assert 50 < peak_memory_mib() < 50_000
