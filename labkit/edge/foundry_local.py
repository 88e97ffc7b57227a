"""An ONNX export in Foundry Local, through its SDK in this process: registered, listed, loaded, asked, unregistered.

The SDK (foundry-local-sdk 2.2, the extra `edge`) runs on Linux too and needs no network for a model that is registered
from a folder. It copies nothing: the folder must stay where it is. What it writes (its list of registered models, logs)
goes under the workbook's state folder, and a registration that a killed run left is replaced.
"""

import importlib.util
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError
from labkit.evaluation.levers import Asked
from labkit.evaluation.targets import Reply, Target
from labkit.export.checkpoint import weights_revision
from labkit.export.onnx_folder import graph_facts
from labkit.generation import Sampling
from labkit.layout import STATE, without_paths

PACKAGE = "foundry_local_sdk"
INSTALL = "install it: pip install 'open-llm-workbook[edge]'"
BACKEND = "foundry-local"


def foundry_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


@dataclass(frozen=True)
class LocalModel:
    """A model that is loaded in Foundry Local. `listed` are the ids of all that the local catalog had meanwhile."""

    model_id: str
    listed: tuple[str, ...]
    target: Target


@contextmanager
def loaded_in_foundry(export: Path, name: str, version: int = 1) -> Iterator[LocalModel]:
    """Register and load the export for as long as the block runs; it is unloaded and unregistered after it.

    Raises LabError without the SDK, for a name that it refuses, and for a folder that it cannot load.
    """
    if not foundry_installed():
        raise LabError("the Foundry Local SDK is not installed", INSTALL)
    import foundry_local_sdk as sdk

    model_id = f"{name}:{version}"
    with _told(sdk, f"Foundry Local could not load {export.name}"), _manager(sdk) as manager:
        catalog = manager.get_catalog(sdk.CatalogType.LOCAL)
        if catalog.get_model_variant(model_id) is not None:
            catalog.unregister_model(model_id)
        with sdk.ModelInfoBuilder() as metadata:
            metadata.set_string_property("task", "chat-completion")
            model = catalog.register_model(str(export.resolve()), model_id, metadata)
        try:
            listed = tuple(found.id for found in catalog.list_models())
            model.load()
            yield LocalModel(model_id, listed, _target(sdk, model, name, export))
            model.unload()
        finally:
            catalog.unregister_model(model_id)


@contextmanager
def _manager(sdk) -> Iterator:
    """The SDK's one manager of this process. Its telemetry is cut down to what cannot be turned off."""
    folder = STATE / "foundry"
    with tempfile.TemporaryDirectory(prefix="labkit-foundry-logs-") as logs:
        sdk.FoundryLocalManager.initialize(
            sdk.Configuration(
                app_name="labkit",
                app_data_dir=str(folder),
                model_cache_dir=str(folder / "cache"),
                logs_dir=logs,
                disable_nonessential_telemetry=True,
            )
        )
        manager = sdk.FoundryLocalManager.instance
        try:
            yield manager
        finally:
            manager.close()


@contextmanager
def _told(sdk, failed: str) -> Iterator[None]:
    try:
        yield
    except sdk.FoundryLocalException as error:
        reason = without_paths(str(error).strip().splitlines()[0])
        raise LabError(f"{failed}: {reason}", "check the export with `labkit chat --model FOLDER`") from error


def _target(sdk, model, name: str, export: Path) -> Target:
    def ask(asked: Asked, sampling: Sampling) -> Reply:
        with _told(sdk, "Foundry Local gave no answer"):
            return _ask(sdk, model, asked, sampling)

    return Target(name, weights_revision(export), "cpu", graph_facts(export).dtype, ask, BACKEND)


def _ask(sdk, model, asked: Asked, sampling: Sampling) -> Reply:
    """One chat in a session of its own. A grammar is not offered here, so it is refused, never ignored."""
    if asked.schema:
        raise LabError("Foundry Local is asked without a schema here", "leave --schema out")
    search = sdk.SearchOptions(temperature=sampling.temperature, max_output_tokens=sampling.max_tokens)
    kinds = {"system": sdk.MessageItem.system, "user": sdk.MessageItem.user, "assistant": sdk.MessageItem.assistant}
    with sdk.ChatSession(model) as session, sdk.Request() as request:
        session.set_options(sdk.RequestOptions(search=search))
        for message in asked.messages:
            request.add_item(kinds[message["role"]](message["content"]))
        started = time.perf_counter()
        with session.process_request(request) as response:
            took = (time.perf_counter() - started) * 1000
            text = "".join(item.get_simple_text() for item in response if isinstance(item, sdk.MessageItem))
            usage = response.get_usage()
    return Reply(text, took, usage.prompt_tokens, usage.completion_tokens)
