"""The benchmark against what is beside it: its log, the contract of the server that it asked, and how long that ran."""

from labkit.benchmark.measure import time_per_token
from labkit.evidence import finite
from labkit.verification import release_checks as release
from labkit.verification import service_checks as service
from labkit.verification import timing_checks as timing
from labkit.verification.reading import PackReader, number
from labkit.verification.row_checks import require_possible
from labkit.verification.timing_checks import SECONDS, made_again
from labkit.verification.verdicts import Contradiction, NotYet

_TIMES = ("latency_ms", "ttft_ms", "tpot_ms")
_DIGITS = 0.011  # milliseconds: each time is rounded to a hundredth


def check_benchmark_load(pack: PackReader) -> str:
    """The benchmark claims what its log shows, and nothing that server and contract rule out."""
    said = timing.check_benchmark_rows(pack)
    if pack.exists(release.BENCHMARK_ROWS):
        check_log(pack)
    check_load(pack)
    return said


def check_log(pack: PackReader) -> None:
    """Each time of benchmark_rows.csv is the one of benchmark.json in the same place."""
    rows = pack.json(release.BENCHMARK)["rows"]
    log = pack.rows(release.BENCHMARK_ROWS, ("concurrency", "completion_tokens"))
    for row, logged in zip(rows, log, strict=False):
        for key in _TIMES:
            said, shown = finite(row.get(key)), finite(logged.get(key))
            if key in logged and said != shown:
                what = f"request {row.get('request')} with {row['concurrency']} clients took {key} {said}"
                raise Contradiction(f"{release.BENCHMARK} says that {what}, {release.BENCHMARK_ROWS} says {shown}")


def check_load(pack: PackReader) -> None:
    """No request ends before it begins, none has more tokens than were allowed, and rates follow from rows."""
    report = pack.json(release.BENCHMARK)
    most = finite(report.get("max_tokens"))
    for row in report["rows"]:
        _check_request(row, most)
    for level in report["levels"]:
        answered, seconds = level["requests"] - level["errors"], number(level["seconds"], "seconds of a level")
        rate = finite(level.get("requests_per_second"))
        if rate is not None and abs(rate * seconds - answered) > 0.01 * answered + 0.001 * rate:
            where = f"level {level['concurrency']} of {release.BENCHMARK}"
            raise Contradiction(f"{where} claims {rate:g} requests per second: {answered} in {seconds:g} s are not")
    _check_contract(pack, report)
    _check_uptime(pack, report)


def _check_request(row: dict, most: float | None) -> None:
    where = f"request {row.get('request')} with {row['concurrency']} clients in {release.BENCHMARK}"
    took, tokens = (number(row.get(key), f"{key} of {where}") for key in ("latency_ms", "completion_tokens"))
    first, each = finite(row.get("ttft_ms")), finite(row.get("tpot_ms"))
    require_possible(where, tokens, took, first, most)
    found = time_per_token(took, first, int(tokens))
    if each is not None and found is not None and abs(each - found) > _DIGITS + 0.01 * found:
        raise Contradiction(f"{where} says {each:g} ms per token, its other times give {found:g}")


def _check_contract(pack: PackReader, report: dict) -> None:
    """What the server of the contract answered is within the contract's limits."""
    contract = pack.json(release.CONTRACT) if pack.exists(release.CONTRACT) else {}
    limits, endpoint = contract.get("limits"), contract.get("endpoint")
    if not (isinstance(limits, dict) and isinstance(endpoint, dict) and endpoint.get("base_url") == report["base_url"]):
        return
    tokens = max(float(row["completion_tokens"]) for row in report["rows"])
    seconds = max(float(row["latency_ms"]) for row in report["rows"]) / 1000
    held = {"max_output_tokens": tokens, "request_seconds": seconds}
    if "queue" in limits:
        open_doors = number(limits["concurrency"], "concurrency") + number(limits["queue"], "queue")
        calm = [min(level["concurrency"], level["requests"]) for level in report["levels"] if not level["errors"]]
        if calm and max(calm) > open_doors:
            _beyond(pack, f"answered {max(calm)} clients at once without an error, and holds {open_doors:g}")
    for key, value in held.items():
        if (limit := finite(limits.get(key))) and value > limit:
            _beyond(pack, f"allows {key} {limit:g}, and gave {value:g}")


def _beyond(pack: PackReader, what: str) -> None:
    made_again(pack, release.CONTRACT, release.BENCHMARK)
    raise Contradiction(f"the server of {release.CONTRACT} {what} in {release.BENCHMARK}")


def _check_uptime(pack: PackReader, report: dict) -> None:
    """A server is not measured for longer than it ran."""
    proof = pack.json(release.SHUTDOWN) if pack.exists(release.SHUTDOWN) else {}
    if not str(report.get("base_url")).endswith(f":{proof.get('port')}"):
        return
    measured, ran = sum(float(level["seconds"]) for level in report["levels"]), finite(proof.get("seconds"))
    if ran is not None and measured > ran + SECONDS:
        what = f"{release.BENCHMARK} measured for {measured:g} s, the server of {release.SHUTDOWN} ran for {ran:g} s"
        if pack.written(release.SHUTDOWN) > pack.written(release.BENCHMARK):
            raise NotYet(f"{what}: it was another run of it")
        raise Contradiction(what)


def check_smoke_server(pack: PackReader) -> str:
    """The smoke test met the server that the contract describes, and not one of an earlier lesson."""
    met, described = pack.json(service.SMOKE)["base_url"], pack.json(release.CONTRACT)["endpoint"]["base_url"]
    if met != described:
        raise NotYet(f"{service.SMOKE} met {met}, {release.CONTRACT} describes {described}")
    health, contract = pack.json(service.SMOKE)["health"], pack.json(release.CONTRACT)
    for key in ("backend", "dtype"):
        if health.get(key) and health[key] != contract[key]:
            made_again(pack, release.CONTRACT, service.SMOKE)
            raise Contradiction(f"{service.SMOKE} met {key} {health[key]}, {release.CONTRACT} says {contract[key]}")
    return f"both are of {met}"
