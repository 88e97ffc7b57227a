"""When things happened, what they cost, and which machine they happened on: times in order across the files of a pack.

A file that was made again later makes an older one stale, a machine may be changed between two lessons, and a clock be
put right: that is "not yet". A time that no clock of a learner's shows is a contradiction.
"""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from labkit.verification import plan_checks as plan
from labkit.verification import release_checks as release
from labkit.verification import service_checks as service
from labkit.verification import training_checks as training
from labkit.verification.reading import PackReader, number
from labkit.verification.verdicts import Contradiction, NotYet

GPU_PLAN, FORECAST = "gpu_plan.md", "forecast.json"
SECONDS = 2.0  # by which two times may differ: both were rounded to the second
SAME_SERVER = 600.0  # seconds within which one address is one server
WRONG_CLOCK = timedelta(days=1)  # by which the clock of a learner's machine may be ahead of ours
CHANGED_CLOCK = timedelta(days=1)  # by which a clock may have been put back between what happened and its record
ASKED = (service.SMOKE, release.BENCHMARK, release.CONFORMANCE)  # each asked a server and says when
_BACKENDS = {"cuda": "CUDA", "mps": "MPS"}
# What Python writes for a character that cannot be shown, and no such character is a letter or a digit.
_ESCAPED = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|.)")


def check_times(pack: PackReader) -> str:
    """No file tells of something that happened after the file was recorded, and none was recorded in the future.

    Up to a day, and by our own clock, which may be the wrong one, it is a clock that was changed or is not right.
    """
    seen = 0
    _none_to_come(pack)
    for name, what, found in _moments(pack):
        if name not in pack.entries:
            continue
        recorded = service.moment(pack.written(name), f"the time of {name} in the manifest")
        if (found - recorded).total_seconds() > SECONDS:
            told = f"{name} tells of {what} at {found.isoformat()}"
            told += f" and was recorded before it, at {recorded.isoformat()}"
            if found - recorded <= CHANGED_CLOCK:
                raise NotYet(f"{told}: the clock was changed in between")
            raise Contradiction(told)
        seen += 1
    if not seen:
        raise NotYet("no file tells a time yet")
    return f"{seen} times, none of them after its file was recorded"


def _none_to_come(pack: PackReader) -> None:
    latest = datetime.now(UTC) + WRONG_CLOCK
    for name in pack.entries:
        if (recorded := service.moment(pack.written(name), f"the time of {name} in the manifest")) > latest:
            what = f"{name} was recorded at {recorded.isoformat()}, which is still to come"
            raise NotYet(f"{what}: the clock was wrong there, or is wrong here")


def _moments(pack: PackReader) -> Iterator[tuple[str, str, datetime]]:
    """(file, what happened, when) of every time that the pack's files tell."""
    for name in ASKED:
        if pack.exists(name):
            yield name, "requests", service.moment(pack.json(name).get("time", ""), f"time in {name}")
    if pack.exists(release.DRILL):
        for drill in pack.json(release.DRILL)["drills"]:
            what = f"the drill {str(drill.get('name'))[:40]}"
            lasted = timedelta(seconds=min(number(drill.get("seconds"), f"seconds of {what}"), 1e9))
            yield release.DRILL, what, service.moment(drill.get("time", ""), f"time of {what}") + lasted
    for name in (release.SHUTDOWN, release.GUARD):
        if pack.exists(name):
            yield from (
                (name, what, found) for what, found in zip(("a start", "a stop"), _uptime(pack, name), strict=True)
            )


def _uptime(pack: PackReader, name: str = release.SHUTDOWN) -> tuple[datetime, datetime]:
    proof = pack.json(name)
    started, stopped = (service.moment(proof.get(key, ""), f"{key} in {name}") for key in ("started", "stopped"))
    return started, stopped


