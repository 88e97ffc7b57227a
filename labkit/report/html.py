"""HTML files of this room: templates that escape, styles and scripts that are part of the file, nothing that loads."""

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


def render(name: str, values: Mapping[str, object]) -> bytes:
    """The template `name` as UTF-8, every value escaped, without control characters, which a hostile file name may hold
    and HTML forbids."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(name).render(values)
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "?", html).encode("utf-8", errors="replace")


def script(name: str) -> tuple[str, str]:
    """(source, source for the Content-Security-Policy) of our own script `name`: a page runs it and no other."""
    source = (TEMPLATES / name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode()
    return source, f"'sha256-{digest}'"
