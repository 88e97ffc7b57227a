"""The engines that people use beyond our own server: one dated table, and the exact command that starts each of them.

The table is data/landscape/engines.csv. What it says of an engine is what the engine's documentation says, or what was
measured here where `basis` says so; a blank cell means that neither is known, and is shown as "verify".
"""

import os
import shlex
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import ClassVar

from labkit.endpoint import KEY_VARIABLE, key_from_environment
from labkit.errors import LabError
from labkit.landscape.tables import LANDSCAPE, read_table
from labkit.layout import MODELS
from labkit.serving.cluster import Cluster
from labkit.serving.contract import ServerSettings
from labkit.serving.ports import check_port
from labkit.serving.process import with_keys

ENGINES = LANDSCAPE / "engines.csv"
OWN = "labkit"  # the runtime that is not in the table: our own server
DEFAULTS = {"host": "127.0.0.1", "max_model_len": 4096}
PROCESS, SERVICE, REMOTE = "process", "service", "remote"
CAPABILITIES = ("streaming_usage", "tools", "json_schema", "logprobs", "vision")


@dataclass(frozen=True)
class Engine:
    """One row. `start`, `then` (run once it is healthy) and `environment` are templates of EngineSettings.

    A "process" runs in the foreground and can be watched; a "service" leaves a server of its own behind; a "remote" one
    runs elsewhere. `key_variable` is where it looks for the key it asks clients for (remote: where people keep theirs).
    `parallel` are its options for several GPUs, `joining` what first makes one of several machines (see cluster.py).
    `names_by_path`: its name for a local model is the path it was given, so it is started in the folder above.
    """

    expires_days: ClassVar[int | None] = 90

    name: str
    kind: str
    needs: str
    tried: str
    sources: tuple[str, ...]
    basis: str
    start: str = ""
    then: str = ""
    parallel: str = ""
    joining: str = ""
    environment: str = ""
    key_variable: str = ""
    health: str = ""
    port: int | None = None
    memory_share: float | None = None
    base_url: str = ""
    install: str = ""
    streaming_usage: bool | None = None
    tools: bool | None = None
    json_schema: bool | None = None
    logprobs: bool | None = None
    vision: bool | None = None
    hub_cache: bool = False
    names_by_path: bool = False
    note: str = ""
    seen: date | None = None

    def takes(self, setting: str) -> bool:
        return f"{{{setting}}}" in f"{self.start} {self.then} {self.environment}"


@dataclass(frozen=True)
class EngineSettings:
    """What a person asks of an engine. None is the default: of DEFAULTS, and of the engine's row.

    `max_model_len` is the longest prompt plus answer in tokens, `memory_share` the part of the memory it may take: of
    the GPU's, and of the machine's where transformers serve runs on a CPU.
    """

    model: str
    host: str | None = None
    port: int | None = None
    max_model_len: int | None = None
    memory_share: float | None = None
    cluster: Cluster = field(default_factory=Cluster)


@dataclass(frozen=True)
class Launch:
    """How one engine starts with given settings: what `labkit serve` runs, and what --dry-run prints.

    `model` is the name that clients ask for; `folder` is where it starts, None for here. The API key is never part of
    this: `child_environment` takes it from LABKIT_API_KEY. `elsewhere` says what other machines have to run.
    """

    engine: Engine
    model: str
    host: str
    port: int | None
    argv: tuple[str, ...]
    then: tuple[str, ...]
    environment: dict[str, str]
    limits: dict[str, float]
    folder: Path | None = None
    elsewhere: tuple[str, ...] = ()

    @property
    def base_url(self) -> str:
        return ServerSettings(host=self.host, port=self.port).base_url if self.port else ""

    @property
    def key_variable(self) -> str:
        """Where the engine finds the key it asks for, or nothing: it has no such variable, or no key is set."""
        return self.engine.key_variable if key_from_environment() else ""

    def child_environment(self) -> dict[str, str]:
        key = {self.key_variable: key_from_environment()} if self.key_variable else {}
        return {**os.environ, **self.environment, **key}

    def command(self, argv: tuple[str, ...]) -> str:
        """`argv` as a line for a POSIX shell, with the variables it needs; the key's value stays in its variable."""
        place = f"cd {shlex.quote(str(self.folder))} && " if self.folder else ""
        key = [f'{self.key_variable}="${KEY_VARIABLE}"'] if self.key_variable else []
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return place + " ".join([*key, *settings, shlex.join(argv)])

    def as_text(self) -> str:
        """What --dry-run prints: the command first, then what to know before running it."""
        engine = self.engine
        none = f"none: set {KEY_VARIABLE} to ask for one" if engine.key_variable else "it has none, so loopback only"
        lines = [
            self.command(self.argv),
            f"then: {self.command(self.then)}" if self.then else "",
            *self.elsewhere,
            f"API key: {f'{self.key_variable}, from {KEY_VARIABLE}' if self.key_variable else none}",
            f"needs: {engine.install}; {engine.needs}",
            f"note: {engine.note}" if engine.note else "",
            f"{engine.name}: {engine.tried}; {engine.basis}, seen {engine.seen}",
        ]
        return "\n".join(filter(None, lines))