def check_last_request(pack: PackReader) -> str:
    """The proof is of the server that was asked, and nothing was asked of it after its end."""
    proof, (started, stopped) = pack.json(release.SHUTDOWN), _uptime(pack)
    requests = 0
    for name in ASKED:
        if not pack.exists(name):
            continue
        asked = pack.json(name)
        if not str(asked.get("base_url")).rstrip("/").removesuffix("/v1").endswith(f":{proof.get('port')}"):
            _of_another_server(name, proof, asked)
            continue
        when = service.moment(asked.get("time", ""), f"time in {name}")
        _within(pack, name, when, started, stopped)
        requests += _requests(name, asked)
    served = proof.get("requests_served")
    if isinstance(served, int) and served < requests:
        raise Contradiction(f"{release.SHUTDOWN} says {served} requests served, the pack's own are at least {requests}")
    return f"stopped at {stopped.isoformat()}, after every request that the pack holds of it"


def _of_another_server(name: str, proof: dict, asked: dict) -> None:
    if name == service.SMOKE:
        where = f"{name} asked {str(asked.get('base_url'))[:60]}"
        raise NotYet(f"{where}, the proof is of port {proof.get('port')}: that server has no proof")


def _within(pack: PackReader, name: str, when: datetime, started: datetime, stopped: datetime) -> None:
    if (when - stopped).total_seconds() > SECONDS:
        what = f"{name} was answered at {when.isoformat()}, the proof says stopped at {stopped.isoformat()}"
        if pack.written(name) > pack.written(release.SHUTDOWN):
            raise NotYet(f"{what}: the server ran again and has no proof of its end")
        raise Contradiction(what)
    if (started - when).total_seconds() > SECONDS:
        raise NotYet(f"{name} was answered at {when.isoformat()}, before the server of the proof started")


def _requests(name: str, asked: dict) -> int:
    """How many requests a file shows by itself: the rows of a benchmark, else one."""
    return len(asked.get("rows") or []) if name == release.BENCHMARK else 1


def check_price(pack: PackReader) -> str:
    """What was paid is the plan's price, within its budget, and the machine was given back by the plan's stop time."""
    form = pack.fields(GPU_PLAN, ("Hourly price", "Budget", "Stop time"))
    price, budget = (_dollars(form[key], key) for key in ("Hourly price", "Budget"))
    proof = pack.json(release.SHUTDOWN)
    paid, cost = (number(proof.get(key), f"{key} in {release.SHUTDOWN}") for key in ("hourly_usd", "cost_usd"))
    for name, said in {release.SHUTDOWN: paid, **_guarded_price(pack)}.items():
        if abs(said - price) > 0.005:
            raise NotYet(f"{GPU_PLAN} says ${price:.2f} an hour, {name} says ${said:.2f}")
    if cost > budget:
        raise NotYet(f"it cost ${cost:.2f}, and {GPU_PLAN} allows ${budget:.2f}")
    planned, stopped = service.moment(form["Stop time"], f"Stop time in {GPU_PLAN}"), _uptime(pack)[1]
    if stopped > planned:
        raise NotYet(f"stopped at {stopped.isoformat()}, and {GPU_PLAN} says {planned.isoformat()}")
    return f"${cost:.2f} of ${budget:.2f}, stopped before {planned.isoformat()}"


def _guarded_price(pack: PackReader) -> dict[str, float]:
    if not pack.exists(release.GUARD):
        return {}
    return {release.GUARD: number(pack.json(release.GUARD).get("hourly_usd"), f"hourly_usd in {release.GUARD}")}


def _dollars(text: str, key: str) -> float:
    found = re.match(r"\$(\d{1,6}(?:\.\d{1,4})?)", text)
    if not found:
        raise NotYet(f"{key} in {GPU_PLAN} is {text[:40]!r}, not an amount such as $0.79")
    return float(found[1])


def check_machine(pack: PackReader) -> str:
    """Nothing ran on a device that the environment report says this machine lacks.

    Lessons may have run on two machines, in any order: the pack then waits for one that ran all of them.
    """
    has = pack.fields(plan.ENVIRONMENT, ("Device",))
    readers: dict[str, Callable[[], object]] = {
        service.FIRST_RUN: lambda: pack.fields(service.FIRST_RUN, ("Device",))["Device"],
        training.RUN_ENVIRONMENT: lambda: pack.json(training.RUN_ENVIRONMENT).get("device"),
        service.SMOKE: lambda: (pack.json(service.SMOKE).get("health") or {}).get("device"),
        service.SUMMARY: lambda: pack.json(service.SUMMARY).get("device"),
        release.BENCHMARK: lambda: pack.json(release.BENCHMARK).get("device"),
    }
    said = {name: read() for name, read in readers.items() if pack.exists(name)}
    for name, device in said.items():
        backend = _BACKENDS.get(str(device))
        if backend and has.get(backend) != "available":
            what = f"{name} ran on {device}, {plan.ENVIRONMENT} says {backend} {has.get(backend, 'nothing')}"
            raise NotYet(f"{what}: that was another machine, or it was changed")
    _same_gpu(pack, has)
    _same_machine(pack, has)
    return f"{has['Device']}; {len(said)} files ran on what the machine has"


