"""Forecast: work counted where the lessons take it from, costs measured by the real loops, minutes compared."""

import json
import re
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nbformat
import pytest
from test_cli import here, refusal

from labkit.adaptation.lora.chats import load_chats
from labkit.adaptation.lora.run import Sources, prepare
from labkit.errors import LabError
from labkit.evidence import Pack, read_csv, read_json
from labkit.forecast import answering, cards, compare, keep, learning, machine
from labkit.forecast.predict import WITHIN, forecast, seconds
from labkit.forecast.probe import Probe, machine_name
from labkit.forecast.rows import forecast_rows, notes, work_rows
from labkit.forecast.timing import seconds_each
from labkit.forecast.units import COMPUTE, Unit
from labkit.forecast.work import (
    ANSWERS_TIMED,
    EDGE_FORMATS,
    EDGE_SCORED,
    EDGE_TIMED,
    FORMATS,
    QLORA_STEPS,
    SCORED,
    STRICT_SECONDS,
    tuning_steps,
    work_of,
)
from labkit.landscape.prices import Price
from labkit.layout import DATA, NOTEBOOKS
from labkit.levers.plan import LEVERS
from labkit.levers.run import case_groups
from labkit.report.page import write_report
from labkit.routes import load_route, load_routes
from labkit.workbook import LESSONS

LOCAL, COLAB, RENTED = (load_route(name) for name in ("local_cpu", "free_colab", "rented_gpu"))
MADE = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.fixture
def probe() -> Probe:
    """Costs as they were on two busy cores."""
    costs = {unit.name: 1.0 for unit in Unit}
    costs |= {"MINI_TOKENS": 0.1, "TINY_TOKENS": 0.05, "LORA_STEP": 0.3, "FULL_STEP": 0.4, "CASE": 0.06}
    memory = {"kernel": 350.0, "process": 230.0, "training": 510.0, "answers": 610.0, "server": 330.0, "tuning": 830.0}
    return Probe("a CPU", "cpu", 2, "2.13.0+cpu", MADE.isoformat(), 0.5, 30.0, 4e10, 1.6e10, 1.5e9, costs, memory)


def amount(work, *units: Unit) -> float:
    return sum(piece.amount for piece in work if piece.unit in units)


