"""Where learners find the workbook, and what the notebooks say about it: badges, or how to upload.

Colab and Kaggle open notebooks from GitHub by address:
https://colab.research.google.com/github/OWNER/NAME/blob/REF/PATH (https://github.com/googlecolab/open_in_colab) and
https://kaggle.com/kernels/welcome?src=ADDRESS (https://www.kaggle.com/docs/notebooks); both seen 2026-11-27.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from labkit.errors import LabError
from labkit.evidence import write_atomically
from labkit.layout import DATA, NOTEBOOKS

COURSE = DATA / "course.yaml"
BADGE_CELL = "open-elsewhere"  # the id of the cell that `labkit badges` writes
ADDRESS_LINE = re.compile(r'^address = "[^"]*"', re.M)  # in the bootstrap cell
GITHUB = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+")
REF = re.compile(r"\w[\w./-]*")
UPLOAD = (
    "**On Colab or Kaggle:** make `workbook.zip` with `labkit bundle`, open this notebook there and upload the archive "
    "beside it (Colab: the Files panel, or your Drive; Kaggle: *Add input*). The cell after the parameters finds it."
)


@dataclass(frozen=True)
class Course:
    """`repository` is a GitHub repository's address or empty, `ref` a branch, tag or commit of it."""

    repository: str
    ref: str

    @property
    def archive(self) -> str:
        """The address of the whole repository as a zip file; empty where there is none."""
        return f"{self.repository}/archive/{self.ref}.zip" if self.repository else ""


def load_course(path: Path = COURSE) -> Course:
    """Raises LabError for a file with other fields, and for an address that Colab could not open."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise LabError(f"{path.name} cannot be read: {error}", "restore it from the repository") from None
    if not isinstance(values, dict) or set(values) != {"repository", "ref"}:
        raise LabError(f"{path.name} must hold repository and ref", "restore it from the repository")
    repository, ref = str(values["repository"] or "").removesuffix("/").removesuffix(".git"), str(values["ref"])
    if repository and not GITHUB.fullmatch(repository):
        what = f"repository is {repository!r}, and Colab opens notebooks from GitHub alone"
        raise LabError(what, "write https://github.com/OWNER/NAME, or leave it empty", path.name)
    if not REF.fullmatch(ref) or ".." in ref:
        raise LabError(f"ref is {ref!r}", "write a branch, a tag or a commit, such as main", path.name)
    return Course(repository, ref)


def badge_text(course: Course, file: str) -> str:
    """What the badge cell of notebooks/`file` says, as Markdown."""
    if not course.repository:
        return UPLOAD
    page = f"{course.repository}/blob/{course.ref}/notebooks/{file}"
    colab = page.replace("https://github.com", "https://colab.research.google.com/github")
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) "
        f"[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]"
        f"(https://kaggle.com/kernels/welcome?src={page})"
    )


def write_badges(folder: Path = NOTEBOOKS, course: Course | None = None) -> list[str]:
    """Bring the badge cell and the bootstrap cell of every notebook up to the course; returns the files that changed.

    Raises LabError for a notebook without one of the two cells.
    """
    course = course or load_course()
    changed = []
    for path in sorted(Path(folder).glob("*.ipynb")):
        before = path.read_text(encoding="utf-8")
        after = _with_badge(before, course, path.name)
        if after != before:
            write_atomically(path, after.encode("utf-8"))
            changed.append(path.name)
    return changed


def wrong_badges(folder: Path = NOTEBOOKS, course: Course | None = None) -> list[str]:
    """The notebooks whose badge or bootstrap cell says something else than the course."""
    course = course or load_course()
    found = {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).glob("*.ipynb"))}
    return [name for name, text in found.items() if _with_badge(text, course, name) != text]


def _with_badge(text: str, course: Course, file: str) -> str:
    import nbformat

    notebook = nbformat.reads(text, as_version=4)
    badge = next((cell for cell in notebook.cells if cell.id == BADGE_CELL), None)
    bootstrap = next((cell for cell in notebook.cells if ADDRESS_LINE.search(cell.source)), None)
    if badge is None or bootstrap is None:
        missing = f"a cell with the id {BADGE_CELL}" if badge is None else 'a cell with the line address = ""'
        raise LabError(f"{file} lacks {missing}", "restore the notebook, or copy that cell from another one")
    badge.source = badge_text(course, file)
    bootstrap.source = ADDRESS_LINE.sub(lambda _: f'address = "{course.archive}"', bootstrap.source)
    return nbformat.writes(notebook, indent=1) + "\n"
