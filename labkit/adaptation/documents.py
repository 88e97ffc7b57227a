"""Documents that may be searched: read from a folder, with who may read each, and cut into passages."""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from labkit.adaptation.notes import Note
from labkit.errors import LabError

KINDS = (".md", ".txt", ".pdf")
PASSAGE_WORDS = 120
HEADING = re.compile(r"#+\s+(?:([A-Z]+-\d+)\s+)?(.+)")


@dataclass(frozen=True)
class Document:
    """One file. `access` names who may read it; empty for everybody."""

    doc_id: str
    title: str
    text: str
    access: tuple[str, ...] = ()

    def readable_by(self, role: str) -> bool:
        return not self.access or role in self.access


def load_documents(*folders: Path) -> list[Document]:
    """Every Markdown, text and PDF file under `folders`, except files called README, in the order of their names.

    A Markdown file may begin with a block `access: [role, ...]` between two lines of `---`. Its first heading is its
    title; an id such as POL-01 before the title is the document's, otherwise the file's name is. Raises LabError for
    a folder without documents, a file that cannot be read, and an id that two files have.
    """
    documents: dict[str, Document] = {}
    for folder in folders:
        if not folder.is_dir():
            raise LabError(f"there is no folder called {folder.name}", "give a folder of Markdown, text or PDF files")
        files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in KINDS and path.stem != "README"]
        if not files:
            raise LabError(f"{folder.name} holds no document", f"put {', '.join(KINDS)} files into it")
        for path in files:
            document = _document(path)
            if document.doc_id in documents:
                raise LabError(f"two documents have the id {document.doc_id}", "rename one", where=path.name)
            documents[document.doc_id] = document
    return list(documents.values())


def _document(path: Path) -> Document:
    text, access = _pdf_text(path) if path.suffix.lower() == ".pdf" else _plain_text(path), ()
    if path.suffix.lower() == ".md":
        text, access = _without_front(text, path)
    title, doc_id = path.stem.replace("-", " ").replace("_", " "), path.stem
    heading, _, rest = text.lstrip().partition("\n")
    if found := HEADING.fullmatch(heading.strip()):
        doc_id, title, text = found[1] or doc_id, found[2].strip(), rest
    if not text.strip():
        raise LabError(f"{path.name} has no text", "write some, or take the file away; a scanned PDF has none")
    return Document(doc_id, title, text.strip(), access)


def _plain_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise LabError(f"{path.name} cannot be read: {reason}", "save it as UTF-8") from None


def _pdf_text(path: Path) -> str:
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        return "\n\n".join(page.extract_text() for page in PdfReader(path).pages)
    except (PyPdfError, OSError, ValueError) as error:
        raise LabError(f"{path.name} cannot be read as PDF: {error}", "save it again, or as text") from None


def _without_front(text: str, path: Path) -> tuple[str, tuple[str, ...]]:
    """The text after a front matter block, and the roles that the block names."""
    if not text.startswith("---\n"):
        return text, ()
    block, mark, rest = text[4:].partition("\n---\n")
    try:
        access = yaml.safe_load(block)["access"] if mark else None
    except (yaml.YAMLError, TypeError, KeyError):
        access = None
    if not isinstance(access, list) or not access or not all(isinstance(role, str) for role in access):
        # A rule that cannot be read must not open the document to everybody.
        raise LabError(f"the block at the head of {path.name} names no access", "write: access: [staff]")
    return rest, tuple(access)


def passages_of(document: Document, words: int = PASSAGE_WORDS) -> list[Note]:
    """The document in pieces of whole paragraphs, at most `words` words each unless one paragraph is longer.

    A document of one piece keeps its id, so that answers cite what people know; otherwise the pieces are numbered.
    """
    pieces: list[list[str]] = [[]]
    for paragraph in re.split(r"\n\s*\n", document.text):
        flat = " ".join(paragraph.split())
        if pieces[-1] and sum(len(each.split()) for each in [*pieces[-1], flat]) > words:
            pieces.append([])
        pieces[-1].append(flat)
    texts = [" ".join(piece) for piece in pieces]
    ids = [document.doc_id] if len(texts) == 1 else [f"{document.doc_id}#{at}" for at in range(1, len(texts) + 1)]
    return [Note(name, document.title, text) for name, text in zip(ids, texts, strict=True)]