def code_of(notebook: str) -> str:
    cells = nbformat.read(NOTEBOOKS / notebook, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


# Work


@pytest.mark.parametrize("route", load_routes(), ids=lambda route: route.route)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_lesson_has_its_work_on_every_route_and_device(route, device):
    for lesson in LESSONS:
        work = work_of(lesson.number, route, device)
        assert work[0].unit is Unit.KERNEL
        assert all(piece.amount > 0 and piece.why for piece in work)


def test_the_work_follows_the_route_files_sizes():
    longer = replace(LOCAL, train_steps=2 * LOCAL.train_steps)
    tokens = [amount(work_of("13.2", route, "cpu"), Unit.MINI_TOKENS) for route in (LOCAL, longer)]
    assert tokens[1] - tokens[0] == pytest.approx(LOCAL.train_steps * LOCAL.batch_size * 64 / 1000)
    three = replace(LOCAL, lever_seeds=(13, 14, 15))
    steps = [amount(work_of("13.6", route, "cpu"), Unit.LORA_STEP, Unit.FULL_STEP) for route in (LOCAL, three)]
    once = QLORA_STEPS * 4 / 3
    assert steps[1] - once == pytest.approx(3 * (steps[0] - once))
    asked = amount(work_of("13.4", replace(LOCAL, benchmark_requests=120), "cpu"), Unit.CASE_HTTP)
    assert asked - amount(work_of("13.4", LOCAL, "cpu"), Unit.CASE_HTTP) == 2 * 100


def test_a_gpu_route_without_its_gpu_counts_the_fallback():
    assert amount(work_of("13.2", RENTED, "cpu"), Unit.MINI_TOKENS) == amount(
        work_of("13.2", LOCAL, "cpu"), Unit.MINI_TOKENS
    )
    on_gpu = amount(work_of("13.2", RENTED, "cuda"), Unit.MINI_TOKENS)
    assert on_gpu == pytest.approx((RENTED.train_steps + 30) * RENTED.batch_size * 64 / 1000)


def test_every_lever_asks_every_case():
    asked = amount(work_of("13.6", LOCAL, "cpu"), Unit.CASE, Unit.CASE_SCHEMA, Unit.CASE_INT8, Unit.CASE_NF4)
    assert asked - FORMATS * SCORED == len(LEVERS) * sum(map(len, case_groups().values()))


@pytest.mark.parametrize("lever", [lever for lever in LEVERS if lever.trained], ids=lambda lever: lever.name)
def test_the_steps_of_a_fine_tuning_are_those_that_the_run_itself_plans(lever, embedded):
    """A few more stand for the held-out losses between them."""
    sources = Sources(DATA / "train.jsonl", DATA / "replay.jsonl" if lever.tuning.replay_share else None)
    files = {name: load_chats(path) for name, path in asdict(sources).items() if path}
    config = embedded.network.model.config
    planned = prepare(embedded.tokenizer, files, sources, lever.tuning, config, "fp32").numbers.steps
    assert planned < tuning_steps(lever.tuning) < 1.06 * planned


def test_what_stands_only_in_a_notebooks_cells_is_counted_as_it_stands_there():
    release, adaptation = code_of("13_4_release_runbook.ipynb"), code_of("13_6_adaptation.ipynb")
    assert release.count("start_server(model") == 2
    assert f"request_seconds={STRICT_SECONDS:g}," in release
    formats = re.search(r"formats = \[(.*)\]", adaptation)[1].split(",")
    assert len(formats) + 1 == FORMATS, "float32 is always there"
    assert f"chats={SCORED}, repeats={ANSWERS_TIMED - 1})" in adaptation
    assert f"steps={QLORA_STEPS})" in adaptation
    edge = code_of("13_7_edge_deployment.ipynb")
    formats = re.search(r"formats = \[(.*)\]", edge)[1].split(",")
    assert len(formats) + 1 == EDGE_FORMATS
    assert f"chats={EDGE_SCORED}, repeats={EDGE_TIMED - 1})" in edge
    assert "concurrency=(1, 4)" in release
    local = code_of("13_2_run_train_serve.ipynb")
    assert local.count("evaluate(target") == local.count("start_server(model") == 1
    assert code_of("13_3_model_runtime.ipynb").count("compare_dtypes(") == 1


# Minutes, memory, money


def test_the_measured_machine_gets_the_sum_of_amounts_and_costs(probe):
    (local,) = forecast(probe, [LOCAL])
    lesson = next(one for one in local.lessons if one.lesson == "13.6")
    by_hand = sum(piece.amount * probe.seconds[piece.unit.name] for piece in lesson.work)
    assert lesson.minutes == pytest.approx(by_hand / 60)
    assert lesson.minutes_low == pytest.approx(lesson.minutes / WITHIN)
    assert lesson.minutes_high == pytest.approx(lesson.minutes * WITHIN)
    assert local.total("minutes") == pytest.approx(sum(one.minutes for one in local.lessons))
    assert (lesson.usd_low, lesson.usd_high, lesson.vram_gib) == (0, 0, None)
    assert lesson.ram_gib == pytest.approx(830 / 1024)


def test_a_card_that_is_not_here_gets_a_range_that_says_verify(probe):
    for route in forecast(probe, [COLAB, RENTED]):
        assert route.extrapolated
        assert route.basis.startswith("verify: extrapolated")
        assert route.total("minutes") is None
        for lesson in route.lessons:
            host = seconds(probe, [piece for piece in lesson.work if piece.unit not in COMPUTE]) / 60
            assert host <= lesson.minutes_low <= lesson.minutes_high
            assert lesson.vram_gib > 0.6, "the CUDA context alone"
    assert "(verify)" in " ".join(forecast_rows(forecast(probe, [RENTED]))[0])


def test_a_probe_of_a_gpu_is_a_measurement_of_the_gpu_routes(probe):
    gpu = replace(probe, device="cuda", machine="a CPU, NVIDIA L40S")
    (rented,) = forecast(gpu, [RENTED])
    assert not rented.extrapolated
    assert rented.total("minutes") > 0
    assert "NVIDIA L40S" in rented.basis


def test_a_gpu_route_that_is_run_here_without_a_gpu_is_forecast_with_its_fallback(probe):
    (colab,), (local,) = forecast(probe, [COLAB], here="free_colab"), forecast(probe, [LOCAL])
    assert not colab.extrapolated
    assert colab.lessons[2].minutes == local.lessons[2].minutes


def test_the_bill_runs_while_the_learner_reads(probe):
    (rented,) = forecast(probe, [RENTED])
    lesson = rented.lessons[1]
    assert lesson.usd_low == pytest.approx(lesson.minutes_low / 60 * RENTED.hourly_usd)
    assert lesson.usd_high == pytest.approx(max(lesson.minutes_high, RENTED.minutes["13.1"]) / 60 * RENTED.hourly_usd)


def test_the_price_row_is_named_with_its_source_and_date(probe):
    colab, rented = forecast(probe, [COLAB, RENTED])
    assert "RunPod Community, L40S, $0.79 an hour, seen 2026-09-25 at https://www.runpod.io/pricing" in rented.price
    assert rented.card.startswith("L40S: at most 362.05 TFLOP/s")
    assert "Google Colab free" in colab.price
    assert colab.card.startswith("T4: at most 65 TFLOP/s")
    (odd,) = forecast(probe, [replace(RENTED, hourly_usd=0.123)])
    assert "verify: no row of prices.csv has it" in odd.price
    assert "no published peak" in odd.basis
    assert odd.total("minutes_low") == pytest.approx(odd.total("minutes_high"))
    assert any(line.endswith("while you read.") for line in notes([rented]))


def test_a_cards_peaks_are_found_by_its_name_and_its_memory():
    def of(gpu: str, vram: int):
        return cards.peak_of(Price("somebody", gpu, vram, 1.0, "on-demand", "https://example.org", "official"))

    assert of("A100 SXM", 40).card == "A100 40 GB"
    assert of("A100 PCIe", 80).card == "A100 80 GB"
    assert of("H100 SXM (p5.48xlarge, per GPU)", 80).card == "H100 SXM"
    assert of("B200", 180) is None
    assert all(peak.source_url.startswith("https://") and peak.seen for peak in cards.load_peaks())


def test_a_lesson_that_made_the_probe_pays_for_it(probe):
    (without,), (paid,) = forecast(probe, [LOCAL]), forecast(probe, [LOCAL], probed_in_lesson=True)
    assert paid.lessons[1].minutes - without.lessons[1].minutes == pytest.approx(probe.took / 60)
    assert paid.lessons[2].minutes == without.lessons[2].minutes


def test_the_work_of_a_lesson_is_shown_by_unit_the_dearest_first(probe):
    lesson = forecast(probe, [LOCAL])[0].lessons[-1]
    rows = work_rows(lesson, probe.cost)
    shown = [float(row["seconds"]) for row in rows]
    assert shown == sorted(shown, reverse=True)
    assert len({row["unit"] for row in rows}) == len(rows)
    assert sum(shown) == pytest.approx(lesson.minutes * 60, abs=1)


# Measuring


def test_the_machines_rates_are_measured(tmp_path):
    assert machine.matrix_flops("cpu", 0.01) > 1e8
    assert machine.memory_bandwidth("cpu", 0.01) > 1e8
    assert machine.disk_bandwidth(tmp_path) > 1e6
    assert 0 < machine.pack_write(tmp_path) < 30
    assert machine.figure() > 0
    took, held = machine.process_start("import json")
    assert took > 0
    assert 5 < held < 500, "MiB of a Python process"
    with pytest.raises(LabError, match="does not start: ModuleNotFoundError: No module named 'nowhere'"):
        machine.process_start("import nowhere")


def test_a_cost_is_a_mean_without_the_first_call():
    calls = []
    assert seconds_each(lambda: calls.append(0), 60, most=4) >= 0
    assert len(calls) == 5


def test_training_is_measured_with_the_products_own_loop(monkeypatch):
    monkeypatch.setattr(learning, "SECONDS", 0.05)
    costs = learning.training_costs("cpu", 4)
    assert set(costs) == {Unit.PREPARE, Unit.MINI_TOKENS, Unit.TINY_TOKENS}
    assert costs[Unit.MINI_TOKENS] > costs[Unit.TINY_TOKENS] > 0


def test_a_step_of_fine_tuning_is_measured_apart_from_what_is_paid_once(monkeypatch):
    monkeypatch.setattr(learning, "STEPS", 1)
    step, once = learning._step_and_rest(learning.TUNINGS[Unit.LORA_STEP], "cpu")
    assert step > 0
    assert once > 0


def test_cases_are_asked_from_every_group(embedded, monkeypatch):
    asked = {case.case_id for case in answering.spread_cases(24)}
    assert all(asked & {case.case_id for case in group} for group in case_groups().values())
    monkeypatch.setattr(answering, "ALONE", 1)
    assert answering.asked_alone(answering.model_target(embedded)) > 0


# The probe that is kept, and the pack


@pytest.fixture
def state(tmp_path, monkeypatch, probe):
    """A .labkit of its own, and a probe of this very machine that was made now."""
    monkeypatch.setattr(keep, "STATE", tmp_path / "state")
    report = keep.environment_report()
    mine = replace(
        probe,
        machine=machine_name(report),
        device=report.device,
        cores=report.cores,
        torch=report.torch,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    monkeypatch.setattr(keep, "measure", lambda route, told: mine)
    return mine


def test_a_probe_of_the_last_hour_is_used_again(state, tmp_path, monkeypatch):
    assert keep.kept_probe() is None
    pack = Pack(tmp_path / "pack", "local_cpu")
    first = keep.forecast_for(pack)
    monkeypatch.setattr(keep, "measure", lambda route, told: pytest.fail("measured twice"))
    second = keep.forecast_for(pack)
    saved = first[0].lessons[1].minutes - second[0].lessons[1].minutes
    assert saved == pytest.approx(state.took / 60), "the first one paid for measuring"
    held = read_json(pack.path("forecast.json"))
    assert held["written"] == state.written
    assert [route["route"] for route in held["routes"]] == ["local_cpu", "free_colab", "rented_gpu"]
    assert held["routes"][0]["lessons"][2]["work"][0]["unit"] == "KERNEL"


@pytest.mark.parametrize(
    "change",
    [
        {"written": (datetime.now(UTC) - timedelta(hours=2)).isoformat()},
        {"machine": "another"},
        {"torch": "1.0"},
        {"seconds": {}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_probe_that_does_not_fit_is_not_used(state, change):
    keep.new_probe(LOCAL)
    assert keep.kept_probe() == state
    (keep.STATE / keep.KEPT).write_text(json.dumps(asdict(replace(state, **change))))
    assert keep.kept_probe() is None


def test_a_damaged_probe_is_measured_again(state):
    keep.new_probe(LOCAL)
    for text in ("{", "[]", '{"written": 3}'):
        (keep.STATE / keep.KEPT).write_text(text)
        assert keep.kept_probe() is None


# After a run


@pytest.fixture
def ran(probe, tmp_path) -> Pack:
    """A pack with a forecast, and copies of 13.2 (as forecast), 13.3 (too long), 13.4 (failed), 13.5 (older)."""
    pack = Pack(tmp_path / "pack", "local_cpu")
    made = forecast(probe, load_routes())
    keep.write_forecast(pack, probe, made)
    minutes = {one.lesson: one.minutes for one in made[0].lessons}
    copy(pack, "13.2", minutes["13.2"])
    copy(pack, "13.3", 2 * minutes["13.3"])
    copy(pack, "13.4", minutes["13.4"], exception=True)
    copy(pack, "13.5", minutes["13.5"], ended=MADE - timedelta(minutes=1))
    return pack


def copy(
    pack: Pack, number: str, minutes: float, ended: datetime = MADE + timedelta(minutes=9), exception=None
) -> None:
    """An executed notebook as papermill leaves it."""
    file = next(lesson.file for lesson in LESSONS if lesson.number == number)
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["papermill"] = {
        "duration": 60 * minutes,
        "end_time": ended.isoformat(),
        "exception": exception,
    }
    path = pack.path(f"notebooks/{file}")
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)


def test_forecast_and_measured_time_stand_side_by_side(ran):
    rows = {row.lesson: row for row in compare.write_comparison(ran)}
    assert (rows["13.2"].says, rows["13.3"].says) == ("inside the range", "longer than the range")
    assert rows["13.2"].ratio == pytest.approx(1, abs=0.01)
    for number in ("13.1", "13.4", "13.5", "13.6"):
        assert rows[number].says == "not run since the forecast", number
    whole = rows[compare.ALL]
    assert whole.measured == pytest.approx(rows["13.2"].measured + rows["13.3"].measured)
    assert whole.forecast == pytest.approx(rows["13.2"].forecast + rows["13.3"].forecast)
    held = read_csv(ran.path(compare.COMPARED))
    assert held[-1]["lesson"] == compare.ALL
    assert held[4]["measured_minutes"] == "", "a lesson that failed has no time"
    line = compare.after_run(ran)
    assert re.fullmatch(r"forecast: \d+\.\d\d minutes \(.* to .*\), measured \d+\.\d\d: inside the range", line)
    assert f"measured {held[-1]['measured_minutes']}:" in line


def test_a_time_is_rounded_once_for_the_line_and_the_file():
    whole = compare.Compared(compare.ALL, 2.0, 2.5, 3.0, measured=2.648)
    assert whole.as_row()["measured_minutes"] == "2.65"
    assert whole.as_line() == "forecast: 2.50 minutes (2.00 to 3.00), measured 2.65: inside the range"


def test_the_report_shows_them_and_escapes_what_a_stranger_wrote(ran):
    assert "no forecast beside measured times yet" in write_report(ran.folder).read_text()
    compare.write_comparison(ran)
    html = write_report(ran.folder).read_text()
    assert "longer than the range" in html
    ran.path(compare.COMPARED).write_text(",".join(compare.COLUMNS) + "\n<script>1</script>,,,,,,\n")
    assert "<script>1" not in write_report(ran.folder).read_text()
    ran.path(compare.COMPARED).write_text("lesson\n13.1\n")
    assert "no forecast beside measured times yet" in write_report(ran.folder).read_text()


def test_a_gpu_route_without_an_expected_value_is_judged_by_its_range(probe, tmp_path):
    pack = Pack(tmp_path / "pack", "rented_gpu")
    made = forecast(probe, load_routes())
    keep.write_forecast(pack, probe, made)  # written at home, for a machine that is still to be rented
    copy(pack, "13.2", made[2].lessons[2].minutes_high - 0.01)
    row = compare.compare(pack.folder)[2]
    assert (row.says, row.ratio) == ("inside the range", None)
    assert compare.after_run(pack) == "forecast: inside the range"


def test_without_a_forecast_or_with_a_damaged_one_the_reason_is_told(tmp_path):
    pack = Pack(tmp_path / "pack", "local_cpu")
    assert compare.compared_rows(pack)[0]["says"].startswith("forecast.json is missing: run 13.1")
    for text in ('{"routes": []}', '{"written": "2026-11-27", "routes": 3}'):
        pack.write_text("forecast.json", text, "13.1")
        with pytest.raises(LabError, match=r"forecast.json is not a forecast"):
            compare.compare(pack.folder)
    assert compare.after_run(pack).startswith("forecast: ")


# The command


def test_the_command_prints_a_table_and_writes_the_pack(state, capsys, tmp_path):
    out, _ = here(capsys, "forecast", "--evidence", tmp_path / "pack", "--work", "13.6")
    assert "13.6" in out
    assert "step of LoRA" in out
    assert "seen 2026-09-25 at https://www.runpod.io/pricing" in out
    assert (tmp_path / "pack" / "forecast.json").is_file()


def test_the_command_speaks_json_for_one_route(state, capsys):
    said = json.loads(here(capsys, "forecast", "--route", "rented_gpu", "--json")[0])
    assert [route["route"] for route in said["routes"]] == ["rented_gpu"]
    assert said["routes"][0]["total"]["minutes"] is None
    assert said["probe"]["seconds"]["LORA_STEP"] == 0.3


def test_bad_input_is_refused_before_anything_is_measured(state, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(keep, "measure", lambda route, told: pytest.fail("measured"))
    assert "no route called 'moon'" in refusal(capsys, "forecast", "--route", "moon")
    assert "no lesson '13.9'" in refusal(capsys, "forecast", "--work", "13.9")
    Pack(tmp_path, "free_colab")
    assert "made on the route free_colab" in refusal(capsys, "forecast", "--evidence", tmp_path, "--route", "local_cpu")


def test_the_notebooks_leave_both_files(tmp_path: Path):
    """13.1 writes the forecast, and 13.0, which runs last, puts the measured times beside it."""
    assert "forecast_for(pack" in code_of("13_1_compute_route.ipynb")
    assert "compared_rows(pack)" in code_of("13_0_checklist.ipynb")
