"""Grading a class: a row for each submission whatever is in it, points that follow the rubric, copies flagged."""

import csv
import io
import json
import os
import shutil
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from healthy_pack import edit, healthy_folder, rewrite_json
from rich.console import Console

from labkit.cli import main
from labkit.errors import LabError
from labkit.evidence import Pack, read_csv, read_json
from labkit.grading import UNREADABLE, Submission, find_submissions, grade_folder, load_rubric
from labkit.grading.copies import Print, fingerprints, shared
from labkit.grading.discovery import packs_below
from labkit.grading.grade import grade_submission
from labkit.grading.pace import pace
from labkit.grading.rubric import DEFAULT, Rubric, actions_by_gain, mark, score
from labkit.grading.standing import ARTIFACTS, CHECKS, CLAIM_NAMES, Standing, standings
from labkit.report.grades import columns, csv_rows, hardest, print_grades, require_format, write_grades
from labkit.verification import Verdict, verify
from labkit.verification.reading import PackReader

RUBRIC = load_rubric()


@pytest.fixture
def pack(tmp_path_factory, tmp_path) -> Path:
    return Path(shutil.copytree(healthy_folder(tmp_path_factory), tmp_path / "class" / "alice"))


def graded(path: Path, scratch: Path, rubric: Rubric = RUBRIC):
    return [grade for grade, _ in grade_submission(Submission(path.name, path), rubric, scratch)]


def zipped(folder: Path, archive: Path, below: str = "") -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, f"{below}{path.relative_to(folder).as_posix()}")
    return archive


# One pack


def test_a_grade_repeats_what_verify_says_of_every_artifact_check_and_claim(pack, tmp_path):
    (grade,) = graded(pack, tmp_path)
    found = verify(pack)
    assert (grade.route, grade.verdict, grade.problem) == ("local_cpu", "supported", "")
    said = {finding.name: finding.verdict for finding in found.findings}
    said["The loop runs on its route"] = said.pop("The loop runs on local_cpu")
    assert grade.verdicts == said
    assert set(standings(found)) == {*ARTIFACTS, *CHECKS, *CLAIM_NAMES}
    assert standings(found)["lever_table.csv"].verdict is Verdict.NOT_YET  # a rubric may ask for what a route does not


def test_the_score_is_the_share_of_the_points_and_falls_with_a_missing_file(pack, tmp_path):
    (grade,) = graded(pack, tmp_path)
    assert sum(one.possible for one in grade.marks) == 100
    assert grade.score == 80  # nobody has reviewed the cases, and nothing was adapted
    (pack / "model_decision.md").unlink()
    (after,) = graded(pack, tmp_path)
    assert after.score == 74.2  # 80 less a quarter of the decisions, and two of the three checks of one story
    assert after.verdict == "not yet"


def test_a_contradiction_costs_its_whole_criterion_and_leads_the_next_actions(pack, tmp_path):
    edit(pack, "openllm_gpu_training_run/training_log.csv", ",cpu,", ",cuda,")
    (grade,) = graded(pack, tmp_path)
    points = {one.title: one.points for one in grade.marks}
    assert grade.verdict == "contradicted"
    assert points["First run and training"] == 0
    assert "training" in grade.actions[0]
    assert len(grade.actions) == 3


def test_the_next_actions_are_those_that_earn_most(pack):
    stands = standings(verify(pack))
    assert actions_by_gain(RUBRIC, "local_cpu", stands)[0].startswith("The cases were reviewed by a person: read the")
    gone = {name: Standing(Verdict.NOT_YET, f"make {name}") for name in stands}
    first = actions_by_gain(RUBRIC, "local_cpu", gone, most=40)
    assert first[0] == "The cases were reviewed by a person: make The cases were reviewed by a person"
    assert not [action for action in first if "gpu_plan" in action or "CUDA" in action]  # not on this route
    assert [action for action in actions_by_gain(RUBRIC, "rented_gpu", gone, most=40) if "gpu_plan.md" in action]


