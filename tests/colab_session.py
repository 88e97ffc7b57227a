"""A session as free Colab gives it: a machine of its own, a folder /content, the package google.colab, a Drive."""

import contextlib
import os
import re
import subprocess
import threading
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from tiny_server import until

from labkit.layout import NOTEBOOKS
from labkit.workbook.kernel import ThisInterpreter

STUB = Path(__file__).resolve().parent / "colab_stub"
FORM = re.compile(r"^(\w+) = (.+?)  # @param \[(.+)\]$", re.M)


def environment(drive: Path, downloads: Path) -> dict[str, str]:
    """What a process of the session has in its environment."""
    kept = {name: value for name, value in os.environ.items() if name not in ("LABKIT_EVIDENCE", "PYTHONPATH")}
    colab = {"COLAB_RELEASE_TAG": "release-colab_20260819", "PYTHONPATH": str(STUB)}
    return {**kept, **colab, "STUB_DRIVE": str(drive), "STUB_DOWNLOADS": str(downloads)}


def filled(source: str, form: dict[str, str]) -> str:
    """A cell as Colab leaves it after values were chosen in its form."""

    def chosen(match: re.Match) -> str:
        value = form.get(match[1])
        assert value is None or f'"{value}"' in match[3], f"{value} is not offered for {match[1]}"
        return match[0] if value is None else f'{match[1]} = "{value}"  # @param [{match[3]}]'

    return FORM.sub(chosen, source)


def run_notebook(file: str, content: Path, env: dict[str, str], form: dict[str, str], kill_before: int = 0, first=""):
    """Run notebooks/`file` in the folder `content`; the kernel is killed before the code cell `kill_before`, where it
    is given. `first` is what the learner runs before. Returns the text that each code cell printed."""
    code = code_cells(file)
    code[0] = filled(code[0], form)
    return run_cells([first, *code][: kill_before or None], content, env)


def code_cells(file: str) -> list[str]:
    notebook = nbformat.read(NOTEBOOKS / file, as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def run_cells(code: list[str], content: Path, env: dict[str, str], kill_at: Path | None = None) -> list[str]:
    """Run `code`, one text for each cell, in the folder `content`; the text that each printed. At the end, or as soon
    as the file `kill_at` is there, the kernel is killed, which is what a reset does: nothing can be tidied up."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in code])
    client = NotebookClient(notebook, timeout=120, kernel_manager_class=ThisInterpreter)
    with client.setup_kernel(env=env, cwd=str(content)):
        kernel = client.km.provisioner.process
        if kill_at:
            threading.Thread(target=_kill_at, args=(kernel, kill_at), daemon=True).start()
        with contextlib.suppress(DeadKernelError if kill_at else ()):
            for number, cell in enumerate(notebook.cells):
                client.execute_cell(cell, number)
        kernel.kill()
    return ["".join(o.get("text", "") for o in cell.get("outputs", ())) for cell in notebook.cells]


def _kill_at(kernel: subprocess.Popen, file: Path) -> None:
    until(file.exists, 100)
    kernel.kill()