def _same_machine(pack: PackReader, has: dict[str, str]) -> None:
    """Training, forecast and server were on the machine of the report. "Not yet", because a session on Colab may get
    another machine."""
    said = {}
    if pack.exists(training.RUN_ENVIRONMENT):
        run = pack.json(training.RUN_ENVIRONMENT)
        named = {"Python": run.get("python"), "Platform": run.get("platform")}
        named["CPU"] = f"{run['cpu']}, {run['cores']} cores" if {"cpu", "cores"} <= run.keys() else None
        said |= {(training.RUN_ENVIRONMENT, key): value for key, value in named.items() if value}
    if pack.exists(FORECAST):
        probe = pack.json(FORECAST).get("probe") or {}
        said[FORECAST, "CPU"] = f"{probe.get('machine')}, {probe.get('cores')} cores" if has["Device"] == "cpu" else ""
        said[FORECAST, "Device"] = str(probe.get("device"))
    for (name, key), value in said.items():
        if value and has.get(key) and has[key] != value:
            raise NotYet(f"{plan.ENVIRONMENT} says {key} {has[key][:60]}, {name} {value[:60]}: another machine")
    _same_server(pack)


def _same_server(pack: PackReader) -> None:
    """The device of a benchmark is the one that its server named."""
    if not (pack.exists(service.SMOKE) and pack.exists(release.BENCHMARK)):
        return
    smoke, report = pack.json(service.SMOKE), pack.json(release.BENCHMARK)
    served = (smoke.get("health") or {}).get("device")
    if served and smoke.get("base_url") == report.get("base_url") and served != report.get("device"):
        what = f"{release.BENCHMARK} says {report.get('device')}, its server said {served} in {service.SMOKE}"
        if abs((_asked(pack, release.BENCHMARK) - _asked(pack, service.SMOKE)).total_seconds()) > SAME_SERVER:
            raise NotYet(f"{what}, at another time")
        raise Contradiction(what)


def _asked(pack: PackReader, name: str) -> datetime:
    return service.moment(pack.json(name).get("time", ""), f"time in {name}")


def _same_gpu(pack: PackReader, has: dict[str, str]) -> None:
    if not pack.exists(training.RUN_ENVIRONMENT):
        return
    run = pack.json(training.RUN_ENVIRONMENT)
    if run.get("device") != "cuda":
        return
    if run.get("cuda") is False:
        raise Contradiction(f"{training.RUN_ENVIRONMENT} says that the run was on cuda, and that there was none")
    if str(run.get("gpu")) != has.get("GPU"):
        said = f"the run says GPU {str(run.get('gpu'))[:60]}, {plan.ENVIRONMENT} {has.get('GPU', 'nothing')[:60]}"
        raise NotYet(f"{said}: that was another machine, or it was changed")


