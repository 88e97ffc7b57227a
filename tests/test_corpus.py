"""The corpus is deterministic, its committed files are current, and training never meets evaluation."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from labkit.adaptation.notes import load_notes
from labkit.errors import LabError
from labkit.evaluation.cases import load_cases
from labkit.evaluation.checks import Answer, judge, parse_checks
from labkit.layout import DATA

SHINGLE, NEAR = 4, 0.8  # words in a shingle; the share of common shingles from which two prompts are near duplicates


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))}


@pytest.fixture(scope="module")
def training_prompts(corpus) -> list[str]:
    """Every prompt that the embedded model was trained on, and those of the tuning sets."""
    files = [DATA / name for name in ("train.jsonl", "replay.jsonl")]
    tuning = [json.loads(line)["messages"] for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    made = [example.prompt for examples in corpus.training_sets().values() for example in examples]
    return made + [turn["content"] for chat in tuning for turn in chat if turn["role"] == "user"]


CASE_FILES = ("eval_cases.csv", "eval_cases_held_out.csv", "update_cases.csv", "label_cases.csv")


@pytest.fixture(scope="module")
def evaluation_prompts() -> list[str]:
    cases = [case for name in (*CASE_FILES, "corpus/held_out_cases.csv") for case in load_cases(DATA / name)]
    return [case.full_prompt() for case in cases]


def normal(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def questions(prompts: list[str]) -> list[str]:
    """The prompts without the notes before them, each once."""
    return sorted({prompt.rpartition("\n\n")[2] for prompt in prompts})


def nearly_equal(prompts: list[str], wanted: list[str]) -> list[tuple[str, str]]:
    """Pairs of a prompt and a wanted one whose word shingles have a Jaccard similarity of NEAR or more.

    Counted through an index from shingle to wanted prompt.
    """
    pieces_of = [shingles(text) for text in wanted]
    index: dict[tuple[str, ...], list[int]] = {}
    for number, pieces in enumerate(pieces_of):
        for piece in pieces:
            index.setdefault(piece, []).append(number)
    found = []
    for prompt in prompts:
        pieces = shingles(prompt)
        common = Counter(number for piece in pieces for number in index.get(piece, ()))
        found += [(prompt, wanted[at]) for at, n in common.items() if n / len(pieces | pieces_of[at]) >= NEAR]
    return found


def test_no_evaluation_prompt_is_in_training(training_prompts, evaluation_prompts):
    trained = {normal(prompt) for prompt in training_prompts + questions(training_prompts)}
    assert not [prompt for prompt in evaluation_prompts + questions(evaluation_prompts) if normal(prompt) in trained]


def test_no_evaluation_prompt_is_nearly_in_training(training_prompts, evaluation_prompts):
    assert not nearly_equal(training_prompts, evaluation_prompts)
    assert not nearly_equal(questions(training_prompts), questions(evaluation_prompts))


def test_no_file_of_cases_asks_what_another_asks():
    """Nor does a file ask anything twice: a held-out look, and a count of what changed, would be worth less."""
    asked = [(name, case.case_id, case.prompt) for name in CASE_FILES for case in load_cases(DATA / name)]
    assert len({case_id for _, case_id, _ in asked}) == len(asked) > 120
    assert len({normal(prompt) for _, _, prompt in asked}) == len(asked)
    prompts = [prompt for _, _, prompt in asked]
    assert {pair for pair in nearly_equal(prompts, prompts) if pair[0] != pair[1]} == set()


def test_the_overlap_test_can_fail(corpus):
    prompt = next(iter(corpus.chats(1, 1))).prompt
    changed = prompt.replace("POL-", "POL-1", 1)
    assert len(shingles(prompt) & shingles(changed)) / len(shingles(prompt) | shingles(changed)) > 0.5


def test_same_seed_same_corpus(corpus):
    assert list(corpus.chats(7, 50)) == list(corpus.chats(7, 50))
    assert list(corpus.chats(7, 50)) != list(corpus.chats(8, 50))


def test_committed_files_are_those_of_the_generator(corpus, tmp_path):
    corpus.write_committed(tmp_path, 13)
    for name in ("corpus/shop.txt", "corpus/held_out_cases.csv", "label_cases.csv", "train.jsonl"):
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), f"{name}: run generate.py --committed"


def test_every_right_answer_passes_its_own_check(corpus):
    """Otherwise no model could: the grammar and the checks must agree."""
    for held_out in (False, True):
        for example in corpus.chats(3, 400, held_out):
            verdict = judge(Answer(example.answer, 1.0), parse_checks(example.check, example.expected))
            assert verdict.passed, (example, verdict)


def test_every_task_is_drawn(corpus):
    assert {example.task for example in corpus.chats(5, 400)} == set(corpus.TASK_WEIGHTS)


def test_held_out_words_stay_out_of_training(corpus, training_prompts):
    held_out = {word for key, words in corpus.LEXICON.items() if key.endswith("_held_out") for word in words}
    said = {word for prompt in training_prompts for word in re.findall(r"[A-Za-z]+", prompt)}
    assert not {phrase for phrase in held_out if set(phrase.split()) <= said and " " not in phrase}


def test_company_has_its_notes():
    notes = load_notes()
    assert 6 <= len(notes) <= 10
    assert notes["POL-01"].as_context().startswith("Note [POL-01] Refunds: A customer may return")


def test_a_file_that_is_no_note_is_named(tmp_path):
    (tmp_path / "POL-99-broken.md").write_text("no heading\n", encoding="utf-8")
    with pytest.raises(LabError, match=r"POL-99-broken\.md is not a policy note"):
        load_notes(Path(tmp_path))
