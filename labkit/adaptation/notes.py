"""The company's policy notes, and how a note is put before a question.

Putting the right note into the prompt is the smallest form of retrieval-augmented generation: the model then answers
from text that it was given instead of from its weights.
"""

from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError
from labkit.layout import DATA

COMPANY = DATA / "company"


@dataclass(frozen=True)
class Note:
    """One policy note: `note_id` such as POL-01, its title, and its text on one line."""

    note_id: str
    title: str
    text: str

    def as_context(self) -> str:
        return f"Note [{self.note_id}] {self.title}: {self.text}"


def load_notes(folder: Path = COMPANY) -> dict[str, Note]:
    """Notes by id. A note is a Markdown file whose first line is `# ID Title`. Raises LabError for any other shape."""
    notes = {}
    for path in sorted(folder.glob("POL-*.md")):
        heading, _, body = path.read_text(encoding="utf-8").partition("\n")
        note_id, _, title = heading.removeprefix("#").strip().partition(" ")
        if not heading.startswith("# ") or not title or not body.strip():
            raise LabError(f"{path.name} is not a policy note", "begin it with '# ID Title', then its rules")
        notes[note_id] = Note(note_id, title, " ".join(body.split()))
    return notes


def find_note(note_id: str) -> Note:
    """The note called `note_id`. Raises LabError, naming the notes there are, for any other id."""
    notes = load_notes()
    if note_id not in notes:
        raise LabError(f"there is no policy note {note_id!r}", f"choose one of {', '.join(notes)}")
    return notes[note_id]


def with_note(question: str, note: Note) -> str:
    """The prompt layout that the embedded model was trained on: the note, an empty line, the question."""
    return f"{note.as_context()}\n\n{question}"
