"""Executed copies that may be shared: no home folder, no machine path, no widget state in them."""

import base64
import io
import sysconfig
import tempfile
from pathlib import Path

from labkit.layout import ROOT

_WIDGET = "application/vnd.jupyter.widget-view+json"
_PICTURE = "image/png"
_PAPERMILL_PATHS = ("input_path", "output_path")


def portable(text: str, pack: Path) -> str:
    """`text` with the pack, the workbook, the installed packages (warnings name their files), the temporary and the
    home folder named by what they are, not where."""
    names = {
        Path(sysconfig.get_path("stdlib")): "<python>",
        Path(sysconfig.get_path("platlib")): "<site-packages>",
        Path(sysconfig.get_path("purelib")): "<site-packages>",
        pack.resolve(): "<pack>",
        ROOT: "<workbook>",
        Path(tempfile.gettempdir()).resolve(): "<tmp>",
        Path.home(): "~",
    }
    for folder in sorted(names, key=lambda path: len(str(path)), reverse=True):
        if folder != Path(folder.anchor):
            text = text.replace(str(folder), names[folder])
    return text


def shareable_copy(draft: Path, pack: Path) -> str:
    """The executed notebook at `draft` as JSON text, without what only concerns this machine.

    Widget state goes because GitHub refuses to preview a notebook whose state is incomplete; pictures are stored with a
    palette, a third of the size, so that a pack stays small enough to hand in.
    """
    import nbformat

    notebook = nbformat.read(draft, as_version=4)
    notebook.metadata.pop("widgets", None)
    for key in _PAPERMILL_PATHS:
        notebook.metadata.get("papermill", {}).pop(key, None)
    for cell in notebook.cells:
        cell.source = portable(cell.source, pack)
        if cell.cell_type == "code":
            cell.outputs = [_clean(output, pack) for output in cell.outputs]
        else:
            cell.metadata.pop("papermill", None)  # when a text was "executed" is nothing to hand in
    notebook.metadata = _clean(notebook.metadata, pack)
    return nbformat.writes(notebook, indent=1) + "\n"


def _clean(value, pack: Path):
    """`value` with every string made portable, pictures made small, widgets replaced by a note."""
    if isinstance(value, str):
        return portable(value, pack)
    if isinstance(value, list):
        return [_clean(item, pack) for item in value]
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key != _WIDGET}
        if _WIDGET in value:
            kept["text/plain"] = "(a control: run this notebook in Jupyter to use it)"
        return type(value)(
            {key: small_png(item) if key == _PICTURE else _clean(item, pack) for key, item in kept.items()}
        )
    return value


def small_png(encoded: str) -> str:
    """The PNG `encoded` in base64 with a palette of 256 colours, where that makes it smaller: a figure has few. What is
    no picture is given back as it is."""
    from PIL import Image

    made = io.BytesIO()
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    except (OSError, ValueError):
        return encoded
    picture.quantize(256, dither=Image.Dither.NONE).save(made, "PNG", optimize=True)
    small = base64.b64encode(made.getvalue()).decode("ascii")
    return min(small, encoded, key=len)
