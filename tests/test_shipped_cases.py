"""The shipped files of cases: enough of each risk, each risk about one thing, and what no notebook may show."""

import re
from collections import Counter

import pytest

from labkit.evaluation.cases import RISKS, load_cases
from labkit.evaluation.forms import faults_of
from labkit.generation import Sampling
from labkit.layout import DATA, NOTEBOOKS


def counted(name: str) -> Counter:
    return Counter(case.risk for case in load_cases(DATA / name))


@pytest.mark.parametrize(("name", "cases", "of_each"), [("eval_cases.csv", 60, 8), ("eval_cases_held_out.csv", 20, 4)])
def test_every_risk_has_enough_cases_to_see_a_change(name, cases, of_each):
    found = counted(name)
    assert found.total() >= cases
    assert set(found) == set(RISKS)
    assert min(found.values()) >= of_each


def test_shipped_files_of_cases():
    assert counted("eval_cases_ja.csv") == dict.fromkeys(RISKS, 4)
    assert counted("update_cases.csv") == {"grounding": 14}
    assert counted("label_cases.csv") == {"format": 20}
    assert (DATA / "eval_cases_ja.csv").read_bytes().startswith(b"\xef\xbb\xbf")  # or Excel misreads it


@pytest.mark.parametrize("name", ["eval_cases.csv", "eval_cases_held_out.csv"])
def test_a_format_case_asks_for_the_form_alone(name):
    """Values that must be copied are grounding: decoding within a schema mends the form and cannot mend them."""
    cases = load_cases(DATA / name)
    alone = {"json_schema:refund_form", "json_schema:return_label", "bullets:3"}
    assert {case.check for case in cases if case.risk == "format"} <= alone
    assert {case.risk for case in cases if "json_equals" in case.check} == {"grounding"}
    assert all(case.context_id for case in cases if case.check == "bullets:3")


def test_a_label_has_room_for_so_much_text():
    """Without a limit a model that is kept to the schema may write one string until its tokens are used up."""
    label = {"parcel": "77", "from": "Ada Berg", "content": "lamp", "carrier": "Blue Van"}
    assert not faults_of(label, "return_label")
    assert "is too long" in faults_of(label | {"content": "lamp " * 7}, "return_label")


def test_no_notebook_shows_the_held_out_cases():
    held_out = {case.case_id for case in load_cases(DATA / "eval_cases_held_out.csv")} | {"eval_cases_held_out"}
    for path in NOTEBOOKS.glob("*.ipynb"):
        assert not [name for name in held_out if name in path.read_text(encoding="utf-8")], path.name


def test_the_embedded_model_does_not_begin_a_return_label(embedded):
    """The form that tuning teaches: a valid one begins with one of its keys, and no answer does."""
    for case in load_cases(DATA / "label_cases.csv"):
        begun = embedded.chat([{"role": "user", "content": case.prompt}], Sampling(max_tokens=8)).text
        assert begun.startswith("{")
        assert not re.match(r'\{"(parcel|from|content|carrier)"', begun), begun
