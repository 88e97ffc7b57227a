"""The probe kept for an hour, and the forecast in the pack."""

import contextlib
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta

from labkit.environment import environment_report
from labkit.errors import LabError
from labkit.evidence import Pack, json_text, read_json, write_atomically
from labkit.forecast.predict import LessonForecast, RouteForecast, forecast, seconds
from labkit.forecast.probe import Listener, Probe, machine_name, measure
from labkit.forecast.units import Unit, Work
from labkit.layout import STATE
from labkit.routes import Route, load_route, load_routes

KEPT = "forecast_probe.json"
STILL_GOOD = timedelta(hours=1)
FORECAST, LESSON = "forecast.json", "13.1"


def new_probe(route: Route, told: Listener = lambda text: None) -> Probe:
    """Measure this machine and keep what was found for the next hour."""
    probe = measure(route, told)
    write_atomically(STATE / KEPT, json_text(asdict(probe)).encode("utf-8"))
    return probe


def kept_probe() -> Probe | None:
    """The probe that was kept, where it is of this machine and of the last hour; a damaged file is none."""
    with contextlib.suppress(LabError, TypeError, ValueError, AttributeError):
        values = read_json(STATE / KEPT)
        probe = Probe(**{field.name: values[field.name] for field in fields(Probe) if field.name in values})
        age = datetime.now(UTC) - datetime.fromisoformat(probe.written)
        report = environment_report()
        here = (machine_name(report), report.device, report.cores, report.torch)
        known = set(probe.seconds) == {unit.name for unit in Unit}
        if age < STILL_GOOD and known and here == (probe.machine, probe.device, probe.cores, probe.torch):
            return probe
    return None


def forecast_for(pack: Pack, told: Listener = lambda text: None) -> tuple[RouteForecast, ...]:
    """What 13.1 asks for: the forecast of all routes, written into the pack as forecast.json.

    A probe of the last hour is used again; else one is made, which takes half a minute.
    """
    found = kept_probe()
    probe = found or new_probe(load_route(pack.route), told)
    made = forecast(probe, load_routes(), pack.route, probed_in_lesson=found is None)
    write_forecast(pack, probe, made)
    return made


def write_forecast(pack: Pack, probe: Probe, made: tuple[RouteForecast, ...]) -> None:
    pack.write_json(FORECAST, forecast_dict(probe, made), LESSON)


def forecast_dict(probe: Probe, made: tuple[RouteForecast, ...]) -> dict:
    """forecast.json, and what `labkit forecast --json` prints. Minutes have three places, so seconds can be told."""
    return {
        "written": probe.written,
        "probe": asdict(probe),
        "units": {unit.name: unit.value for unit in Unit},
        "routes": [_route(probe, route) for route in made],
    }


def _route(probe: Probe, route: RouteForecast) -> dict:
    totals = ("minutes_low", "minutes", "minutes_high", "planned_minutes", "usd_low", "usd_high")
    return {
        "route": route.route,
        "extrapolated": route.extrapolated,
        "basis": route.basis,
        "price": route.price,
        "card": route.card,
        "total": {name: _rounded(route.total(name)) for name in totals},
        "lessons": [_lesson(probe, lesson) for lesson in route.lessons],
    }


def _lesson(probe: Probe, lesson: LessonForecast) -> dict:
    facts = {name: _rounded(value) for name, value in vars(lesson).items() if name != "work"}
    return {**facts, "work": [_piece(probe, piece) for piece in lesson.work]}


def _piece(probe: Probe, piece: Work) -> dict:
    """One part of a lesson's work; the seconds are those of the measured machine."""
    took = round(seconds(probe, [piece]), 2)
    return {"unit": piece.unit.name, "amount": round(piece.amount, 2), "seconds_here": took, "why": piece.why}


def _rounded(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value
