"""Commands around a running server: serve, smoke, bench, release, stop."""

from typing import Annotated

import typer

from labkit.cli.app import (
    LOCAL_SERVER,
    DeviceOption,
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


@app.command()
def serve(
    model: ModelOption = "mini-instruct",
    host: Annotated[str, typer.Option(help="another address than loopback needs LABKIT_API_KEY")] = "127.0.0.1",
    port: PortOption = 8000,
    device: DeviceOption = "auto",
    max_input_tokens: int = 1024,
    max_output_tokens: int = 256,
    max_body_bytes: int = 262_144,
    request_seconds: float = 60.0,
    concurrency: int = 2,
    queue: int = 8,
) -> None:
    """Serve the model behind an OpenAI-compatible API until Ctrl+C or `labkit stop`."""
    from labkit.serving.contract import Limits, ServerSettings
    from labkit.serving.process import serve as run_server

    limits = Limits(max_input_tokens, max_output_tokens, max_body_bytes, request_seconds, concurrency, queue)
    run_server(ServerSettings(model=model, host=host, port=port, device=device, limits=limits))


@app.command()
def smoke(base_url: UrlOption = LOCAL_SERVER, out: OutOption = None, route: RouteOption = None) -> None:
    """Prove with the openai client that a server answers, and write api_smoke_test.json."""
    from labkit.serving.smoke import smoke_test

    proof = smoke_test(base_url)
    open_pack(out, route).write_json("api_smoke_test.json", proof, "13.2")
    print_json(proof)


@app.command()
def bench(
    base_url: UrlOption = LOCAL_SERVER,
    requests: Annotated[int, typer.Option(help="measured requests, after a warm-up")] = 20,
    concurrency: Annotated[int, typer.Option(help="clients at once")] = 1,
    out: OutOption = None,
    route: RouteOption = None,
) -> None:
    """Measure latency and tokens per second of a server, and write benchmark.json."""
    from labkit.benchmark import benchmark
    from labkit.endpoint import read_health
    from labkit.evaluation.cases import load_cases

    device = read_health(base_url).get("device", "unknown")
    pack = open_pack(out, route)
    prompts = [case.full_prompt() for case in load_cases()]
    figures = benchmark(base_url, prompts, requests, concurrency, route=pack.route, device=device)
    pack.write_json("benchmark.json", figures, "13.4")
    print_json({key: value for key, value in figures.items() if key != "rows"})


@app.command()
def release(
    evidence: EvidenceOption = None,
    route: RouteOption = None,
    port: PortOption = 8000,
    drill: Annotated[bool, typer.Option(help="provoke the two failures for real (about half a minute)")] = True,
) -> None:
    """Write the contract, the failure drill, the release gates and the runbook; the server must be running."""
    from labkit.release import (
        model_path_drill,
        port_taken_drill,
        running_contract,
        write_contract,
        write_drill,
        write_gates,
        write_readme,
    )
    from labkit.serving.process import free_port

    contract = running_contract(port)
    pack = open_pack(evidence, route)
    write_contract(pack, contract)
    if drill:
        write_drill(pack, [port_taken_drill(free_port()), model_path_drill(free_port())])
    write_gates(pack)
    write_readme(pack, contract)
    print("wrote service_contract.json, failure_drill.json, release_gates.md and README.md")


@app.command()
def stop(
    port: PortOption = 8000,
    hourly: Annotated[float, typer.Option(help="what the machine costs an hour, in US dollars")] = 0.0,
    out: OutOption = None,
    route: RouteOption = None,
) -> None:
    """Stop the server on a port, wait until the port is closed, and write shutdown_proof.json."""
    from labkit.serving.shutdown import stop_server

    pack = open_pack(out, route)  # before the stop: a pack of another route must not cost the proof
    proof = stop_server(port, hourly)
    pack.write_json("shutdown_proof.json", proof, "13.4")
    print_json(proof)