def test_only_a_contradiction_is_worse_than_a_gap():
    criterion = RUBRIC.criteria[0]
    stands = {name: Standing(Verdict.SUPPORTED, "") for name in criterion.needs}
    assert mark(criterion, stands).points == criterion.points
    gap = stands | {criterion.needs[0]: Standing(Verdict.NOT_YET, "x")}
    assert mark(criterion, gap).points == criterion.points * 3 / 4
    denied = stands | {criterion.needs[0]: Standing(Verdict.CONTRADICTED, "x")}
    assert mark(criterion, denied).points == 0
    assert score(()) == 0


# Time on task


def test_minutes_leave_out_breaks_and_times_that_say_nothing():
    times = ["2026-01-05T10:00:00+00:00", "2026-01-05T10:20:00+00:00", "2026-01-05T11:30:00+00:00"]
    found = pace(
        [*reversed(times), "yesterday", "2026-01-05T09:00:00", "2026-01-05T12:31:00+01:00", "0001-01-01T00:00:00+09:00"]
    )
    assert (found.first, found.last, found.minutes) == (times[0], "2026-01-05T11:31:00+00:00", 21.0)
    assert pace([]).minutes is None


# What is handed in


def test_folders_archives_and_exports_of_a_platform_are_found(pack, tmp_path):
    room = pack.parent
    zipped(pack, room / "bob.zip", below="evidence/local_cpu/")
    zipped(pack, room / "carol_17_assignsubmission_file" / "pack.ZIP")
    zipped(pack, room / "dave.zip", below="evidence/reference/local_cpu/")
    (room / "erin" / "nothing").mkdir(parents=True)
    (room / "frank.7z").write_bytes(b"7z\xbc\xaf")
    (room / "grace").symlink_to(pack)
    (room / "notes.txt").touch()
    (room / ".hidden").mkdir()
    submissions, loose = find_submissions(room)
    assert loose == ("notes.txt",)
    rows = {grade.pack: grade for one in submissions for grade in graded(one.path, tmp_path)}
    assert list(rows) == [
        "alice", "bob.zip", "carol_17_assignsubmission_file/pack.ZIP", "dave.zip", "erin", "frank.7z", "grace",
    ]  # fmt: skip
    assert [name for name, row in rows.items() if row.score == 80] == list(rows)[:3]
    assert {row.verdict for row in list(rows.values())[3:]} == {UNREADABLE}
    assert "no pack" in rows["dave.zip"].problem
    assert "link" in rows["grace"].problem
    assert not [path for path in tmp_path.iterdir() if path.name != "class"]  # nothing unpacked is left behind


def test_two_packs_of_one_person_are_two_rows(pack, tmp_path):
    home = pack.parent / "bob"
    for route in ("local_cpu", "again"):
        shutil.copytree(pack, home / "evidence" / route)
    assert [grade.pack for grade in graded(home, tmp_path)] == ["bob/evidence/again", "bob/evidence/local_cpu"]


def test_an_archive_that_leads_out_is_a_row_and_writes_nothing(pack, tmp_path):
    for name, entry in (("up.zip", "../escaped.txt"), ("root.zip", str(tmp_path / "escaped.txt"))):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.writestr("manifest.json", "{}")
            file.writestr(entry, "x")
        (grade,) = graded(tmp_path / name, tmp_path)
        assert grade.verdict == UNREADABLE
        assert "escaped" in grade.problem
    assert not list(tmp_path.rglob("escaped.txt"))


