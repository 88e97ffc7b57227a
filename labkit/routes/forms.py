"""The forms of lesson 13.1 that a route fills: compute_route.md, gpu_plan.md and colab_notes.md."""

from datetime import UTC, datetime, timedelta

from labkit.errors import LabError
from labkit.routes.choice import RouteDecision
from labkit.routes.route import Route


def planned_stop(route: Route, start: datetime, earlier_plan: str = "") -> str:
    """When a rented machine is given back at the latest: UTC, ISO 8601 to the minute.

    The budget divided by the hourly price, or the minutes of the route's lessons, whichever is shorter. A stop time
    that `earlier_plan` (the text of a gpu_plan.md) already names is kept: running the lesson again must not extend it.
    Raises LabError when the route file has no budget or no price.
    """
    for line in earlier_plan.splitlines():
        if line.startswith("- Stop time: ") and line[13:].strip():
            return line[13:].strip()
    if route.hourly_usd <= 0 or route.budget_usd <= 0:
        raise LabError(
            "a rented machine needs a budget and an hourly price",
            "fill hourly_usd and budget_usd in the route file",
            where=f"{route.route}.yaml",
        )
    hours = min(route.budget_usd / route.hourly_usd, sum(route.minutes.values()) / 60)
    return (start.astimezone(UTC) + timedelta(hours=hours)).isoformat(timespec="minutes")


def compute_route_markdown(
    route: Route, decision: RouteDecision, device: str, device_reason: str, stop_time: str = ""
) -> str:
    """The text of compute_route.md: what this route proves, what it cannot, and why it was taken.

    When `choose_route` would have taken another route, the reason says so; when a GPU was expected and is absent, the
    missing GPU is recorded beside the fallback. `stop_time` is required on rented_gpu (see `planned_stop`).
    """
    reason = "; ".join(decision.reasons)
    if decision.route != route.route:
        reason = f"chosen by the learner; the rule would take {decision.route} because {reason}"
    fields = {
        "Route": route.route,
        "Device": f"{device} ({device_reason})",
        "Proves": "; ".join(route.proves),
        "Cannot prove": "; ".join(route.cannot_prove),
        "Fallback": route.fallback,
        "Stop rule": route.stop_rule,
        "Reason": reason,
        "Upgrade signal": decision.upgrade_signal,
    }
    if route.device == "cuda" and device != "cuda":
        fields["Missing GPU"] = f"this route expects cuda and found {device}; the fallback is in use"
    if route.route == "rented_gpu":
        fields["Budget"] = f"${route.budget_usd:.2f}"
        fields["Stop time"] = stop_time
        fields["Evidence to copy back"] = ", ".join(route.required_artifacts)
    return _form("Compute route", fields)


def gpu_plan_markdown(route: Route, stop_time: str, gpu: str, price: str) -> str:
    """The text of gpu_plan.md: what is rented, at which price, until when, and what must be home before it stops.

    `gpu` is what torch sees on this machine; `price` is one line with provider, source and the date it was seen.
    """
    hours = route.budget_usd / route.hourly_usd
    return _form(
        "GPU plan",
        {
            "GPU on this machine": gpu,
            "Price row": price,
            "Hourly price": f"${route.hourly_usd:.2f}",
            "Budget": f"${route.budget_usd:.2f}, which pays for {hours:.1f} hours",
            "Stop time": stop_time,
            "Stop rule": route.stop_rule,
            "Evidence to copy back": ", ".join(route.required_artifacts),
            "Before leaving": f"stop the server with `labkit stop --route {route.route} --hourly {route.hourly_usd:g}` "
            "(and --out where the pack is not in its usual folder), copy the pack back (`labkit copy-back`, at home), "
            "verify the copy, then delete the machine and its disk at the provider",
            "Proof of stop": "shutdown_proof.json, and the provider's page showing no machine",
        },
    )


def colab_notes_markdown(route: Route, host: str, gpu: str, evidence: str, saved: str, in_drive: bool = False) -> str:
    """The text of colab_notes.md: what this session had, and what to do after the reset that will come.

    `host` is whose session it is, empty on a machine that stays. `evidence` is where the pack lies and `saved` where
    its second copy is, as they may be shown; `in_drive` is whether that also takes the snapshots of a training.
    """
    snapshots = (
        "since its last snapshot, which is in Drive as well, so that another machine goes on from it"
        if in_drive
        else "since it began (its snapshots lie on the session's disk, so a restarted kernel goes on from them, and a "
        "new machine does not)"
    )
    return _form(
        "Colab notes",
        {
            "Session": host or "not Colab: the route was tried on another machine",
            "GPU in this session": gpu,
            "What a reset deletes": "every file and package on the session's disk: the workbook, the pack in "
            f"{evidence}, what was installed, downloaded models and the exports made of them",
            "Where the pack is saved": f"{saved}, after each cell that changed it",
            "Lost for good": f"what a cell had not finished: a training run {snapshots}, an evaluation, a running "
            "server, and edits to the workbook's own files",
            "Start again": "open the notebook and run it from the top: its first line says where you stopped; where "
            "there is no Drive, upload the saved zip file first",
            "Versions": "requirements-freeze.txt of this pack; compare it after a reset",
            "Data rule": "nothing private is uploaded",
            "Stop rule": route.stop_rule,
        },
    )


def _form(title: str, fields: dict[str, str]) -> str:
    return f"# {title}\n\n" + "".join(f"- {key}: {value}\n" for key, value in fields.items())