def load_engines(path: Path = ENGINES) -> tuple[Engine, ...]:
    return read_table(path, Engine, key="name")


def find_engine(name: str) -> Engine:
    """The engine called `name`, whatever its case, spaces and hyphens. Raises LabError that lists the names."""
    engines = load_engines()
    for engine in engines:
        if _plain(engine.name) == _plain(name):
            return engine
    names = ", ".join([OWN, *(engine.name for engine in engines if engine.kind != REMOTE)])
    raise LabError(f"no runtime is called {name!r}", f"choose one of {names}; `labkit runtimes` shows them")


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def remote_smoke(engine: Engine) -> str:
    """The command that tests a remote engine; its key reaches labkit in LABKIT_API_KEY."""
    return f'{KEY_VARIABLE}="${engine.key_variable}" labkit smoke --base-url {engine.base_url} --model MODEL'


def plan_launch(engine: Engine, settings: EngineSettings) -> Launch:
    """The start of `engine` with `settings`. Raises LabError for a remote engine, for a setting that the engine cannot
    honour, and for a host that others reach where the engine would not ask for a key.
    """
    if engine.kind == REMOTE:
        raise LabError(
            f"{engine.name} runs elsewhere: there is nothing to start", f"ask it with {remote_smoke(engine)}"
        )
    _check(engine, settings)
    values = _values(engine, settings)
    _check_host(engine, values["host"])
    local = _local_path(settings.model)
    name, folder = (local.name, local.parent) if local else (settings.model, None)
    model = name if engine.names_by_path or not local else str(local)
    values |= {"model": model, "name": name}
    argv = _filled(engine.start, values)
    return Launch(
        engine=engine,
        model=name,
        host=values["host"],
        port=values["port"],
        argv=(*argv, *settings.cluster.words(engine.parallel)),
        then=_filled(engine.then, values),
        environment=dict(word.split("=", 1) for word in _filled(engine.environment, values)),
        limits={limit: values[limit] for limit in ("max_model_len", "memory_share") if engine.takes(limit)},
        folder=folder if engine.names_by_path else None,
        elsewhere=_elsewhere(engine, argv, settings.cluster),
    )


def _elsewhere(engine: Engine, argv: tuple[str, ...], cluster: Cluster) -> tuple[str, ...]:
    """What joins several machines: commands that make one of them, or the engine's own with each machine's number."""
    if engine.joining or not cluster.several:
        return tuple(cluster.joining(engine.joining))
    others = range(1, cluster.machines)
    return tuple(f"on machine {n}: {shlex.join([*argv, *cluster.words(engine.parallel, n)])}" for n in others)


def _filled(template: str, values: dict) -> tuple[str, ...]:
    """The words of `template` with its fields filled in: a value with a space stays one word."""
    return tuple(word.format_map(values) for word in shlex.split(template))


def _values(engine: Engine, settings: EngineSettings) -> dict:
    given = {name: value for name, value in vars(settings).items() if value is not None}
    values = {**DEFAULTS, "port": engine.port, "memory_share": engine.memory_share, **given}
    host = values["host"]
    return {**values, "netloc": f"[{host}]:{values['port']}" if ":" in host else f"{host}:{values['port']}"}


def _check(engine: Engine, settings: EngineSettings) -> None:
    """Raises LabError for a value out of range, and for one that the engine's command has no place for."""
    if settings.cluster.given and not engine.parallel:
        raise LabError(f"{engine.name} has no options for several GPUs here", "leave them out, or take vLLM or SGLang")
    for setting, value in vars(settings).items():
        if setting == "cluster":
            continue
        served = engine.takes(setting) or (setting in ("host", "port") and engine.takes("netloc"))
        if value is not None and not served and (setting, value) != ("host", DEFAULTS["host"]):
            flag = setting.replace("_", "-")
            raise LabError(f"{engine.name} has no option for --{flag} when it starts", f"leave --{flag} out")
    if not settings.model.strip() or settings.model.startswith("-"):
        raise LabError(f"{settings.model!r} is not a model", "give a hub id, a folder or a GGUF file")
    if settings.port is not None:
        check_port(settings.port)
    if settings.max_model_len is not None and settings.max_model_len < 1:
        raise LabError(f"a length of {settings.max_model_len} tokens is too short", "give another --max-model-len")
    if settings.memory_share is not None and not 0 < settings.memory_share <= 1:
        raise LabError(f"{settings.memory_share:g} is not a share of the memory", "give --memory-share from 0.1 to 1")


def _check_host(engine: Engine, host: str) -> None:
    settings = with_keys(ServerSettings(host=host))
    if not settings.loopback and not engine.key_variable:
        raise LabError(
            f"the host {host} can be reached from other machines, and {engine.name} takes no key from its environment",
            "use --host 127.0.0.1, and put a proxy that asks for a key in front of it",
        )


def _local_path(model: str) -> Path | None:
    """The folder or file that `model` names on this machine, or None for a name that only the engine knows."""
    for path in (MODELS / model, Path(model).expanduser()):
        if path.exists():
            return path.resolve()
    return None