def test_an_archive_of_zeros_or_with_a_link_is_a_row(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("manifest.json", bytes(20 * 2**20))
    link = zipfile.ZipInfo("manifest.json")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    (bomb,), (linked,) = graded(tmp_path / "bomb.zip", tmp_path), graded(tmp_path / "link.zip", tmp_path)
    assert bomb.verdict == linked.verdict == UNREADABLE
    assert "manifest.json" in bomb.problem
    assert "link" in linked.problem


def test_a_pack_of_garbage_is_graded_and_a_class_of_nothing_is_an_error(pack, tmp_path):
    for path in pack.rglob("*"):
        if path.is_file():
            path.write_bytes(b"\x00\xff{[")
    (grade,) = graded(pack, tmp_path)
    assert (grade.verdict, grade.score) == ("not yet", 0)
    (tmp_path / "empty").mkdir()
    for folder, said in (("nowhere", "there is no folder nowhere"), ("empty", "holds no folder and no archive")):
        with pytest.raises(LabError, match=said):
            find_submissions(tmp_path / folder)


def test_packs_are_not_looked_for_behind_links_or_endlessly_deep(pack, tmp_path):
    top = tmp_path / "top"
    top.mkdir()
    (top / "link").symlink_to(pack)
    deep = top.joinpath(*"abcdefghijk")
    shutil.copytree(pack, deep)
    assert packs_below(top) == []
    assert packs_below(pack) == [pack]


# Copies


def test_a_copied_output_is_flagged_though_names_hashes_and_line_ends_were_changed(pack, tmp_path):
    other = Path(shutil.copytree(pack, pack.parent / "bob"))
    log = other / "eval_results.csv"
    log.write_text(log.read_text().replace("mini-instruct", "my-model").replace("\n", "\r\n"), newline="")
    Pack(other, "local_cpu").record("eval_results.csv", "13.2")
    rewrite_json(other, "shutdown_proof.json", pid=1)
    prints = [Print(path.name, path.name, fingerprints(PackReader(path))) for path in (pack, other)]
    flags = shared(prints)
    files = [name for found in flags[1] for name in found.files]
    assert "eval_results.csv" in files
    assert "shutdown_proof.json" not in files
    assert "requirements-freeze.txt" not in files
    assert {found.with_packs for found in flags[1]} == {("alice",)}


def test_a_digit_changed_here_and_there_does_not_hide_a_copy(pack):
    measured = read_csv(pack / "eval_results.csv")
    for number, row in enumerate(measured):
        row["latency_ms"] = f"{50 + number / 10}"
    other = Path(shutil.copytree(pack, pack.parent / "bob"))
    for folder, last in ((pack, "50.9"), (other, "51.3")):
        measured[-1]["latency_ms"] = last
        Pack(folder, "local_cpu").write_csv("eval_results.csv", measured, list(measured[0]), "13.2")
    prints = [Print(path.name, path.name, fingerprints(PackReader(path))) for path in (pack, other)]
    assert "eval_results.csv" in [name for found in shared(prints)[1] for name in found.files]


def test_one_person_may_hand_in_twice_and_the_reference_pack_is_nobodys(pack):
    values = fingerprints(PackReader(pack))
    assert shared([Print("alice", "a", values), Print("alice", "b", values)]) == [(), ()]
    ((found,),) = shared([Print("alice", "a", values)], [Print("reference", "the reference pack", values)])
    assert (found.with_packs, found.others) == (("the reference pack",), 1)


def test_a_thousand_equal_packs_are_told_in_short_rows(pack):
    values = fingerprints(PackReader(pack))
    (found,) = shared([Print(str(n), str(n), values) for n in range(1000)])[7]
    assert (found.others, len(found.with_packs)) == (999, 5)


def test_blank_files_and_short_notes_share_nothing(pack):
    other = Path(shutil.copytree(pack, pack.parent / "bob"))
    for folder in (pack, other):
        edit(folder, "eval_cases.csv", ",a right answer,", ",a right answer,", record=False)
        (folder / "benchmark.json").write_text('{"rows": []}')
        (folder / "failure_drill.json").write_text('{"drills": [{"time": [], "seconds": {}}]}')
    assert not {"eval_cases.csv", "benchmark.json"} & set(fingerprints(PackReader(pack)))


def test_the_same_notes_of_two_people_are_flagged(pack):
    path = pack / "eval_cases.csv"
    rows = list(csv.DictReader(path.open()))
    for row in rows:
        row["notes"] = "the answer names the note, but the days are invented"
    with path.open("w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert "eval_cases.csv" in fingerprints(PackReader(pack))


# The rubric


def test_the_default_rubric_names_only_what_verify_knows_and_gives_100_points():
    assert sum(criterion.points for criterion in RUBRIC.of_route("local_cpu")) == 100
    assert sum(criterion.points for criterion in RUBRIC.of_route("rented_gpu")) == 115
    assert load_rubric(DEFAULT) == RUBRIC


GOOD = {"title": "T", "points": 1, "needs": ["README.md"]}


@pytest.mark.parametrize(
    ("criteria", "said"),
    [
        ([GOOD | {"needs": ["REDME.md"]}], "criterion 1 names REDME.md, no artifact"),
        ([GOOD, GOOD | {"title": "U", "points": -1}], "criterion 2 has points"),
        ([GOOD | {"points": True}], "criterion 1 has points"),
        ([GOOD | {"points": float("nan")}], "criterion 1 has points"),
        ([GOOD | {"needs": "README.md"}], "criterion 1 names README.md"),
        ([GOOD | {"needs": []}], "criterion 1 needs at least one name"),
        ([GOOD | {"needs": [["README.md"]]}], "criterion 1 names"),
        ([GOOD | {"routes": ["mars"]}], "criterion 1 names mars, no route"),
        ([GOOD | {"weight": 2}], "criterion 1 needs title, points and needs"),
        ([GOOD, GOOD], "a title of its own"),
        ([GOOD | {"title": None}], "criterion 1 has a title that is no text"),
        ([], "a title of its own"),
        ("none", "criteria is a list"),
    ],
)
def test_a_rubric_that_is_none_says_where(tmp_path, criteria, said):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"title": "Mine", "criteria": criteria}))
    with pytest.raises(LabError, match=said):
        load_rubric(path)


