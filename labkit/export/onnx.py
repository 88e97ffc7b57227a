"""A checkpoint as an ONNX graph for onnxruntime, made by the model builder of onnxruntime-genai and kept.

The builder runs in a process of its own: it loads the whole model once more, and what it prints is no business of the
server's.
"""

import atexit
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from labkit.environment import installed_version
from labkit.errors import LabError
from labkit.evidence import sha256_of
from labkit.export.checkpoint import read_config, weight_files
from labkit.layout import STATE, without_paths

BUILDER = "onnxruntime_genai.models.builder"
MODULES = ("onnxruntime_genai", "onnxruntime", "onnx", "onnx_ir")
INSTALL = "pip install onnxruntime-genai onnx onnx-ir"
GRAPH, GENAI_CONFIG = "model.onnx", "genai_config.json"

# Which weights a precision keeps in how many bits. int4 is mixed, as llama.cpp's Q4_K_M is: the last layer and the
# most sensitive ones keep 8 bits. Of the builder's other ways to 4 bits each lost more of the embedded model's answers
# (k_quant_mixed two of 200, without 8 bits five to eight), or was slower (blocks of 16 weights by a quarter).
PRECISIONS = {
    "float32": ("fp32", ()),
    "float16": ("fp16", ()),
    "int8": ("int8", ()),
    "int4": (
        "int4",
        ("algo_config=rtn", "matmul_mixed_precision=last_matmul:int8,mixed_layers:int8", "is_symmetric=false"),
    ),
}

# For a CPU the builder writes attention in 16 bit that keeps no memory of its own. Its graph for CUDA has the operator
# that does, GroupQueryAttention, which onnxruntime has for 16 bit on a CPU too.
BUILT_FOR = {"float16": "cuda"}

# Families whose graphs were found to have the logits of transformers, row by row (tests/test_onnx.py has some).
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
HEAD_MULTIPLE = 8  # of the width of an attention head, for onnxruntime's GroupQueryAttention on a CPU


def builder_installed() -> bool:
    return all(importlib.util.find_spec(module) for module in MODULES)


def why_not_exportable(folder: Path) -> str:
    """Why the checkpoint in `folder` is not exported, as the end of a sentence; empty where it can be."""
    config = read_config(folder)
    architecture = next(iter(config.get("architectures") or ()), "")
    if not architecture:
        return "its config.json is not there, or names no architecture"
    if architecture not in ARCHITECTURES:
        return f"the architecture {architecture} is not one of {', '.join(ARCHITECTURES)}"
    width = config.get("head_dim") or config.get("hidden_size", 0) // config.get("num_attention_heads", 1)
    if width % HEAD_MULTIPLE:
        return f"its attention heads are {width} wide, and onnxruntime wants a multiple of {HEAD_MULTIPLE}"
    window = config.get("use_sliding_window", True) and config.get("sliding_window")
    if window and window < config.get("max_position_embeddings", 0):
        return f"its attention sees {window} tokens, and onnxruntime counts such a window otherwise"
    return "" if list(folder.glob("*.safetensors")) else "the folder holds no safetensors"


def export_onnx(folder: Path, out: Path, precision: str) -> None:
    """Write the checkpoint in `folder` into the folder `out` as an ONNX graph of `precision` (see PRECISIONS).

    Raises LabError when the builder is not installed, or fails, with its reason.
    """
    if not builder_installed():
        raise LabError("the ONNX model builder is not installed here", f"install it: {INSTALL}")
    name, options = PRECISIONS[precision]
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", BUILDER, "-m", str(folder), "-o", str(out)]
        command += ["-p", name, "-e", BUILT_FOR.get(precision, "cpu"), "-c", cache]
        command += ["--extra_options", "prune_lm_head=true", "hf_token=false", *options]
        code, said = _run(command)
    if code or not (out / GRAPH).is_file():
        reason = without_paths(next(iter(said.strip().splitlines()[-1:]), f"the builder ended with code {code}"))
        what = f"the model {folder.name} could not be exported to ONNX: {reason}"
        raise LabError(what, "free memory and disk space, or run the checkpoint itself with --backend transformers")
    if precision in BUILT_FOR:
        _for_cpu(out / GENAI_CONFIG)


def _for_cpu(path: Path) -> None:
    """Let onnxruntime-genai run the graph on a CPU: no other execution provider is asked for."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"]["provider_options"] = []
    path.write_text(json.dumps(config, indent=4), encoding="utf-8")


def _run(command: list[str]) -> tuple[int, str]:
    """The exit code of `command` and what it wrote to stderr. It does not outlive this process."""
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    with subprocess.Popen(command, env=offline, stdin=subprocess.DEVNULL, **how) as process:
        atexit.register(process.kill)
        try:
            said = process.communicate()[1]
        except BaseException:
            process.kill()
            raise
        finally:
            atexit.unregister(process.kill)
    return process.returncode, said


def cached_onnx(folder: Path, precision: str) -> Path:
    """The folder of the export of `folder`, made when it is asked for first and found again as long as weights,
    configuration and builder are the same.

    It appears in one step, so of two processes that make it at once both find a whole one. Raises LabError.
    """
    target = STATE / "onnx" / f"{precision}-{_fingerprint(folder, precision)}"
    if not target.is_dir():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _make(folder, precision, target)
        except OSError as error:
            what = f"the ONNX export of {folder.name} could not be kept: {error.strerror or error}"
            raise LabError(what, "free some space, or use --backend transformers", where=target.parent.name) from error
    return target


def _make(folder: Path, precision: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.") as temporary:
        made = Path(temporary) / "export"
        export_onnx(folder, made, precision)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster, and its export is as good
                raise


def _fingerprint(folder: Path, precision: str) -> str:
    files = [*weight_files(folder), folder / "config.json", folder / "generation_config.json"]
    parts = [f"{file.name} {sha256_of(file)}" for file in files if file.is_file()]
    parts += [str(PRECISIONS[precision]), f"{BUILDER} {installed_version('onnxruntime-genai')}"]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
