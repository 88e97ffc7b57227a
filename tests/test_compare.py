"""Runs of the same cases are paired case by case, and only what they allow is said."""

import math

import pytest
from typer.testing import CliRunner

from labkit.cli import app
from labkit.errors import LabError
from labkit.evaluation.compare import Run, compare_runs, mcnemar, pass_rates, read_run, speeds, wilson_interval
from labkit.evaluation.records import RESULT_COLUMNS
from labkit.evidence import Pack
from labkit.plots import case_changes

RISKS = ("format", "grounding")


def rows(verdicts, **more):
    """One row for each letter of `verdicts`: P passed, F failed; the risks take turns."""
    made = {}
    for number, verdict in enumerate(verdicts):
        row = dict.fromkeys(RESULT_COLUMNS, "")
        row |= {"case_id": f"case_{number}", "risk": RISKS[number % 2], "check": "refuses", "output": f"<b>{number}"}
        made[f"case_{number}"] = row | {"pass": str(verdict == "P").lower(), "notes": "says why"} | more
    return made


def compared(before, after):
    return compare_runs(Run("base", rows(before)), Run("new", rows(after)))


def pack(folder, verdicts, **more):
    Pack(folder, "local_cpu").write_csv("eval_results.csv", rows(verdicts, **more).values(), RESULT_COLUMNS, "13.2")
    return folder


def test_each_case_is_paired_with_itself():
    found = compared("PPFF", "PFPF")
    assert [change.change for change in found.changes] == ["still passing", "broken", "fixed", "still failing"]
    assert found.ids("broken") == ("case_1",)
    assert found.by_risk()["grounding"] == {"broken": 1, "fixed": 0, "still failing": 1, "still passing": 0}


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("PPF", "PPF", "0 fixed, 0 broken of 3: no verdict changed."),
        ("FFFP" + "P" * 6, "PPPF" + "P" * 6, "3 fixed, 1 broken of 10 (p = 0.62): not enough cases to call it better."),
        ("F" * 5, "P" * 5, "5 fixed, 0 broken of 5 (p = 0.062): not enough cases to call it better."),
        ("F" * 6, "P" * 6, "6 fixed, 0 broken of 6 (p = 0.031): better on these cases."),
        ("P" * 6, "F" * 6, "0 fixed, 6 broken of 6 (p = 0.031): worse on these cases."),
        ("PPF", "FFP", "1 fixed, 2 broken of 3 (p = 1): not enough cases to call it worse."),
    ],
)
def test_the_sentence_is_no_stronger_than_the_cases(before, after, sentence):
    assert compared(before, after).sentence == sentence


def test_a_better_run_with_a_regression_says_so():
    found = compared("F" * 9 + "P", "P" * 9 + "F")
    assert found.sentence == (
        "9 fixed, 1 broken of 10 (p = 0.021): better on these cases. The 1 broken are regressions all the same."
    )


def test_mcnemar_is_the_two_sided_binomial_test():
    assert mcnemar(0, 0) == mcnemar(1, 0) == mcnemar(2, 2) == 1.0
    assert mcnemar(10, 2) == mcnemar(2, 10) == pytest.approx(158 / 4096)


def test_the_wilson_interval_solves_its_equation():
    """Its ends are the rates p at which the observed rate is exactly z standard errors away."""
    for passed, total in [(0, 8), (3, 10), (8, 8), (50, 100)]:
        for end in wilson_interval(passed, total):
            distance = abs(passed / total - end)
            assert distance == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / total), abs=1e-9)
    assert wilson_interval(8, 8)[0] == pytest.approx(0.6756, abs=1e-4)


def test_pass_rates_are_told_for_each_run_and_risk():
    (first, second) = pass_rates([Run("base", rows("PFPP"))])
    assert (first["risk"], first["passed"], first["total"]) == ("format", 2, 2)
    assert (second["risk"], second["passed"], second["total"]) == ("grounding", 1, 2)
    assert 0 < second["low"] < 0.5 < second["high"] < 1


def test_runs_of_other_cases_are_not_compared():
    with pytest.raises(LabError, match="1 cases are only in base: case_2"):
        compared("PPP", "PP")
    with pytest.raises(LabError, match="1 cases are only in new: case_2"):
        compared("PP", "PPP")
    other = rows("PP", check="bullets:3")
    with pytest.raises(LabError, match="case_0 is judged by other checks in new than in base"):
        compare_runs(Run("base", rows("PP")), Run("new", other))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case_id,risk\na,b\n", "eval_results.csv has no column check, output, pass, notes"),
        ("case_id,risk,check,output,pass,notes\n", "eval_results.csv has no rows"),
        ("case_id,risk,check,output,pass,notes\na,b,c,d,maybe,e\n", "row 2, column pass: 'maybe' is neither"),
        ("case_id,risk,check,output,pass,notes\n" + "a,b,c,d,true,e\n" * 2, "has a case twice"),
    ],
)
def test_a_file_that_is_no_run_is_named(tmp_path, text, message):
    (tmp_path / "eval_results.csv").write_text(text, encoding="utf-8")
    with pytest.raises(LabError, match=message):
        read_run(tmp_path)