def test_a_rubric_file_that_is_missing_or_no_yaml_is_refused(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for name, said in (("no.yaml", "no rubric no.yaml"), ("bad.yaml", "cannot be read"), ("bytes.yaml", "cannot be")):
        with pytest.raises(LabError, match=said):
            load_rubric(tmp_path / name)


# The whole class, in processes


class Trap(Rubric):
    """A rubric that ends or stops the worker on packs of two routes, as too much memory or time would."""

    def of_route(self, route: str):
        if route == "free_colab":
            os._exit(7)
        if route == "rented_gpu":
            time.sleep(600)
        return super().of_route(route)


def set_route(folder: Path, route: str) -> None:
    manifest = read_json(folder / "manifest.json")
    (folder / "manifest.json").write_text(json.dumps(manifest | {"route": route}))


def test_a_pack_that_ends_its_process_is_a_row_and_the_others_are_graded(pack):
    set_route(shutil.copytree(pack, pack.parent / "bob"), "free_colab")
    shutil.copytree(pack, pack.parent / "carol")
    submissions, _ = find_submissions(pack.parent)
    done = []
    grades = grade_folder(submissions, Trap("trap", RUBRIC.criteria), jobs=1, on_result=done.append)
    assert [(grade.pack, grade.verdict) for grade in grades] == [
        ("alice", "supported"), ("bob", UNREADABLE), ("carol", "supported"),
    ]  # fmt: skip
    assert "exit code 7" in grades[1].problem
    assert len(done) == 3
    assert grades[0].shared[0].with_packs == ("carol",)


def test_a_pack_that_takes_too_long_is_a_row(pack):
    set_route(pack, "rented_gpu")
    (grade,) = grade_folder(find_submissions(pack)[0], Trap("trap", RUBRIC.criteria), seconds=2.0)
    assert (grade.pack, grade.verdict) == ("alice", UNREADABLE)
    assert "not read in 2 s" in grade.problem
    with pytest.raises(LabError, match="at least one job"):
        grade_folder((), RUBRIC, jobs=0)


def test_labkit_grade_writes_csv_and_page(pack, tmp_path, monkeypatch, capsys):
    shutil.copytree(pack, pack.parent / "bob")
    (pack.parent / "=cmd()").mkdir()
    words = ["labkit", "grade", str(pack.parent), "--jobs", "1"]
    out = ["--out", str(tmp_path / "g.csv"), "--out", str(tmp_path / "g.html")]
    monkeypatch.setattr(sys, "argv", [*words, *out])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 packs: 2 supported, 1 unreadable. Median score 80. 2 share outputs with another pack." in printed
    table = pd.read_csv(tmp_path / "g.csv")
    assert list(table["pack"]) == ["'=cmd()", "alice", "bob"]
    assert table["score"].dtype == float
    assert table.loc[1, "artifact: README.md"] == "supported"
    assert pd.to_datetime(table["last_written"]).notna().sum() == 2
    assert (tmp_path / "g.html").read_text().count("<tr data-verdict") == 3


@pytest.mark.parametrize("words", [("--out", "g.xlsx"), ("--out", "g.csv", "--rubric", "none.yaml")])
def test_labkit_grade_refuses_before_it_reads_a_class(pack, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["labkit", "grade", str(pack.parent), *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "next: " in capsys.readouterr().err


# What is written


HOSTILE = "<script>alert(1)</script>"


def test_the_page_escapes_a_strangers_words_and_runs_only_our_script(pack, tmp_path):
    (grade,) = graded(pack, tmp_path)
    write_grades([replace(grade, pack=HOSTILE, actions=(HOSTILE,), problem=HOSTILE)], RUBRIC, tmp_path / "g.html")
    html = (tmp_path / "g.html").read_text()
    assert html.count("<script") == 1
    assert "alert(1)</script" not in html
    assert "script-src &#39;sha256-" in html or "script-src 'sha256-" in html
    assert "//" not in html.split("<style>")[0]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", " ="])
def test_a_cell_that_a_spreadsheet_would_run_is_text(pack, tmp_path, start):
    (grade,) = graded(pack, tmp_path)
    (row,) = csv_rows([replace(grade, pack=f"{start}HYPERLINK(1)")], RUBRIC)
    assert row["pack"] == f"'{start}HYPERLINK(1)"
    assert row["score"] == 80.0


def test_every_class_of_a_rubric_has_the_same_columns(pack, tmp_path):
    names = columns(RUBRIC)
    assert len(set(names)) == len(names)
    (grade,) = graded(pack, tmp_path)
    assert set(csv_rows([grade], RUBRIC)[0]) <= set(names)


def test_what_the_class_lacks_is_counted_among_those_who_could_have_it(pack, tmp_path):
    (grade,) = graded(pack, tmp_path)
    (pack / "README.md").unlink()
    (weaker,) = graded(pack, tmp_path)
    broken = replace(grade, marks=(), verdicts={})
    told = {name: (count, of) for name, count, of in hardest([grade, weaker, broken], RUBRIC)}
    assert told["The cases were reviewed by a person"] == (2, 2)
    assert told["README.md"] == (1, 2)
    assert not {"gpu_plan.md", "eval_cases.csv"} & set(told)


def test_the_terminal_names_at_most_twenty_findings(pack, tmp_path):
    (grade,) = graded(pack, tmp_path)
    broken = [replace(grade, pack=f"p{n}", verdict=UNREADABLE, problem="[red]broken[/red]") for n in range(30)]
    console = Console(file=io.StringIO(), width=80)
    print_grades(broken[:2], ["a.txt"] * 7, [tmp_path / "g.csv"], console)
    print_grades(broken, [], [tmp_path / "g.csv"], console)
    text = console.file.getvalue()
    assert "[red]broken[/red]" in text
    assert "30 findings to look at" in text
    assert "and 2 more" in text
    assert max(map(len, text.splitlines())) <= 80
    with pytest.raises(LabError, match=r"neither \.csv nor \.html"):
        require_format(Path("g.pdf"))
