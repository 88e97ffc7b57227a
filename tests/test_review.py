"""A person's judgement is kept beside the verdict, and the two are compared and never mixed."""

import pytest

from labkit import widgets
from labkit.errors import LabError
from labkit.evaluation.cases import Case
from labkit.evaluation.checks import Verdict
from labkit.evaluation.levers import plainly
from labkit.evaluation.records import write_evaluation
from labkit.evaluation.review import Agreement, agreement, one_per_case, read_review, review
from labkit.evaluation.runner import Result
from labkit.evaluation.targets import Reply, Target
from labkit.evidence import Pack, read_csv, read_manifest, sha256_of
from labkit.generation import Sampling

ROBOT = Target("robot", "1", "cpu", "none", lambda prompt, sampling: Reply("", 1.0, 1, 1))


def result(case_id: str, passed: bool, repeat: int = 1, text: str = "an answer") -> Result:
    case = Case(case_id, f"question {case_id}", "a refusal", "safety", "", "", "", "refuses", "")
    verdict = Verdict(passed, "refuses", "refuses" if passed else "does not refuse")
    asked = plainly(f"Note [POL-09] X: <b>y</b>\n\nquestion {case_id}")
    return Result(case, Reply(text, 5.0, 1, 1), verdict, asked, repeat)


RESULTS = [result("good", True), result("bad", False, text="<script>sure</script>"), result("also", True)]


@pytest.fixture
def pack(tmp_path):
    pack = Pack(tmp_path, "local_cpu")
    write_evaluation(pack, RESULTS, ROBOT, Sampling(), "13.4")
    return pack


def judged(pack) -> dict[str, tuple[str, str]]:
    return {row["case_id"]: (row["pass"], row["notes"]) for row in read_csv(pack.path("eval_cases.csv"))}


def is_vouched_for(pack) -> bool:
    held = read_manifest(pack.folder)["files"]["eval_cases.csv"]["sha256"]
    return held == sha256_of(pack.path("eval_cases.csv"))


# Without a hand


def test_a_judgement_is_written_into_its_columns_and_the_rest_stays(pack):
    before = read_csv(pack.path("eval_cases.csv"))
    found = review(pack, RESULTS, {"good": ("false", 'it is rude, "no" is no\nanswer'), "bad": ("false", "")})
    assert found == Agreement(agree=("bad",), disagree=("good",), not_judged=("also",))
    after = read_csv(pack.path("eval_cases.csv"))
    assert after[0] == before[0] | {"pass": "false", "notes": 'it is rude, "no" is no\nanswer'}
    assert after[2] == before[2]
    assert is_vouched_for(pack)
    assert review(pack, RESULTS, {"good": ("", "")}).not_judged == ("good", "also")  # and it can be taken back
    assert judged(pack)["bad"] == ("false", "")


def test_the_agreement_is_a_sentence_with_the_ids_of_the_disagreements():
    found = agreement(RESULTS, {"good": ("false", ""), "bad": ("true", ""), "also": ("true", "")})
    assert str(found) == (
        "Of 3 cases you agree with the automatic verdict on 1, disagree on 2 (bad, good), and have not judged 0."
    )
    assert "on 0, disagree on 0, and have not judged 3." in str(agreement(RESULTS, {}))


@pytest.mark.parametrize(
    ("judgements", "message"),
    [
        ({"good": ("true", ""), "moon": ("true", "")}, r"eval_cases\.csv has no case moon"),
        ({"good": ("yes", "")}, "'yes' is not a judgement of good"),
    ],
)
def test_a_bad_judgement_is_refused_before_anything_is_written(pack, judgements, message):
    before = pack.path("eval_cases.csv").read_bytes()
    with pytest.raises(LabError, match=message):
        review(pack, RESULTS, judgements)
    assert pack.path("eval_cases.csv").read_bytes() == before


def test_without_an_evaluation_there_is_nothing_to_judge(tmp_path):
    with pytest.raises(LabError, match=r"eval_cases\.csv is missing"):
        widgets.review_table(Pack(tmp_path, "local_cpu"), RESULTS)
    with pytest.raises(LabError, match=r"eval_cases\.csv is missing"):
        read_review(Pack(tmp_path, "local_cpu"))


def test_of_a_case_that_was_asked_twice_the_failed_answer_is_shown():
    first, failed, third = result("a", True), result("a", False, 2, "the bad one"), result("a", False, 3)
    assert one_per_case([first, failed, third]) == [failed]
    assert [shown.case.case_id for shown in one_per_case(RESULTS)] == ["bad", "good", "also"]


# With the keyboard


def parts(table):
    card, row, notes, said = table.children
    back, on, verdict = row.children
    return card, back, on, verdict, notes, said


def test_the_table_steps_through_the_answers_with_the_failed_ones_first(pack):
    card, back, on, _, _, said = parts(widgets.review_table(pack, RESULTS))
    assert "1 of 3: bad" in card.value
    assert "Note [POL-09] X: &lt;b&gt;y&lt;/b&gt;\n\nquestion bad" in card.value
    assert "&lt;script&gt;sure" in card.value
    assert "fail (refuses): does not refuse" in card.value
    assert "have not judged 3." in said.value
    on.click()
    assert "2 of 3: good" in card.value
    back.click()
    back.click()
    assert "3 of 3: also" in card.value
    assert judged(pack) == dict.fromkeys(("good", "bad", "also"), ("", "")), "looking writes nothing"


def test_what_is_chosen_is_in_the_pack_at_once_and_comes_back(pack):
    _, back, on, verdict, notes, said = parts(widgets.review_table(pack, RESULTS))
    verdict.value = "false"
    assert judged(pack)["bad"] == ("false", "")
    assert is_vouched_for(pack)
    notes.value = "it said sure"
    on.click()
    assert (verdict.value, notes.value) == ("", "")
    verdict.value = "false"
    assert "agree with the automatic verdict on 1, disagree on 1 (good), and have not judged 1." in said.value
    back.click()
    assert (verdict.value, notes.value) == ("false", "it said sure")
    assert judged(pack) == {"good": ("false", ""), "bad": ("false", "it said sure"), "also": ("", "")}
    card, _, _, again, its_notes, _ = parts(widgets.review_table(pack, RESULTS))  # the cell is run once more
    assert ("bad" in card.value, again.value, its_notes.value) == (True, "false", "it said sure")


def test_everything_is_reached_with_tab_and_pressed_with_space(pack):
    """In this order, and notes are sent when their field is left, not with each letter."""
    _, back, on, verdict, notes, _ = parts(widgets.review_table(pack, RESULTS))
    assert [back.description, on.description] == ["Previous", "Next"]
    assert [label for label, _ in verdict.options] == ["pass", "fail", "not judged"]
    assert (notes.continuous_update, notes.disabled) == (False, False)


def test_a_judgement_that_cannot_be_saved_is_told(pack):
    _, _, _, verdict, _, said = parts(widgets.review_table(pack, RESULTS))
    pack.path("eval_cases.csv").unlink()
    verdict.value = "true"
    assert said.value.startswith("Not saved: eval_cases.csv is missing")
