"""Documents are read with their access rule, passages are found, and an answer says where it comes from."""

import json

import pytest
from typer.testing import CliRunner

from labkit.adaptation.documents import Document, load_documents, passages_of
from labkit.adaptation.notes import COMPANY, find_note, with_note
from labkit.adaptation.rag import EVERYBODY, UPDATES, EmbeddingIndex, Library, ground, measure_retrieval, open_library
from labkit.cli import app
from labkit.errors import LabError
from labkit.evaluation.cases import load_cases
from labkit.evaluation.levers import Levers
from labkit.evaluation.records import summarise
from labkit.evaluation.runner import evaluate
from labkit.evaluation.targets import model_target
from labkit.generation import Sampling
from labkit.layout import DATA

UPDATE_CASES = DATA / "update_cases.csv"
SECRET = Document("POL-90", "Goodwill", "Goodwill refunds reach 35.00 without a signature.", ("staff",))
PUBLIC = Document("POL-91", "Refunds", "Refunds above 480.00 need a signature.")
OTHER = Document("POL-92", "Shipping", "Parcels are carried by Heron Freight.")


@pytest.fixture(scope="module")
def library():
    return open_library()


def found_ids(index, question, k=3):
    return [hit.passage.note_id for hit in index.search(question, k)]


# Reading


def test_a_folder_of_markdown_text_and_pdf_is_read(tmp_path):
    (tmp_path / "POL-50-lamps.md").write_text("# POL-50 Lamps\n\nLamps are oiled.\n", encoding="utf-8")
    (tmp_path / "desk_hours.txt").write_text("\ufeffThe desk opens at nine.", encoding="utf-8")
    (tmp_path / "README.md").write_text("# About\n\nThis folder.\n", encoding="utf-8")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "lantern.pdf").write_bytes(pdf("Lanterns are painted red."))
    read = {document.doc_id: document for document in load_documents(tmp_path)}
    assert set(read) == {"POL-50", "desk_hours", "lantern"}
    assert (read["POL-50"].title, read["POL-50"].text) == ("Lamps", "Lamps are oiled.")
    assert (read["desk_hours"].title, read["desk_hours"].text) == ("desk hours", "The desk opens at nine.")
    assert read["lantern"].text == "Lanterns are painted red."


def pdf(text):
    """A PDF of one page, written out: a generator would be a dependency for one test."""
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    made, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(made))
        made += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    return (
        made
        + b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table)
        + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(made))
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.md", b"---\naccess: everybody\n---\n# T\n\ntext", "names no access"),
        ("a.md", b"---\nowner: me\n---\n# T\n\ntext", "names no access"),
        ("a.md", b"---\naccess: []\n---\n# T\n\ntext", "names no access"),
        ("a.md", b"---\naccess: [staff]\n# T\n\ntext", "names no access"),
        ("a.md", b"---\naccess: [staff\n---\n# T\n\ntext", "names no access"),
        ("a.md", b"# Only a heading\n", "a.md has no text"),
        ("a.txt", b"\xff\xfe\x00", "it is not UTF-8 text"),
        ("a.pdf", b"no PDF at all", "cannot be read as PDF"),
        ("a.docx", b"PK", "holds no document"),
    ],
)
def test_what_cannot_be_read_is_named_and_never_opened_to_everybody(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabError, match=message):
        load_documents(tmp_path)


def test_an_id_belongs_to_one_document(tmp_path):
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text("# POL-50 Lamps\n\ntext\n", encoding="utf-8")
    with pytest.raises(LabError, match="two documents have the id POL-50"):
        load_documents(tmp_path)
    with pytest.raises(LabError, match="there is no folder called nowhere"):
        load_documents(tmp_path / "nowhere")


def test_a_long_document_is_cut_between_paragraphs():
    text = "one two three\n\nfour five\nsix\n\nseven\n\n" + "word " * 9
    pieces = passages_of(Document("GUIDE", "Guide", text), words=7)
    assert [(piece.note_id, piece.text) for piece in pieces] == [
        ("GUIDE#1", "one two three four five six seven"),
        ("GUIDE#2", " ".join(["word"] * 9)),
    ]
    assert [piece.note_id for piece in passages_of(PUBLIC)] == ["POL-91"]


# Finding


def test_every_question_without_a_note_finds_it(library):
    """Of those that come with their note a question may share no word with it: BM25 compares words and no meaning."""
    index, files = library.index(), (DATA / "eval_cases.csv", DATA / "eval_cases_held_out.csv", UPDATE_CASES)
    cases = [case for path in files for case in load_cases(path) if case.cited]
    missing = measure_retrieval(index, [(case.prompt, case.cited) for case in cases if not case.context_id], k=3)
    assert missing.questions > 20
    assert (missing.recall, missing.mrr) == (1.0, 1.0), missing.missed
    every = measure_retrieval(index, [(case.prompt, case.cited) for case in cases], k=3)
    assert [question for question, *_ in every.missed] == ["Name something that you do not take back."]
    assert every.mrr > 0.9


def test_the_escalation_path_is_found_for_a_question_without_its_note(library):
    (case,) = (case for case in load_cases() if case.case_id == "path_01")
    assert found_ids(library.index(), case.prompt, 1) == ["POL-03"]


