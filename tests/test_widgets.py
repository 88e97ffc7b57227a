"""The controls, driven as a hand would drive them, without a browser."""

import pytest

from labkit import widgets, workbook
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


def test_a_text_table_shows_the_chosen_columns_on_the_left():
    shown = widgets.text_table([{"name": "a", "detail": "why", "extra": "x"}], ["name", "detail"]).to_html()
    assert "why" in shown
    assert "extra" not in shown
    assert "text-align: left" in shown
