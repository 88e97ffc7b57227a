"""Levers: each is pulled for real on a tiny model, and the table is what the runs say."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from labkit.adaptation.lora.settings import LoraSettings
from labkit.cli import app
from labkit.errors import LabError
from labkit.evaluation.cases import Case
from labkit.evidence import Pack, read_csv, read_json
from labkit.generation import Sampling
from labkit.levers.plan import LEVERS, PLAIN, Lever, lever
from labkit.levers.run import NEW_FORM, NEW_POLICY, LeverTask, bases_compared, case_groups, pull, pull_all, with_plain
from labkit.levers.table import read_table, write_table
from labkit.plots import lever_bars
from labkit.report.levers import print_levers
from labkit.verification import Verdict, verify

FORM, TALK = "format", "regression"
TUNING = LoraSettings(r=4, steps=3, batch_size=4, log_every=1, learning_rate=1e-2, precision="fp32")


def case(case_id: str, risk: str, check: str, expected: str = "") -> Case:
    return Case(case_id, f"Say {case_id}.", "an answer", risk, "", "", "", check, expected)


@pytest.fixture(scope="module")
def task(tiny_model_folder) -> LeverTask:
    groups = {
        FORM: [case("form_1", FORM, "json_schema:return_label"), case("form_2", FORM, "json_schema:return_label")],
        TALK: [case("talk_1", TALK, "min_words:1"), case("talk_2", TALK, "equals", "what no random model says")],
    }
    return LeverTask(str(tiny_model_folder), "cpu", groups, sampling=Sampling(max_tokens=200))


@pytest.fixture(scope="module")
def pulled(task, tmp_path_factory) -> Path:
    """A pack in which the plain run, the schema, and an adapter with two seeds were pulled."""
    pack = Pack(tmp_path_factory.mktemp("packs") / "local_cpu", "local_cpu")
    adapter = Lever("lora", "an adapter", tuning=TUNING)
    pull_all(pack, task, [PLAIN, lever("schema"), adapter], seeds=(1, 2))
    write_table(pack)
    return pack.folder


def test_without_bitsandbytes_a_format_is_named_as_not_run_and_the_rest_goes_on(task, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    pack, said = Pack(tmp_path / "local_cpu", "local_cpu"), []
    pull_all(pack, task, [lever("int8"), PLAIN, lever("nf4")], on_event=said.append)
    for name in ("int8", "nf4"):
        assert [line for line in said if line.startswith(f"{name}: not run: ") and "needs bitsandbytes" in line]
    assert write_table(pack).levers == ["plain"]
    assert write_table(pack).changes("nf4") == []


def test_one_lever_brings_the_plain_run_where_there_is_none_of_the_model(pulled, task, tmp_path):
    chosen = [lever("rag")]
    assert with_plain(Pack(tmp_path / "local_cpu", "local_cpu"), chosen) == [PLAIN, *chosen]
    assert with_plain(Pack(pulled, "local_cpu"), chosen, task.model) == chosen
    assert with_plain(Pack(pulled, "local_cpu"), chosen, "mini-instruct") == [PLAIN, *chosen]
    assert with_plain(Pack(tmp_path / "local_cpu", "local_cpu"), [*chosen, PLAIN]) == [*chosen, PLAIN]


@pytest.fixture
def pack(pulled, tmp_path) -> Path:
    return Path(shutil.copytree(pulled, tmp_path / "local_cpu"))


def test_the_schema_mends_every_form_and_nothing_else(pulled):
    table = read_table(pulled)
    assert table.groups == (FORM, TALK)
    assert table.passed("plain", FORM) == (0, 0, 2)
    assert table.passed("schema", FORM) == (2, 2, 2)
    assert table.passed("schema", TALK) == table.passed("plain", TALK)
    assert table.changes("schema") == [
        {"group": FORM, "plain": "0/2", "schema": "2/2", "fixed": ["form_1", "form_2"], "broken": []}
    ]


def test_a_trained_lever_has_a_run_for_each_seed_and_the_first_adapter_stays(pulled, task):
    assert [row.seed for row in read_table(pulled).runs_of("lora")] == [1, 2]
    runs = [read_json(pulled / "levers" / f"lora-{seed}" / "run.json") for seed in (1, 2)]
    assert all(run["training"]["steps"] == 3 and run["training"]["trainable_parameters"] > 0 for run in runs)
    revisions = {run["target"]["revision"] for run in runs}
    assert len(revisions) == 2, "an adapter is told apart by its revision"
    card = read_json(pulled / "adapter" / "card.json")
    assert card["settings"]["seed"] == 1
    assert runs[0]["target"]["revision"].startswith(card["base_revision"])


def test_the_runs_are_read_as_evaluations_by_the_other_commands(pulled):
    compared = CliRunner().invoke(app, ["compare", str(pulled / "levers" / "plain"), str(pulled / "levers" / "schema")])
    assert compared.exit_code == 0
    assert "2 fixed, 0 broken of 4" in compared.output


def test_the_table_is_shown_and_drawn(pulled, capsys):
    table = read_table(pulled)
    print_levers(table)
    shown = capsys.readouterr().out
    assert "schema" in shown
    assert "(2)" in shown
    assert lever_bars(table)._repr_png_().startswith(b"\x89PNG")


def finding(folder: Path):
    return next(f for f in verify(folder, "13.6").findings if f.name == "lever_table.csv")


def test_a_table_that_its_runs_say_is_supported(pack):
    assert finding(pack).verdict is Verdict.SUPPORTED
    assert "4 runs of 2 groups" in finding(pack).detail


def test_a_table_without_its_plain_run_is_not_yet(pack):
    shutil.rmtree(pack / "levers" / "plain")
    assert finding(pack).verdict is Verdict.NOT_YET
    with pytest.raises(LabError, match="the plain run is missing"):
        read_table(pack)


def test_a_run_on_another_base_than_the_plain_one_is_left_out_and_named(pack, capsys):
    results = pack / "levers" / "schema" / "eval_results.csv"
    base = read_json(pack / "levers" / "schema" / "run.json")["target"]["revision"]
    results.write_text(results.read_text().replace(base, "0123456789ab"))
    trained = pack / "levers" / "lora-1"
    facts = read_json(trained / "run.json")
    assert facts["training"]["base_revision"] == base
    full = pack / "levers" / "full-1"
    shutil.copytree(trained, full)  # every weight: its answers name the weights that came out, not its base
    (full / "eval_results.csv").write_text((full / "eval_results.csv").read_text().replace(base, "aaaaaaaaaaaa"))
    assert read_table(pack).levers == ["plain", "lora", "full"]
    facts["training"]["base_revision"] = "0123456789ab"
    (full / "run.json").write_text(json.dumps(facts))
    table = read_table(pack)
    assert (table.levers, table.others) == (["plain", "lora"], ("schema", "full-1"))
    print_levers(table)
    assert "left out, on another base than the plain run: schema, full-1" in capsys.readouterr().out


def test_a_table_with_a_better_count_is_contradicted(pack):
    rows = read_csv(pack / "lever_table.csv")
    rows[-1]["passed"] = "2"
    with open(pack / "lever_table.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    assert finding(pack).verdict is Verdict.CONTRADICTED
    assert "lora 2 regression" in finding(pack).detail


def test_qlora_runs_beside_lora(task):
    rows = bases_compared(task, steps=4)
    assert [row["base"] for row in rows] == ["16 or 32 bits", "nf4"]
    assert all(float(row["seconds a step"]) > 0 for row in rows)


def test_the_shipped_groups_and_levers():
    groups = case_groups()
    assert (len(groups[NEW_POLICY]), len(groups[NEW_FORM])) == (14, 20)
    assert [entry.name for entry in LEVERS if entry.trained] == ["lora", "no_replay", "full"]


def test_bad_input_is_told(task, tmp_path):
    with pytest.raises(LabError, match="no lever called 'luck'"):
        lever("luck")
    wrong = CliRunner().invoke(app, ["levers", "--seeds", "1,x", "--out", str(tmp_path / "p")])
    assert isinstance(wrong.exception, LabError)
    assert "are no seeds" in wrong.exception.what
    with pytest.raises(LabError, match="no model folder"):
        pull(Pack(tmp_path / "q", "local_cpu"), PLAIN, LeverTask("./nothing", groups=task.groups))
