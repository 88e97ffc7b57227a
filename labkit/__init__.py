"""labkit: the helper package of the open-LLM deployment workbook.

Importing it loads neither torch nor any notebook tool, so that `labkit --help` answers at once; the names a
notebook needs from the top floor are looked up on first use.
"""

from importlib import import_module

__version__ = "0.1.0"

_NOTEBOOK_NAMES = dict.fromkeys(("begin", "check", "open_pack"), "labkit.workbook")


def __getattr__(name: str):
    if name in _NOTEBOOK_NAMES:
        return getattr(import_module(_NOTEBOOK_NAMES[name]), name)
    raise AttributeError(f"module 'labkit' has no attribute {name!r}")
