"""What several test files share."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


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