def check_sizes(pack: PackReader) -> str:
    """The parameters, steps and losses that the run's README and the trace repeat are those of report and log."""
    report, rows = training.run_report(pack), training.log_rows(pack)
    fields = pack.fields(training.RUN_README, ())
    said = {
        "Parameters": (fields.get("Parameters", ""), [report["parameter_count"]]),
        "Steps": (fields.get("Steps", "").split(",")[0], [report["steps"]]),
        "Held-out loss": (fields.get("Held-out loss", ""), [float(rows[0]["val_loss"]), float(rows[-1]["val_loss"])]),
    }
    repeat = fields.get("Repeat it", "")
    for key in ("steps", "seed"):
        if (asked := re.search(rf"--{key} (\d{{1,12}})\b", repeat)) and int(asked[1]) != report[key]:
            raise Contradiction(f"{training.RUN_README} repeats it with {key} {asked[1]}, the run had {report[key]}")
    for key, (text, wanted) in said.items():
        found = [float(part.replace(",", "")) for part in re.findall(r"\d[\d,]{0,20}(?:\.\d{1,10})?", text[:200])]
        if found and found[: len(wanted)] != [float(value) for value in wanted]:
            raise Contradiction(f"{training.RUN_README} says {key} {text[:60]}, the run's files say {wanted}")
    _same_trace(pack, report)
    traced = re.search(r"^model: .{0,80}?(\d[\d,]{0,20}) parameters", pack.text(training.TRACE), re.M)
    if traced and int(traced[1].replace(",", "")) != report["parameter_count"]:
        raise Contradiction(
            f"{training.TRACE} says {traced[1]} parameters, the run's report {report['parameter_count']}"
        )
    return f"{report['parameter_count']:,} parameters and {report['steps']} steps wherever they are said"


def _same_trace(pack: PackReader, report: dict) -> None:
    """GPU and driver, and the tokens per second of each step, are in the trace what the run's report and log say."""
    text = pack.text(training.TRACE)
    if card := re.search(r"^gpu: (.{1,80}), driver (.{1,40})$", text, re.M):
        known = tuple(str(report.get(key, said)) for key, said in zip(("gpu", "driver"), card.groups(), strict=True))
        if card.groups() != known:
            raise Contradiction(f"{training.TRACE} says gpu {card[1]}, driver {card[2]}; the run's report {known}")
    if (shown := re.search(r"^sample: (['\"])(.{1,4000})\1$", text, re.M)) and training.RUN_SAMPLE in pack.entries:
        written = re.sub(r"\W+", "", pack.text(training.RUN_SAMPLE))
        if re.sub(r"\W+", "", _ESCAPED.sub("", shown[2])) not in written and "redacted" not in written:
            raise Contradiction(f"{training.TRACE} has the sample {shown[2][:60]!r}, {training.RUN_SAMPLE} another")
    logged = {int(float(row["step"])): float(row["tokens_per_second"]) for row in training.log_rows(pack)}
    for step, speed in re.findall(r"^step +(\d{1,12}) .*\| (\d{1,12}) tokens/s", text, re.M):
        if abs(float(speed) - logged.get(int(step), float(speed))) > 1:
            what = f"{training.TRACE} says {speed} tokens/s at step {step}"
            raise Contradiction(f"{what}, {training.RUN_LOG} says {logged[int(step)]:g}")


def check_benchmark_rows(pack: PackReader) -> str:
    """The benchmark claims the tokens that its log shows: benchmark_rows.csv, where it is there."""
    claimed = _tokens((row["concurrency"], row["completion_tokens"]) for row in pack.json(release.BENCHMARK)["rows"])
    if not pack.exists(release.BENCHMARK_ROWS):
        return f"{release.BENCHMARK_ROWS} is not there to compare with"
    log = pack.rows(release.BENCHMARK_ROWS, ("concurrency", "completion_tokens"))
    logged = _tokens((row["concurrency"], row["completion_tokens"]) for row in log)
    for clients in sorted(claimed.keys() | logged.keys()):
        if claimed.get(clients) != logged.get(clients):
            said, shown = claimed.get(clients, 0), logged.get(clients, 0)
            what = f"{release.BENCHMARK} claims {said:g} tokens with {clients:g} clients"
            raise Contradiction(f"{what}, {release.BENCHMARK_ROWS} shows {shown:g}")
    return f"{sum(claimed.values()):g} tokens in both"


def _tokens(rows: Iterator[tuple[object, object]]) -> dict[float, float]:
    total: dict[float, float] = {}
    for clients, tokens in rows:
        key = number(clients, "concurrency in the benchmark", minimum=1)
        total[key] = total.get(key, 0.0) + number(tokens, "completion_tokens in the benchmark")
    return total


def made_again(pack: PackReader, source: str, derived: str) -> None:
    """Raise NotYet where `source` was recorded after `derived`, which then tells of what is no more."""
    if pack.written(source) > pack.written(derived):
        raise NotYet(f"{source} was made again after {derived}")