def test_the_command_shows_what_changed_and_a_regression_is_exit_1(tmp_path):
    before, after = pack(tmp_path / "base", "PPFF"), pack(tmp_path / "new", "PFPF")
    page = tmp_path / "compared.html"
    done = CliRunner().invoke(app, ["compare", str(before), str(after), "--html", str(page)])
    assert done.exit_code == 1
    for words in (
        "new against base",
        "case_1",
        "broken",
        "1 fixed, 1 broken of 4",
        "says why",
        "2 of 2",
        "95 % interval",
    ):
        assert words in done.output, done.output
    html = page.read_text(encoding="utf-8")
    assert "1 fixed, 1 broken of 4" in html
    assert "&lt;b&gt;1" in html
    assert "<b>1" not in html
    better = CliRunner().invoke(app, ["compare", str(before), str(before), "--json"])
    assert better.exit_code == 0
    assert '"sentence": "0 fixed, 0 broken of 4: no verdict changed."' in better.output


@pytest.mark.parametrize(
    ("before", "after", "setting"),
    [
        ({"levers": "plain"}, {"levers": "plain"}, ""),
        ({"levers": "plain"}, {"levers": "schema"}, "schema: none -> schema"),
        ({"levers": "prompt a 1"}, {"levers": "prompt a 2"}, "prompt: prompt a 1 -> prompt a 2"),
        ({"levers": "rag bm25 + schema"}, {"levers": "schema"}, "rag: rag bm25 -> none"),
        ({"model": "m", "revision": "1"}, {"model": "n", "revision": "2"}, "model: m -> n"),
        ({"quantization": "float32"}, {"quantization": "int8"}, "quantization: float32 -> int8"),
        ({}, {"levers": "schema", "model": "m"}, ""),
    ],
)
def test_what_was_set_otherwise_is_named(before, after, setting):
    found = compare_runs(Run("base", rows("PF", **before)), Run("new", rows("PF", **after)))
    assert found.setting == setting
    assert found.as_dict()["setting"] == setting


def test_two_changes_at_once_cannot_be_told_apart():
    first, second = ({"levers": "plain"}, {"levers": "prompt a 1 + schema", "temperature": "0.0"})
    found = compare_runs(Run("base", rows("PF", **first)), Run("new", rows("PF", **second)))
    assert found.setting.endswith("2 things were changed at once: what each of them did cannot be told.")


def test_speed_is_told_of_all_cases_and_of_those_that_must_be_a_form():
    slow = rows("PF", completion_tokens="30", latency_ms="300.0")
    slow["case_1"] |= {"check": "json_schema:refund_form", "latency_ms": "100.0"}
    told = speeds([Run("slow", slow), Run("old", rows("PF"))])
    assert told == [
        {"run": "slow", "tokens_per_second": 150.0, "of_forms": 300.0},
        {"run": "old", "tokens_per_second": None, "of_forms": None},
    ]


def test_the_page_names_the_setting_and_the_speeds(tmp_path):
    before = pack(tmp_path / "base", "PF", levers="plain", completion_tokens="10", latency_ms="100")
    after = pack(tmp_path / "new", "PF", levers="schema", completion_tokens="10", latency_ms="200")
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["compare", str(before), str(after), "--html", str(page)])
    assert done.exit_code == 0, done.output
    html = page.read_text(encoding="utf-8")
    for words in ("Changed: schema: none -&gt; schema", "100.0", "50.0"):
        assert words in html
    assert "changed: schema: none -> schema" in done.output


def test_a_run_of_an_older_version_is_still_compared(tmp_path):
    """Without the columns that came later: repeat, levers, settings."""
    columns = RESULT_COLUMNS[: RESULT_COLUMNS.index("backend")]
    for name, verdicts in (("old", "PF"), ("new", "PP")):
        kept = [{key: row[key] for key in columns} for row in rows(verdicts).values()]
        Pack(tmp_path / name, "local_cpu").write_csv("eval_results.csv", kept, columns, "13.2")
    found = compare_runs(read_run(tmp_path / "old"), read_run(tmp_path / "new"))
    assert (found.ids("fixed"), found.setting) == (("case_1",), "")


def test_a_picture_that_cannot_be_drawn_is_told(tmp_path):
    before = pack(tmp_path / "base", "PF")
    for name in ("plot.xyz", "nowhere/plot.png"):
        done = CliRunner().invoke(app, ["compare", str(before), str(before), "--plot", str(tmp_path / name)])
        assert "cannot be drawn" in str(done.exception)


def test_each_comparison_has_its_panel():
    figure = case_changes(compared("PPFF", "PFPF"), compared("PPFF", "PPPP"))
    assert [len(axes.patches) for axes in figure.axes] == [4, 4]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


def test_the_plot_shows_broken_cases_to_the_left():
    figure = case_changes(compared("PPFF", "PFPF"))
    (axes,) = figure.axes
    assert sorted(bar.get_width() for bar in axes.patches) == [-1, 0, 0, 1]
    assert axes.get_title() == "new against base"
