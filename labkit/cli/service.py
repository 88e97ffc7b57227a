"""Commands around a running server: serve, runtimes, smoke, bench, conform, drill, release, stop."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.app import (
    LOCAL_SERVER,
    BackendOption,
    DeviceOption,
    DtypeOption,
    EvidenceOption,
    ModelOption,
    OutOption,
    PortOption,
    RouteOption,
    UrlOption,
    app,
    open_pack,
    print_json,
)
from labkit.errors import LabError

CLUSTER_OPTIONS = ("tensor_parallel_size", "pipeline_parallel_size", "machines", "first_machine")
ENGINE_OPTIONS = ("runtime", "max_model_len", "memory_share", "dry_run", *CLUSTER_OPTIONS)
ANY_OPTIONS = ("model", "host", "port", "proof", "hourly")
HourlyOption = Annotated[float, typer.Option(help="what the machine costs an hour, in US dollars")]
AskedModelOption = Annotated[
    str | None, typer.Option("--model", help="model to ask for (default: the one labkit started there, else the first)")
]


@app.command()
def serve(
    context: typer.Context,
    model: ModelOption = "mini-instruct",
    host: Annotated[str, typer.Option(help="another address than loopback needs LABKIT_API_KEY")] = "127.0.0.1",
    port: PortOption = 8000,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    dtype: DtypeOption = "auto",
    adapter: Annotated[list[str] | None, typer.Option(help="NAME=PATH of a LoRA adapter to serve beside it")] = None,
    revision: Annotated[str, typer.Option(help="the hub's commit, tag or branch; what local weights must be")] = "",
    max_input_tokens: Annotated[int, typer.Option(help="longest prompt, at most the model's context less 1")] = 1024,
    max_output_tokens: Annotated[int, typer.Option(help="longest answer; a request for more gets 400")] = 256,
    max_body_bytes: Annotated[int, typer.Option(help="largest request")] = 262_144,
    request_seconds: Annotated[
        float, typer.Option(help="waiting, answering and sending; then the request ends")
    ] = 60.0,
    concurrency: Annotated[int, typer.Option(help="answers that are made together")] = 4,
    queue: Annotated[int, typer.Option(help="requests that may wait; the next one gets 503")] = 8,
    requests_per_minute: Annotated[int, typer.Option(help="for each key; 0 sets no limit")] = 0,
    max_images: Annotated[int, typer.Option(help="in a request, to a model with vision")] = 4,
    max_image_pixels: Annotated[int, typer.Option(help="of one image, whatever its size as a file")] = 4096 * 4096,
    api_key_file: Annotated[str, typer.Option(help="a file with one key on each line, beside LABKIT_API_KEY")] = "",
    log_prompts: Annotated[bool, typer.Option(help="write prompts into the log")] = False,
    output_filter: Annotated[str, typer.Option(help="keep in answers where this regular expression is found")] = "",
    proof: Annotated[
        Path | None, typer.Option(help="a second place for the proof of its end, beside .labkit/shutdown-PORT.json")
    ] = None,
    hourly: HourlyOption = 0.0,
    runtime: Annotated[str, typer.Option(help="another engine; `labkit runtimes` lists them")] = "labkit",
    max_model_len: Annotated[int | None, typer.Option(help="engine: longest prompt plus answer, in tokens")] = None,
    memory_share: Annotated[float | None, typer.Option(help="engine: part of the memory it may take, 0 to 1")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="engine: print the command and do not run it")] = False,
    tensor_parallel_size: Annotated[int | None, typer.Option(help="engine: GPUs that share each layer")] = None,
    pipeline_parallel_size: Annotated[int | None, typer.Option(help="engine: groups that share the layers out")] = None,
    machines: Annotated[int | None, typer.Option(help="engine: machines that serve one model, this one first")] = None,
    first_machine: Annotated[str | None, typer.Option(help="engine: the address of this one for the others")] = None,
) -> None:
    """Serve the model behind an OpenAI-compatible API until Ctrl+C or `labkit stop`."""
    given = {name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"}
    _check_options(runtime, given)
    if runtime != "labkit":
        port = port if "port" in given else None
        cluster = (tensor_parallel_size, pipeline_parallel_size, machines, first_machine)
        _serve_engine(runtime, dry_run, proof, hourly, cluster, model, host, port, max_model_len, memory_share)
        return
    from labkit.serving.contract import Limits, ServerSettings, named_adapters
    from labkit.serving.process import serve as run_server

    if "api_key_file" in given and not api_key_file:  # a variable that is not set must not open the server
        raise LabError("--api-key-file names no file", "give --api-key-file a text file, or leave it out")
    limits = Limits(
        max_input_tokens,
        max_output_tokens,
        max_body_bytes,
        request_seconds,
        concurrency,
        queue,
        requests_per_minute,
        max_images,
        max_image_pixels,
    )
    how = {"log_prompts": log_prompts, "output_filter": output_filter}
    how |= {"backend": backend, "dtype": dtype, "revision": revision, "adapters": named_adapters(adapter or ())}
    settings = ServerSettings(model, host, port, device, limits, **how)
    run_server(settings, api_key_file, proof, hourly)


def _check_options(runtime: str, given: set[str]) -> None:
    """Raises LabError for an option that the chosen runtime would ignore."""
    ours = runtime == "labkit"
    ignored = given & set(ENGINE_OPTIONS[1:]) if ours else given - {*ENGINE_OPTIONS, *ANY_OPTIONS}
    if ignored:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(ignored))
        what = f"{flags} {'needs another --runtime' if ours else 'is for the runtime labkit'}"
        raise LabError(what, "leave it out, or see `labkit runtimes`")


def _serve_engine(runtime: str, dry_run: bool, proof: Path | None, hourly: float, cluster: tuple, *settings) -> None:
    from labkit.serving.cluster import Cluster
    from labkit.serving.engines import EngineSettings, find_engine, plan_launch

    launch = plan_launch(find_engine(runtime), EngineSettings(*settings, Cluster(*cluster)))
    if dry_run:
        print(launch.as_text())
        return
    from labkit.serving.runtimes import serve_engine

    serve_engine(launch, proof=proof, hourly_usd=hourly)


@app.command()
def runtimes() -> None:
    """List the engines that `labkit serve --runtime` starts, and the remote APIs, with what is known of each."""
    from labkit.report.landscape import print_runtimes
    from labkit.serving.engines import load_engines

    print_runtimes(load_engines())


@app.command()
def smoke(
    base_url: UrlOption = LOCAL_SERVER,
    model: AskedModelOption = None,
    wait: Annotated[float, typer.Option(help="seconds to wait for a server that is still starting")] = 0.0,
    contract: Annotated[
        Path | None, typer.Option(help="a service_contract.json; another model, revision or limit is an error")
    ] = None,
    out: OutOption = None,
    route: RouteOption = None,
) -> None:
    """Prove with the openai client that a server answers, and write api_smoke_test.json."""
    from labkit.release import require_release
    from labkit.serving.running import recorded_model
    from labkit.serving.smoke import smoke_test, wait_until_ready

    if wait:
        wait_until_ready(base_url, wait)
    if contract:
        require_release(base_url, contract)
    proof = smoke_test(base_url, model or recorded_model(base_url))
    open_pack(out, route).write_json("api_smoke_test.json", proof, "13.2")
    print_json(proof)


@app.command()
def bench(
    base_url: UrlOption = LOCAL_SERVER,
    model: AskedModelOption = None,
    against: Annotated[str | None, typer.Option(help="a second server, measured in turns with the first")] = None,
    against_model: Annotated[str | None, typer.Option(help="the name to ask the second server for")] = None,
    requests: Annotated[int, typer.Option(help="measured requests for each number of clients")] = 20,
    concurrency: Annotated[list[str], typer.Option(help="clients at once: 4, or 1,4,8, or given again")] = ("1",),
    max_tokens: Annotated[int, typer.Option(help="longest answer, in tokens")] = 64,
    warmup: Annotated[int, typer.Option(help="requests of each client that are not counted")] = 1,
    rounds: Annotated[int, typer.Option(help="with --against: turns for each number of clients")] = 5,
    stream: Annotated[bool, typer.Option(help="--no-stream: for servers that send no usage chunk; no TTFT")] = True,
    out: OutOption = None,
    route: RouteOption = None,
) -> None:
    """Measure latency and tokens per second of a server, alone (benchmark.json) or against another."""
    from labkit.benchmark import Load, client_counts
    from labkit.endpoint import read_health, root_url
    from labkit.evaluation.cases import load_cases
    from labkit.serving.running import recorded_model

    load = Load(tuple(case.full_prompt() for case in load_cases()), requests, max_tokens, warmup, stream)
    clients = client_counts(concurrency)
    named = [
        (root_url(url), name or recorded_model(url))
        for url, name in ((base_url, model), (against, against_model))
        if url is not None
    ]
    devices = [str(read_health(url).get("device", "unknown")) for url, _ in named]
    if against is not None:
        _bench_against(named, devices, load, clients, rounds, out, route)
    else:
        _bench_alone(*named[0], devices[0], load, clients, out, route)


def _bench_alone(url: str, model: str | None, device: str, load, clients: tuple[int, ...], out, route) -> None:
    from labkit.benchmark import benchmark, write_benchmark
    from labkit.evidence import write_atomically
    from labkit.plots import throughput_plot
    from labkit.report.service import print_benchmark
    from labkit.serving.running import server_pid

    pack = open_pack(out, route)
    facts = {"model": model, "route": pack.route, "device": device, "server_pid": server_pid(url)}
    report = benchmark(url, **vars(load), **facts, concurrency=clients)
    write_benchmark(pack, report)
    with pack.replacing("benchmark.png"):
        write_atomically(pack.path("benchmark.png"), throughput_plot(report)._repr_png_())
        pack.record("benchmark.png", "13.4")
    print_benchmark(report)


def _bench_against(named: list, devices: list[str], load, clients: tuple[int, ...], rounds: int, out, route) -> None:
    from labkit.benchmark import compare, open_target
    from labkit.report.service import print_comparison
    from labkit.serving.running import server_pid

    a, b = (open_target(url, name, pid=server_pid(url)) for url, name in named)
    pack = open_pack(out, route)
    report = compare(a, b, load, clients, rounds, route=pack.route, devices=devices)
    pack.write_json("benchmark_comparison.json", report, "13.4")
    print_comparison(report)


@app.command()
def drill(
    names: Annotated[list[str] | None, typer.Argument(help="drills by name; see --list")] = None,
    everything: Annotated[bool, typer.Option("--all", help="every drill of the list (about a minute)")] = False,
    show: Annotated[bool, typer.Option("--list", help="show the drills, and run none")] = False,
    model: ModelOption = "mini-instruct",
    device: DeviceOption = "auto",
    out: OutOption = None,
    route: RouteOption = None,
) -> None:
    """Provoke failures of a server of its own for real, recover from each, and write failure_drill.json."""
    from labkit.drills import DRILLS, choose_drills, outcome, record_drills, require_recovery

    if show:
        print("\n".join(f"{name:24}{drill.__doc__}" for name, drill in DRILLS.items()))
        return
    chosen = choose_drills(names or (), everything)
    pack, records = open_pack(out, route), []
    for record in record_drills(pack, chosen, model, device):
        records.append(record)
        print(outcome(record), flush=True)
    require_recovery(records)


@app.command()
def conform(
    base_url: UrlOption = LOCAL_SERVER,
    model: Annotated[str | None, typer.Option(help="one of the server's models (default: the first it lists)")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="exit 1 when something is ignored or wrong")] = False,
    out: OutOption = None,
    route: RouteOption = None,
) -> None:
    """Ask a server for every feature, print what it really does with each, and write conformance.json."""
    from rich.progress import track

    from labkit.conformance import PROBES, conformance
    from labkit.report.service import print_conformance

    found = conformance(base_url, model, track(PROBES, "asking", transient=True, disable=not sys.stdout.isatty()))
    print_conformance(found)  # before the pack: one of another route must not cost the answers
    open_pack(out, route).write_json("conformance.json", found, "13.4")
    raise typer.Exit(int(strict and bool(found["counts"]["ignored"] + found["counts"]["wrong"])))


@app.command()
def release(
    evidence: EvidenceOption = None,
    route: RouteOption = None,
    port: PortOption = 8000,
    drill: Annotated[bool, typer.Option(help="provoke a taken port and a wrong model path for real")] = True,
) -> None:
    """Write the contract, the failure drill, the release gates and the runbook; the server must be running."""
    from labkit.drills import record_drills
    from labkit.release import running_contract, write_contract, write_gates, write_readme
    from labkit.serving.ports import check_port

    check_port(port)
    contract = running_contract(f"http://127.0.0.1:{port}")
    pack = open_pack(evidence, route)
    write_contract(pack, contract)
    if drill:
        list(record_drills(pack, ["port_taken", "model_path_wrong"]))
    write_gates(pack)
    write_readme(pack, contract)
    print("wrote service_contract.json, failure_drill.json, release_gates.md and README.md")


@app.command()
def stop(
    port: PortOption = 8000,
    hourly: HourlyOption = 0.0,
    out: OutOption = None,
    route: RouteOption = None,
) -> None:
    """Stop the server on a port, or complete the proof that it left, and write shutdown_proof.json."""
    from labkit.serving.shutdown import stop_server

    pack = open_pack(out, route)  # before the stop: a pack of another route must not cost the proof
    proof = stop_server(port, hourly)
    pack.write_json("shutdown_proof.json", proof, "13.4")
    print_json(proof)
