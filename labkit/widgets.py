"""Controls for a notebook. They choose and show; they never compute, and nothing in a notebook waits for a click.

Only the parts of ipywidgets that 7.7 (Colab) and 8 share are used.
"""

from collections.abc import Mapping, Sequence
from html import escape

import ipywidgets

from labkit.errors import LabError
from labkit.routes import ROUTE_NAMES, Route, load_routes
from labkit.verification import Finding, Verdict, Verification


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


def text_table(rows: Sequence[Mapping], columns: Sequence[str] | None = None):
    """`rows` as a pandas table for reading: left-aligned, without an index, only `columns` when they are given."""
    import pandas

    left = {"selector": "th, td", "props": "text-align: left; vertical-align: top"}
    return pandas.DataFrame(list(rows), columns=columns).style.hide(axis="index").set_table_styles([left])
