"""The menu: every drill by its name, and the one way to run them."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from labkit.drills import answering, starts
from labkit.drills.record import Drill, NotPossible, NotPossibleHere, write_drill
from labkit.drills.site import FailedStart, Site
from labkit.errors import LabError
from labkit.evidence import Pack, utc_now
from labkit.serving.ports import free_port

# name -> drill; the docstring is its line in `labkit drill --list`.
STARTS: dict[str, Callable[[Site], FailedStart]] = {
    "port_taken": starts.port_taken,
    "model_path_wrong": starts.model_path_wrong,
    "out_of_memory": starts.out_of_memory,
    "key_missing_at_start": starts.key_missing_at_start,
}
ANSWERING: dict[str, Callable[[Site], Drill]] = {
    "key_missing_in_request": answering.key_missing_in_request,
    "queue_full": answering.queue_full,
    "slow_client": answering.slow_client,
    "log_disk_full": answering.log_disk_full,
    "backend_crash": answering.backend_crash,
}
DRILLS = {**STARTS, **ANSWERING}


def choose_drills(names: Iterable[str], everything: bool = False) -> tuple[str, ...]:
    """The drills meant, in the order of the menu. Raises LabError for an unknown name, and when none is named."""
    names = set(DRILLS) if everything else set(names)
    if unknown := sorted(names - set(DRILLS)):
        raise LabError(f"there is no drill called {', '.join(unknown)}", f"choose from {', '.join(DRILLS)}")
    if not names:
        raise LabError("no drill is named", "name one or more, or use --all; `labkit drill --list` shows them")
    return tuple(name for name in DRILLS if name in names)


def run_drills(
    names: Iterable[str], port: int | None = None, model: str = "mini-instruct", device: str = "auto"
) -> Iterator[Drill | NotPossible]:
    """Run the drills `names` on `port` (a free one when not given), and give each record as it is made.

    A server takes seconds to start, so those whose start fails come first, two at a time, and share the good start
    after them; the others share the server that it leaves.
    Raises LabError for an unknown name, a port in use, and a failure that could not be provoked.
    """
    names = choose_drills(names)
    with Site(port or free_port(), model, device) as site:
        with ThreadPoolExecutor(2) as two:
            failures = list(two.map(lambda name: _run(name, site), [name for name in names if name in STARTS]))
        for found in failures:
            yield starts.recover(site, found) if isinstance(found, FailedStart) else found
        yield from (_run(name, site) for name in names if name in ANSWERING)


def _run(name: str, site: Site) -> FailedStart | Drill | NotPossible:
    """What the drill found, under its name and with its time."""
    moment, started = utc_now(), time.perf_counter()
    try:
        found = DRILLS[name](site)
    except NotPossibleHere as reason:
        return NotPossible(name, str(reason), moment)
    return replace(found, name=name, time=moment, seconds=round(time.perf_counter() - started, 4))


def record_drills(
    pack: Pack, names: Iterable[str], model: str = "mini-instruct", device: str = "auto"
) -> Iterator[Drill | NotPossible]:
    """Run the drills `names` and write each record as it is made: a later drill that fails must not cost this one."""
    for record in run_drills(names, model=model, device=device):
        write_drill(pack, [record])
        yield record
