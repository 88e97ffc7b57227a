"""`python -m labkit.serving`: the server process that `start_server` starts. People use `labkit serve`."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from labkit.errors import LabError
from labkit.serving.contract import Limits, ServerSettings, named_adapters
from labkit.serving.process import serve


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m labkit.serving")
    parser.add_argument("--model", default=ServerSettings.model)
    parser.add_argument("--host", default=ServerSettings.host)
    parser.add_argument("--port", type=int, default=ServerSettings.port)
    parser.add_argument("--device", default=ServerSettings.device)
    parser.add_argument("--backend", default=ServerSettings.backend)
    parser.add_argument("--dtype", default=ServerSettings.dtype)
    parser.add_argument("--revision", default=ServerSettings.revision)
    parser.add_argument("--adapter", action="append", default=[])
    parser.add_argument("--proof", type=Path)
    parser.add_argument("--hourly", type=float, default=0.0)
    for limit in fields(Limits):
        parser.add_argument(f"--{limit.name.replace('_', '-')}", type=limit.type, default=limit.default)
    values = vars(parser.parse_args())
    try:
        limits = Limits(**{limit.name: values.pop(limit.name) for limit in fields(Limits)})
        proof, hourly_usd = values.pop("proof"), values.pop("hourly")
        adapters = named_adapters(values.pop("adapter"))
        serve(ServerSettings(**values, limits=limits, adapters=adapters), proof=proof, hourly_usd=hourly_usd)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
