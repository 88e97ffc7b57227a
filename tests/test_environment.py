"""The report says what machine this is and why the device was chosen, and gives nobody away."""

import getpass
import json
import platform
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from labkit.environment import (
    Gpu,
    choose_device,
    environment_report,
    in_colab,
    peak_memory_mib,
    requirements_freeze,
    sixteen_bits,
    version_warnings,
    visible_gpu,
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


@pytest.mark.parametrize(
    ("loaded", "on_disk", "restart"),
    [
        ("2.13.0+cu130", "2.13.0", False),  # as a wheel from PyPI tells it
        ("2.13.0+cpu", "2.13.0+cpu", False),
        ("2.13.0+cpu", "2.13.0+cu130", True),
        ("2.13.0+cu130", "2.14.0", True),
        ("5.15.0", "5.23.0", True),
    ],
)
def test_a_restart_is_asked_for_only_where_versions_really_differ(monkeypatch, loaded, on_disk, restart):
    monkeypatch.setitem(sys.modules, "papermill", SimpleNamespace(__version__=loaded))
    assert bool(version_warnings({"papermill": on_disk})) is restart


@pytest.mark.parametrize(
    ("name", "capability", "numbers"),
    [("Tesla T4", (7, 5), "fp16"), ("NVIDIA A100", (8, 0), "bf16"), ("NVIDIA L4", (8, 9), "bf16")],
)
def test_the_16_bit_numbers_follow_the_card_and_say_why(monkeypatch, name, capability, numbers):
    fake_torch(monkeypatch, cuda=True, mps=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    card = SimpleNamespace(name=name, total_memory=15 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    assert visible_gpu() == Gpu(name, 15.0)
    found, why = sixteen_bits()
    assert found == numbers
    assert f"compute capability {capability[0]}.{capability[1]}" in why
    fake_torch(monkeypatch, cuda=False, mps=False)
    assert visible_gpu() is None


def test_freeze_tells_the_version_that_is_imported(tmp_path, monkeypatch):
    """Of two on the path the first: a report that names the other contradicts the environment that ran."""
    info = tmp_path / "rich-0.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rich\nVersion: 0.0.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    other = tmp_path / "Typing-Extensions-0.0.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: Typing-Extensions\nVersion: 0.0.1\n")
    lines = requirements_freeze().splitlines()
    assert "rich==0.0.1" in lines
    assert [line for line in lines if line.startswith("typing")][:1] == ["typing-extensions==0.0.1"]
    assert not [line for line in lines if line.startswith("typing_extensions==")], "one package, two spellings"


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
