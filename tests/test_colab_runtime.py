"""What Colab brings and what the workbook adds to it: nothing that is preinstalled may move."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from labkit.errors import LabError
from labkit.landscape import colab
from labkit.layout import DATA, ROOT
from labkit.workbook import install

# Compiled, and most of it loaded by the kernel before the first cell runs.
UNMOVED = {"numpy", "torch", "pandas", "pyarrow", "scipy", "protobuf", "pillow", "pyzmq", "tokenizers", "safetensors"}
KNOWN_BAD = {("peft", "torchao"): "labkit.generation.torchao"}  # the module that handles the pair


@pytest.fixture(scope="module")
def script():
    """data/landscape/colab_runtime.py, which made the table."""
    spec = importlib.util.spec_from_file_location("colab_runtime", DATA / "landscape" / "colab_runtime.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listed() -> list[Requirement]:
    return [Requirement(line) for line in install.lines_of(install.REQUIREMENTS).values()]


def unsatisfied(script, wanted: list[Requirement], brought: dict[str, str]) -> list[str]:
    """What cannot be installed beside `brought` without moving it. The rest of the world is what is installed here."""
    installed, seen, problems = script.by_name(), set(), []
    queue = list(wanted)
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        version = brought.get(name)
        if version is not None:
            if not requirement.specifier.contains(version, prereleases=True):
                problems.append(f"{requirement} does not fit {name} {version}")
        elif name not in installed:
            problems.append(f"{name} is neither on Colab nor here")
        elif name not in seen:
            seen.add(name)
            needs = map(Requirement, installed[name].requires or ())
            queue += [need for need in needs if script.applies(need, set(requirement.extras))]
    return problems


@pytest.mark.parametrize("runtime", colab.RUNTIMES)
def test_each_requirement_fits_beside_what_colab_brings(script, runtime):
    assert unsatisfied(script, listed(), colab.preinstalled(runtime)) == []


def test_a_requirement_that_would_move_protobuf_is_found(script):
    """onnx is what one would add next, and why it is not there."""
    pytest.importorskip("onnx")
    problems = unsatisfied(script, [Requirement("onnx")], colab.preinstalled("cpu"))
    assert [problem for problem in problems if "protobuf 5.29.6" in problem]


def test_nothing_that_colab_brings_is_asked_for_again():
    names = {canonicalize_name(requirement.name) for requirement in listed()}
    for runtime in colab.RUNTIMES:
        brought = colab.preinstalled(runtime)
        assert not UNMOVED - set(brought)
        assert not names & set(brought)
    assert all(str(requirement.specifier).startswith("==") for requirement in listed())


def test_the_table_holds_every_package_that_is_touched(script):
    """In the locked environment and, under `make test-colab`, in Colab's."""
    known = {row.package for row in colab.load_runtime()}
    assert script.touched(script.by_name()) - known == set()
    assert all(row.source_url.startswith("https://") and row.seen for row in colab.load_runtime())


def test_the_versions_that_the_lessons_were_written_against():
    cpu, gpu = (colab.preinstalled(runtime) for runtime in colab.RUNTIMES)
    for name, version in {"ipywidgets": "7.7", "ipykernel": "6.17", "transformers": "5.15", "peft": "0.20"}.items():
        assert cpu[name].startswith(version)
    assert (cpu["torch"], gpu["torch"]) == ("2.11.0+cpu", "2.11.0+cu128")
    assert not {"papermill", "bitsandbytes"} & set(cpu)


def test_a_freeze_is_read_with_versions_from_addresses(script, tmp_path):
    lines = (
        "# a comment == 1",
        "PyYAML==6.0.3",
        "torch @ https://example.org/cpu/torch-2.11.0%2Bcpu-cp313-cp313-manylinux_2_28_x86_64.whl",
    )
    (tmp_path / "pip-freeze.txt").write_text("\n".join(lines))
    assert script.freeze(tmp_path / "pip-freeze.txt") == {"pyyaml": "6.0.3", "torch": "2.11.0+cpu"}


def test_a_runtime_that_is_neither_is_refused(tmp_path):
    path = tmp_path / "colab_runtime.csv"
    path.write_text("package,version,runtime,source_url,seen\ntorch,2.11.0,tpu,https://example.org,2026-08-19\n")
    with pytest.raises(LabError, match="runtime is cpu, gpu or both"):
        colab.load_runtime(path)


def test_peft_beside_an_old_torchao(tmp_path):
    """peft refuses any adapter where torchao is older than 0.16; with what handles the pair it lays one."""
    assert colab.preinstalled("gpu")["torchao"] == "0.10.0"
    assert all(importlib.util.find_spec(module) for module in KNOWN_BAD.values())
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").write_text("")
    (tmp_path / "torchao-0.10.0.dist-info").mkdir()
    (tmp_path / "torchao-0.10.0.dist-info" / "METADATA").write_text("Name: torchao\nVersion: 0.10.0\n")
    code = """
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from labkit.adaptation.lora.base import with_adapter
from labkit.adaptation.lora.settings import LoraSettings
sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=16)
model = LlamaForCausalLM(LlamaConfig(**sizes))
try:
    get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
except ImportError as error:
    print("refused:", error)
print("laid:", type(with_adapter(model, LoraSettings(r=2))).__name__)
"""
    paths = f"{tmp_path}:{ROOT}"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": paths, "PATH": ""}, capture_output=True, text=True
    )
    assert "refused: Found an incompatible version of torchao" in done.stdout, done.stderr[-1000:]
    assert "laid: PeftModelForCausalLM" in done.stdout, done.stderr[-1000:]


# Installing what is missing


def test_pip_is_held_to_what_is_installed(tmp_path, monkeypatch):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# a comment\nnumpy==0.0.1\nsurely-not-there==1.0  # new\n")
    seen = {}

    def run(command, **_):
        seen["command"] = command
        seen["kept"] = Path(command[command.index("-c") + 1]).read_text()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(install.subprocess, "run", run)
    assert install.install_missing(requirements) == ["surely-not-there"]
    assert seen["command"][-1] == "surely-not-there==1.0"
    assert not [word for word in seen["command"] if "numpy" in word], "another version of what is there stays"
    assert f"numpy=={importlib.metadata.version('numpy')}\n" in seen["kept"]


def test_nothing_missing_runs_no_pip(tmp_path, monkeypatch):
    (tmp_path / "r.txt").write_text("numpy==0.0.1\n")
    monkeypatch.setattr(install.subprocess, "run", None)
    assert install.install_missing(tmp_path / "r.txt") == []


def test_an_install_that_fails_says_why(tmp_path):
    """pip itself, without an index: nothing leaves this machine."""
    (tmp_path / "r.txt").write_text("surely-not-there==1.0\n")
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}.items():
            patched.setenv(name, value)
        with pytest.raises(LabError, match=r"could not install surely-not-there==1\.0.*No matching distribution"):
            install.install_missing(tmp_path / "r.txt")
