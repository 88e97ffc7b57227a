"""Retrieval-augmented generation: find the passage that answers a question, put it into the prompt, show where from.

Retrieval is measured apart from answers: a wrong answer from the right passage is the model's fault, and no model
answers from a passage that was not found. Who asks decides what is searched: a document that the asker may not read is
no part of the index, so that it can influence neither the answer nor the ranking.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from labkit.adaptation.documents import Document, load_documents, passages_of
from labkit.adaptation.notes import COMPANY, Note
from labkit.errors import LabError
from labkit.layout import DATA

UPDATES = DATA / "company_updates"  # policy notes that are in no training text
EVERYBODY = "everybody"


@dataclass(frozen=True)
class Hit:
    """A passage that was found. `score` orders the hits of one search and means nothing between indexes."""

    passage: Note
    score: float


class Index(Protocol):
    def search(self, question: str, k: int) -> list[Hit]:
        """At most `k` passages that fit the question, best first; none when nothing fits."""


class Bm25Index:
    """Ranks by shared words, rare ones first (Robertson et al. 1994, Okapi at TREC-3; computed by bm25s)."""

    def __init__(self, passages: Sequence[Note]):
        import bm25s
        import snowballstemmer

        self._bm25s, self._stemmer = bm25s, snowballstemmer.stemmer("english")
        self._passages = list(passages)
        self._ranker = bm25s.BM25(method="lucene")
        texts = [f"{passage.title} {passage.text}" for passage in passages]
        self._ranker.index(self._words(texts), show_progress=False)

    def search(self, question: str, k: int) -> list[Hit]:
        k = min(k, len(self._passages))
        numbers, scores = self._ranker.retrieve(self._words([question]), k=k, show_progress=False)
        found = zip(numbers[0].tolist(), scores[0].tolist(), strict=True)
        return [Hit(self._passages[number], score) for number, score in found if score > 0]

    def _words(self, texts: list[str]):
        return self._bm25s.tokenize(texts, stopwords="en_plus", stemmer=self._stemmer.stemWords, show_progress=False)


class EmbeddingIndex:
    """Ranks by the cosine between sentence embeddings, which also finds a passage that shares no word.

    `model` is a folder or hub id for sentence-transformers. Raises LabError where that package or the model is missing.
    """

    def __init__(self, passages: Sequence[Note], model: str):
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise LabError(
                "sentence-transformers is not installed", "pip install sentence-transformers, or leave --embeddings out"
            ) from None
        try:
            self._encoder = SentenceTransformer(model, trust_remote_code=False)
        except (OSError, ValueError) as error:
            what = f"the embedding model {Path(model).name} could not be loaded: {str(error).splitlines()[0]}"
            raise LabError(
                what, "give a folder with a sentence-transformers model, or a hub id and a network"
            ) from None
        self._passages = list(passages)
        self._vectors = self._encode([f"{passage.title}. {passage.text}" for passage in passages])

    def search(self, question: str, k: int) -> list[Hit]:
        scores = self._vectors @ self._encode([question])[0]
        best = (-scores).argsort(kind="stable")[:k]
        return [Hit(self._passages[number], float(scores[number])) for number in best]

    def _encode(self, texts: list[str]):
        return self._encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False)


@dataclass(frozen=True)
class Library:
    """Documents that can be asked in the name of a role. `embeddings` names a model to rank with; empty for BM25."""

    documents: tuple[Document, ...]
    embeddings: str = ""

    def index(self, role: str = EVERYBODY) -> Index:
        """The index of what `role` may read, and of nothing else. Raises LabError when that is nothing."""
        readable = [document for document in self.documents if document.readable_by(role)]
        passages = [passage for document in readable for passage in passages_of(document)]
        if not passages:
            raise LabError(f"the role {role!r} may read none of the documents", "ask as another --role")
        return EmbeddingIndex(passages, self.embeddings) if self.embeddings else Bm25Index(passages)

    def as_lever(self) -> dict:
        """What eval_summary.json records: which documents could be found, and how they were ranked."""
        ids = [document.doc_id for document in self.documents]
        return {"rag": {"documents": ids, "ranking": self.embeddings or "bm25"}}


def open_library(folders: Sequence[Path] = (COMPANY, UPDATES), embeddings: str = "") -> Library:
    return Library(tuple(load_documents(*folders)), embeddings)


@dataclass(frozen=True)
class Grounding:
    """A question with what was found for it; `prompt` is what the model is asked."""

    question: str
    hits: tuple[Hit, ...]

    @property
    def prompt(self) -> str:
        """The passages, an empty line, the question: the layout of `notes.with_note`. No passage, no more words."""
        contexts = "\n".join(hit.passage.as_context() for hit in self.hits)
        return f"{contexts}\n\n{self.question}" if contexts else self.question

    def sources(self, answer: str) -> list[dict]:
        """Where the answer may come from: each passage, its score, and whether the answer cites it."""
        return [
            {
                "id": hit.passage.note_id,
                "title": hit.passage.title,
                "score": round(hit.score, 3),
                "cited": f"[{hit.passage.note_id}]" in answer,
                "text": hit.passage.text,
            }
            for hit in self.hits
        ]


def ground(index: Index, question: str, k: int = 1) -> Grounding:
    return Grounding(question, tuple(index.search(question, k)))


@dataclass(frozen=True)
class RetrievalReport:
    """How well passages are found, before any model answers.

    `recall` is the share of questions whose document is among the first `k` hits, `mrr` the mean of 1 / its rank, 0
    where it is not there (Voorhees 1999, TREC-8). `missed` are (question, document, what was found instead).
    """

    questions: int
    k: int
    recall: float
    mrr: float
    missed: tuple[tuple[str, str, tuple[str, ...]], ...]


def measure_retrieval(index: Index, wanted: Iterable[tuple[str, str]], k: int = 3) -> RetrievalReport:
    """Search each question of `wanted`, pairs of question and document id. Raises LabError when there is none."""
    ranks, missed = [], []
    for question, doc_id in wanted:
        found = [hit.passage.note_id for hit in index.search(question, k)]
        rank = next((at for at, name in enumerate(found, start=1) if name.partition("#")[0] == doc_id), 0)
        ranks.append(rank)
        if not rank:
            missed.append((question, doc_id, tuple(found)))
    if not ranks:
        raise LabError("no case says which document answers it", "give cases with a check such as cites:POL-01")
    recall = sum(rank > 0 for rank in ranks) / len(ranks)
    return RetrievalReport(len(ranks), k, recall, sum(1 / rank for rank in ranks if rank) / len(ranks), tuple(missed))
