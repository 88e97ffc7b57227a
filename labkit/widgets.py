"""Controls for a notebook. They choose and show; they never compute, and nothing in a notebook waits for a click.

Only the parts of ipywidgets that 7.7 (Colab) and 8 share are used.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import ipywidgets

from labkit.benchmark import Moment
from labkit.environment import unwatched
from labkit.errors import LabError
from labkit.evaluation.review import agreement, one_per_case, read_review, review
from labkit.evidence import Pack
from labkit.landscape.memory import GB, GIB, MemoryEstimate, memory_estimate, size_text
from labkit.landscape.models import load_models
from labkit.landscape.prices import cards
from labkit.landscape.quantization import load_quantizations
from labkit.landscape.tables import UNKNOWN
from labkit.routes import ROUTE_NAMES, Route, load_routes
from labkit.verification import Finding, Verdict, Verification

if TYPE_CHECKING:
    from labkit.evaluation.runner import Result  # which loads torch


def route_picker(default: str = "local_cpu") -> ipywidgets.VBox:
    """Buttons for the three routes and, below them, what the chosen one proves, cannot prove and when to stop.

    The first child's `value` is the route's name. It starts at `default`, so that a run without a hand on the mouse
    sees the route of its parameter. Raises LabError for an unknown default.
    """
    if default not in ROUTE_NAMES:
        raise LabError(f"there is no route called {default!r}", f"choose one of {', '.join(ROUTE_NAMES)}")
    routes = {route.route: route for route in load_routes()}
    buttons = ipywidgets.ToggleButtons(
        options=[(route.title, name) for name, route in routes.items()], value=default, description="Route"
    )
    card = ipywidgets.HTML(value=route_card(routes[default]))

    def show(change: dict) -> None:
        card.value = route_card(routes[change["new"]])

    buttons.observe(show, names="value")
    return ipywidgets.VBox([buttons, card])


def route_card(route: Route) -> str:
    """One route as HTML: its goal, what it proves and cannot prove, its fallback and its stop rule."""
    return (
        f"<p><b>{escape(route.title)}</b> (<code>{escape(route.route)}</code>): {escape(route.goal)}</p>"
        f"<p><b>Proves</b></p>{_items(route.proves)}"
        f"<p><b>Cannot prove</b></p>{_items(route.cannot_prove)}"
        f"<p><b>Fallback</b>: {escape(route.fallback)}</p>"
        f"<p><b>Stop rule</b>: {escape(route.stop_rule)}</p>"
        f"<p><b>Cost</b>: ${route.hourly_usd:.2f} for an hour, budget ${route.budget_usd:.2f}</p>"
    )


def _items(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def memory_explorer(draw: Callable, model: str, quant: str, context: int, batch: int, card: str) -> ipywidgets.VBox:
    """Choose model, format, context, batch and card, and see what must fit: `draw` is plots.memory_bars.

    It starts at the given values, so a run without a hand on the mouse shows the answer to a notebook's parameters;
    the same answer for a program is `memory_estimate`. Raises LabError for an unknown model, format or card.
    """
    held, first = cards(), memory_estimate(model, quant, context, batch)
    if card not in held:
        raise LabError(f"there is no card called {card!r}", f"choose one of {'; '.join(held)}")
    names = [row.repo_id for row in load_models()]
    formats = [row.format for row in load_quantizations()]
    sizes = sorted({context, *(2**power for power in range(9, 18))})
    parts = (
        ipywidgets.Dropdown(options=names, value=first.model, description="Model"),
        ipywidgets.Dropdown(options=formats, value=first.quant, description="Format"),
        ipywidgets.SelectionSlider(options=sizes, value=context, description="Context"),
        ipywidgets.BoundedIntText(value=batch, min=1, max=512, description="Batch"),
        ipywidgets.Dropdown(options=list(held), value=card, description="Card"),
    )
    said, picture = ipywidgets.HTML(), ipywidgets.Image(format="png")

    def show(_change: object = None) -> None:
        *question, chosen = (part.value for part in parts)
        estimate = memory_estimate(*question)
        said.value = memory_html(estimate, chosen, held[chosen])
        picture.value = draw([estimate], held[chosen] * GB / GIB)._repr_png_()

    for part in parts:
        part.observe(show, names="value")
    show()
    return ipywidgets.VBox([*parts, said, picture])


def memory_html(estimate: MemoryEstimate, card: str, card_gb: int) -> str:
    """The estimate in a sentence, and the reasons why it needs checking."""
    fits = {"yes": "fits", "no": "does not fit", UNKNOWN: "may fit (verify)"}[estimate.fits(card_gb)]
    text = f"<p><b>{escape(estimate.label)}</b>: {size_text(estimate.total)}, {fits} on {escape(card)}</p>"
    return text + (_items(estimate.reasons) if estimate.reasons else "")


def checklist(verification: Verification) -> ipywidgets.VBox:
    """The artifacts of a pack as boxes that the pack ticks, with a bar for how many are supported.

    The boxes are locked: a tick is earned by a file, not by a click. The reason stands beside every open one.
    """
    findings = verification.artifacts
    done = sum(finding.verdict is Verdict.SUPPORTED for finding in findings)
    bar = ipywidgets.IntProgress(value=done, min=0, max=max(1, len(findings)), description=f"{done} of {len(findings)}")
    return ipywidgets.VBox([bar, *(_row(finding) for finding in findings)])


def _row(finding: Finding) -> ipywidgets.HBox:
    supported = finding.verdict is Verdict.SUPPORTED
    box = ipywidgets.Checkbox(
        value=supported, disabled=True, indent=False, description=f"{finding.lesson} {finding.name}"
    )
    text = finding.detail if supported else f"{finding.detail}. Next: {finding.next_action}"
    return ipywidgets.HBox([box, ipywidgets.HTML(value=f"{finding.verdict}: {escape(text)}")])


def drill_menu(
    drills: Mapping[str, str], run: Callable[[list[str]], Iterable], rows: Callable[[], Sequence[Mapping[str, str]]]
) -> ipywidgets.VBox:
    """A menu of failures by name, and a button that provokes the chosen one with `run`. Nothing runs before a click.

    `drills` gives each one's sentence, `rows` the records so far, of which that of the chosen one is shown (by its
    "name"). A drill takes seconds; meanwhile the button is locked. A LabError of `run` is told instead of the sentence.
    """
    menu = ipywidgets.Dropdown(options=list(drills), description="Failure")
    button = ipywidgets.Button(description="Provoke it", button_style="warning")
    said, record = ipywidgets.HTML(), ipywidgets.HTML()

    def show(_change: object = None) -> None:
        said.value = escape(drills[menu.value])
        found = [row for row in rows() if row["name"] == menu.value]
        record.value = _record_html(found[0]) if found else "Not provoked yet."

    def provoke(_button: object) -> None:
        button.disabled, record.value = True, "A server of its own is started and broken; this takes some seconds."
        try:
            list(run([menu.value]))
            show()
        except LabError as error:
            said.value = escape(str(error))
        finally:
            button.disabled = False

    show()
    menu.observe(show, names="value")
    button.on_click(provoke)
    return ipywidgets.VBox([ipywidgets.HBox([menu, button]), said, record])


def _record_html(row: Mapping[str, str], cell: str = "") -> str:
    top, apart = 'style="vertical-align: top"', 'style="padding-right: 1em"'
    style = f' style="{cell}"' if cell else ""
    cells = "".join(
        f"<tr {top}><th {apart}>{escape(key)}</th><td{style}>{escape(value)}</td></tr>" for key, value in row.items()
    )
    return f'<table style="text-align: left; line-height: 1.5">{cells}</table>'


JUDGED = (("pass", "true"), ("fail", "false"), ("not judged", ""))


def review_table(pack: Pack, results: Sequence["Result"], lesson: str = "13.4") -> ipywidgets.VBox:
    """The answers of an evaluation, one at a time, failed ones first, to be judged by a person with the keyboard.

    Tab goes from Previous and Next over the verdicts to the notes, and Space presses. What is chosen stands in the
    pack's eval_cases.csv at once, notes as soon as their field is left; `labkit.evaluation.review.review` does the same
    without a hand. Raises LabError when the pack has no readable eval_cases.csv; one while saving is told below.
    """
    shown, held = one_per_case(results), read_review(pack)
    at, filling = 0, False
    back, on = ipywidgets.Button(description="Previous"), ipywidgets.Button(description="Next")
    verdict = ipywidgets.ToggleButtons(options=JUDGED, value="")
    verdict.style.button_width = "7em"
    notes = ipywidgets.Textarea(placeholder="Why? (your notes)", continuous_update=False)
    notes.layout.width = "100%"
    card, said = ipywidgets.HTML(), ipywidgets.HTML()

    def show(step: int = 0) -> None:
        nonlocal at, filling
        at, filling = (at + step) % len(shown), True
        verdict.value, notes.value = held.get(shown[at].case.case_id, ("", ""))
        card.value, filling = _review_html(shown[at], at + 1, len(shown)), False

    def save(_change: object) -> None:
        if filling:
            return
        case_id, judgement = shown[at].case.case_id, (verdict.value, notes.value)
        try:
            said.value = escape(str(review(pack, results, {case_id: judgement}, lesson)))
            held[case_id] = judgement
        except LabError as error:
            said.value = escape(f"Not saved: {error}")

    show()
    said.value = escape(str(agreement(results, held)))
    back.on_click(lambda _button: show(-1))
    on.on_click(lambda _button: show(1))
    verdict.observe(save, names="value")
    notes.observe(save, names="value")
    return ipywidgets.VBox([card, ipywidgets.HBox([back, on, verdict]), notes, said])


def _review_html(result: "Result", place: int, total: int) -> str:
    case, verdict = result.case, result.verdict
    automatic = f"{'pass' if verdict.passed else 'fail'} ({verdict.kind}): {verdict.reason}"
    asked, answer = result.asked.messages[-1]["content"], result.reply.text or "(empty)"
    rows = {"Wanted": case.expected_behavior, "Asked": asked, "Answer": answer, "Automatic": automatic}
    title = f"<p><b>{place} of {total}: {escape(case.case_id)}</b> ({escape(case.risk)})</p>"
    return title + _record_html(rows, "white-space: pre-wrap; overflow-wrap: anywhere")


REDRAW_SECONDS = 0.05  # a front end that is told of every token falls behind


def show_stream(moments: Iterable[Moment], clock: Callable[[], float] = time.monotonic) -> None:
    """A streamed answer as it arrives, with its times beside it; printed piece by piece where no notebook shows it."""
    from IPython import get_ipython
    from IPython.display import HTML, display

    if unwatched() or get_ipython() is None:
        _print_stream(moments)
        return

    shown, drawn, moment = display(HTML(_stream_html(Moment())), display_id=True), clock(), Moment()
    for moment in moments:
        if clock() - drawn >= REDRAW_SECONDS:
            shown.update(HTML(_stream_html(moment)))
            drawn = clock()
    shown.update(HTML(_stream_html(moment)))


def _print_stream(moments: Iterable[Moment]) -> None:
    moment = Moment()
    for later in moments:
        print(later.text[len(moment.text) :], end="", flush=True)
        moment = later
    print("\n" + ", ".join(f"{name} {value}" for name, value in _stream_times(moment)))


def _stream_times(moment: Moment) -> list[tuple[str, str]]:
    """What is known so far; the server counts the tokens, and says so at the end."""
    return [
        ("time to first token", _ms(moment.ttft_ms)),
        (f"time per {'piece' if moment.tokens is None else 'token'}", _ms(moment.ms_each)),
        ("so far" if moment.tokens is None else "whole answer", _ms(moment.elapsed_ms or None)),
        ("pieces of text", f"{moment.pieces}"),
        ("tokens", "..." if moment.tokens is None else f"{moment.tokens}"),
    ]


def _ms(value: float | None) -> str:
    return "..." if value is None else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def _stream_html(moment: Moment) -> str:
    rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in _stream_times(moment))
    text = f'<pre style="flex: 1; min-height: 8em; white-space: pre-wrap">{escape(moment.text)}</pre>'
    return f'<div style="display: flex; gap: 2em">{text}<table>{rows}</table></div>'


def text_table(rows: Sequence[Mapping], columns: Sequence[str] | None = None):
    """`rows` as a pandas table for reading: left-aligned, without an index, only `columns` when they are given.

    What stands in a cell is text and never HTML: it may come from a stranger's server. Lists are joined, fractions
    rounded to one digit, and a word as long as a line may break.
    """
    import pandas

    left = {"selector": "th, td", "props": "text-align: left; vertical-align: top"}
    table = pandas.DataFrame([{key: _cell(value) for key, value in row.items()} for row in rows], columns=columns)
    return table.style.hide(axis="index").format(escape="html").set_table_styles([left])


def _cell(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    text = "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
    return re.sub(r"(\S{40})", "\\1\u200b", text)  # a zero-width space
