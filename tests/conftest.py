"""What several test files share. Imports are in the fixtures: the process that only spreads the tests needs none."""

import importlib.util
import signal
import sys
from pathlib import Path

import notebook_packs
import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config):
    config.pluginmanager.register(notebook_packs)
    _hear_signals()


def _hear_signals():
    """A shell's background job ignores SIGINT, `nohup` SIGHUP, and each process that a test starts inherits that."""
    heard = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}  # Windows has no SIGHUP
    for name, handler in heard.items():
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def corpus():
    """The corpus generator, data/corpus/generate.py, as a module."""
    spec = importlib.util.spec_from_file_location("corpus_generate", ROOT / "data" / "corpus" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def embedded():
    """The embedded model, loaded once."""
    from labkit.generation import load_chat_model

    return load_chat_model(device="cpu")


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory):
    from tiny_server import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_model(tiny_model_folder):
    from labkit.generation import load_chat_model

    return load_chat_model(str(tiny_model_folder), device="cpu")


@pytest.fixture(scope="session")
def server(tiny_model_folder, tmp_path_factory):
    """`labkit serve` as a process, as learners run it."""
    from tiny_server import SMALL

    from labkit.serving.ports import free_port
    from labkit.serving.runtimes import start_server

    log = tmp_path_factory.mktemp("log") / "server.log"
    with start_server(str(tiny_model_folder), port=free_port(), device="cpu", limits=SMALL, log=log) as handle:
        yield handle


# What takes longest begins first, so that the two workers of `make test` end together.
LONG = ("test_end_to_end.py", "test_gpu_routes.py", ".ipynb", "test_corpus.py", "test_parallel.py", "test_drills.py")
LONG += ("test_cli.py", "test_evaluation.py", "test_serving_process.py", "test_serving_benchmark.py")


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, places.get(item.path.suffix, len(LONG))))
