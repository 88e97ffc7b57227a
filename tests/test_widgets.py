"""The controls, driven as a hand would drive them, without a browser."""

import re
from types import SimpleNamespace

import pytest

from labkit import plots, widgets, workbook
from labkit.benchmark import Moment
from labkit.errors import LabError
from labkit.routes import load_routes
from labkit.verification import verify


def test_the_route_picker_starts_at_the_parameter():
    buttons, card = widgets.route_picker("rented_gpu").children
    assert buttons.value == "rented_gpu"
    assert "Rented GPU" in card.value


def test_choosing_a_route_shows_what_it_proves_and_cannot_and_when_to_stop():
    buttons, card = widgets.route_picker("local_cpu").children
    for route in load_routes():
        buttons.value = route.route
        for text in (*route.proves, *route.cannot_prove, route.stop_rule):
            assert text in card.value


def test_an_unknown_route_is_refused():
    with pytest.raises(LabError, match="no route called 'moon'"):
        widgets.route_picker("moon")


def test_the_memory_explorer_starts_at_the_parameters_and_answers_each_choice():
    question = ("Qwen/Qwen3-8B", "AWQ", 2049, 1, "RTX 4090, 24 GB")
    model, form, context, batch, card, said, picture = widgets.memory_explorer(plots.memory_bars, *question).children
    assert (model.value, form.value, context.value, batch.value, card.value) == question
    assert "7.30 GB (6.80 GiB), fits on RTX 4090, 24 GB" in said.value
    before = bytes(picture.value)
    assert before.startswith(b"\x89PNG")
    form.value, context.value = "bf16", 32768
    assert "does not fit" in said.value
    assert bytes(picture.value) != before
    model.value, card.value = "google/gemma-4-31B-it", "H100 SXM, 80 GB"
    assert "may fit (verify)" in said.value
    assert "KV cache: verify" in said.value


def test_the_memory_explorer_names_the_cards_it_knows():
    with pytest.raises(LabError, match="choose one of T4, 16 GB"):
        widgets.memory_explorer(plots.memory_bars, "Qwen/Qwen3-8B", "bf16", 4096, 1, "abacus")


def test_the_checklist_ticks_what_the_pack_supports_and_cannot_be_ticked_by_hand(tmp_path):
    pack = workbook.open_pack("local_cpu", tmp_path)
    pack.write_text("requirements-freeze.txt", "torch==2.13.0\n", "13.1")
    bar, *rows = widgets.checklist(verify(tmp_path)).children
    assert (bar.value, bar.max) == (1, 19)
    boxes = {row.children[0].description: row.children[0] for row in rows}
    assert boxes["13.1 requirements-freeze.txt"].value is True
    assert boxes["13.1 compute_route.md"].value is False
    assert all(box.disabled for box in boxes.values())


def test_the_checklist_says_what_to_do_next(tmp_path):
    workbook.open_pack("local_cpu", tmp_path)
    _, first, *_ = widgets.checklist(verify(tmp_path)).children
    assert "not yet" in first.children[1].value
    assert "Next: run `labkit run --lesson 13.1`" in first.children[1].value


def test_text_from_a_pack_is_escaped(tmp_path):
    pack = workbook.open_pack("local_cpu", tmp_path)
    pack.write_text("requirements-freeze.txt", "<script>alert(1)</script>\n", "13.1")
    shown = "".join(row.children[1].value for row in widgets.checklist(verify(tmp_path)).children[1:])
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


MOMENTS = [
    Moment("He", 1, 20.0, 20.0),
    Moment("Hello <b>", 2, 30.0, 20.0),
    Moment("Hello <b>", 2, 40.0, 20.0, tokens=3),
]


def test_a_stream_is_drawn_into_one_output_with_its_times(monkeypatch):
    drawn = []
    handle = SimpleNamespace(update=lambda html: drawn.append(html.data))
    monkeypatch.setattr("IPython.get_ipython", lambda: object())
    monkeypatch.setattr("IPython.display.display", lambda html, display_id: drawn.append(html.data) or handle)
    ticks = iter([0.0, 0.06, 0.07, 0.08, 0.09])
    widgets.show_stream(MOMENTS, clock=lambda: next(ticks))
    first, second, last = drawn  # the third moment came too soon after the second, and the end is always drawn
    assert "..." in first
    assert "He</pre>" in second
    assert "<td>time per piece</td><td>...</td>" in second
    assert "Hello &lt;b&gt;</pre>" in last
    assert "<td>time to first token</td><td>20.0 ms</td>" in last
    assert "<td>time per token</td><td>10.0 ms</td>" in last
    assert "<td>tokens</td><td>3</td>" in last


def test_a_stream_that_nobody_watches_is_printed_piece_by_piece(capsys):
    widgets.show_stream(MOMENTS)
    text, times = capsys.readouterr().out.splitlines()
    assert text == "Hello <b>"
    assert times.startswith("time to first token 20.0 ms, time per token 10.0 ms, whole answer 40.0 ms, ")
    assert times.endswith("tokens 3")


def test_the_drill_menu_runs_what_is_chosen_and_shows_its_row():
    done = []
    menu = widgets.drill_menu(
        {"port_taken": "A port.", "queue_full": "A <queue>."},
        run=lambda names: [done.append(name) for name in names],
        rows=lambda: [{"name": name, "seen": "<b>"} for name in done],
    )
    (choice, button), said, record = menu.children[0].children, *menu.children[1:]
    assert (said.value, record.value, done) == ("A port.", "Not provoked yet.", []), "nothing runs before a click"
    choice.value = "queue_full"
    assert said.value == "A &lt;queue&gt;."
    button.click()
    assert done == ["queue_full"]
    assert "queue_full</td>" in record.value
    assert "&lt;b&gt;" in record.value
    assert not button.disabled
    choice.value = "port_taken"
    assert record.value == "Not provoked yet."


def test_a_drill_that_fails_is_told_below_the_menu():
    def fails(names):
        raise LabError("the failure could not be provoked", "run the drill once more")
        yield

    menu = widgets.drill_menu({"queue_full": "A queue."}, run=fails, rows=list)
    menu.children[0].children[1].click()
    assert menu.children[1].value == "the failure could not be provoked. Next: run the drill once more"
    assert not menu.children[0].children[1].disabled


def test_a_text_table_shows_the_chosen_columns_on_the_left():
    shown = widgets.text_table([{"name": "a", "detail": "why", "extra": "x"}], ["name", "detail"]).to_html()
    assert "why" in shown
    assert "extra" not in shown


def test_a_text_table_holds_text_only():
    cells = {"a": "Bearer <key>", "b": None, "c": ["x", "y"], "d": 3.14159, "e": 7, "f": "7" * 50}
    shown = widgets.text_table([cells]).to_html()
    assert re.findall(r"<td[^>]*>(.*?)</td>", shown) == [
        "Bearer &lt;key&gt;",
        "",
        "x, y",
        "3.1",
        "7",
        f"{'7' * 40}\u200b{'7' * 10}",
    ]
    assert "text-align: left" in shown