def test_recall_and_rank_are_counted():
    class Fixed:
        def search(self, question, k):
            return ground(Library((PUBLIC, OTHER)).index(), "parcels carried refunds signature", 2).hits[:k]

    first, second = (hit.passage.note_id for hit in Fixed().search("", 2))
    report = measure_retrieval(Fixed(), [("a", first), ("b", second), ("c", "POL-99"), ("d", first)], k=2)
    assert (report.recall, report.mrr) == (0.75, (1 + 1 / 2 + 0 + 1) / 4)
    assert report.missed == (("c", "POL-99", (first, second)),)
    with pytest.raises(LabError, match="no case says which document"):
        measure_retrieval(Fixed(), [])


def test_small_talk_finds_nothing(library):
    for words in ("Good evening", "Many thanks", "What can I ask you?", "", "!?"):
        assert found_ids(library.index(), words) == []


# Access


def test_who_may_not_read_a_document_gets_nothing_of_it():
    """Not only is it never found: whatever it says, what is found and every score stay what they were."""
    public = Library((PUBLIC, OTHER)).index()
    guarded = Library((PUBLIC, SECRET, OTHER)).index(EVERYBODY)
    for question in ("Is a signature needed for goodwill refunds?", "goodwill", "Who carries parcels?"):
        assert guarded.search(question, 5) == public.search(question, 5)
    assert "POL-90" in found_ids(Library((PUBLIC, SECRET, OTHER)).index("staff"), "goodwill refunds")


def test_the_shipped_staff_note_is_found_by_the_staff_only(library):
    question = "What is the limit for goodwill?"
    assert found_ids(library.index("staff"), question, 1) == ["POL-28"]
    assert "POL-28" not in found_ids(library.index(), question, 20)


def test_a_role_that_may_read_nothing_is_told():
    with pytest.raises(LabError, match="the role 'guest' may read none"):
        Library((SECRET,)).index("guest")


# Grounding


def test_the_prompt_is_laid_out_as_the_model_was_trained(library):
    question = "Above which amount is delivery free?"
    assert ground(library.index(), question).prompt == with_note(question, find_note("POL-02"))
    assert ground(library.index(), "Good evening").prompt == "Good evening"
    two = ground(library.index(), "How many months does a gift card stay valid?", k=2)
    assert [line[:13] for line in two.prompt.splitlines()] == ["Note [POL-08]", "Note [POL-27]", "", "How many mont"]


def test_the_sources_say_what_was_cited():
    found = ground(Library((PUBLIC, OTHER)).index(), "Who carries parcels above 480.00 of refunds?", k=2)
    cited = {source["id"]: source["cited"] for source in found.sources("Heron Freight. [POL-92]")}
    assert cited == {"POL-91": False, "POL-92": True}


def test_notes_that_the_model_never_saw_become_answerable(embedded, library):
    cases, target = load_cases(UPDATE_CASES), model_target(embedded)
    trained = "\n".join(path.read_text(encoding="utf-8") for path in (DATA / "corpus").glob("*.*"))
    assert not [doc.doc_id for doc in load_documents(UPDATES) if doc.text in trained]
    plain = evaluate(target, cases, Sampling(max_tokens=48))
    grounded = evaluate(target, cases, Sampling(max_tokens=48), levers=Levers(library))
    assert sum(result.verdict.passed for result in plain) <= 0.1 * len(cases)
    assert sum(result.verdict.passed for result in grounded) >= 0.8 * len(cases)
    summary = summarise(grounded, target, Sampling(), "local_cpu", Levers(library))
    assert summary["levers"]["rag"]["ranking"] == "bm25"
    assert "POL-21" in summary["levers"]["rag"]["documents"]


def test_a_case_with_a_note_keeps_it(library):
    case = next(case for case in load_cases() if case.context_id == "POL-06" and case.risk == "safety")
    assert Levers(library).asked(case).messages[-1]["content"] == case.full_prompt()


# Embeddings


def test_embeddings_without_their_package_or_model_are_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(LabError, match="sentence-transformers is not installed"):
        EmbeddingIndex(passages_of(PUBLIC), "nobody/nothing")


# The command


def run(*words):
    return CliRunner().invoke(app, ["rag", *map(str, words)])


def test_the_command_answers_with_its_sources():
    said = run("Which company carries a parcel?", "--json")
    answer = json.loads(said.output)
    assert "Heron Freight" in answer["answer"]
    assert [(source["id"], source["cited"]) for source in answer["sources"]] == [("POL-22", True)]
    assert "the model's weights alone" in run("Good evening").output


def test_the_command_measures_retrieval_alone():
    said = run("--measure", UPDATE_CASES, "--docs", COMPANY).output
    assert "14 questions: recall@1 0%" in said
    assert "not found: POL-22 for 'Which company carries a parcel?'" in said
    report = json.loads(run("--measure", UPDATE_CASES, "--json").output)
    assert (report["recall"], report["k"]) == (1.0, 1)


def test_the_command_wants_one_thing_to_do():
    for words in ((), ("question", "--measure", str(UPDATE_CASES))):
        assert "one of a question and --measure" in str(run(*words).exception)
