"""llama.cpp as a library: loaded once, silent, with its last error at hand."""

import ctypes
import re
from functools import lru_cache
from types import ModuleType

from labkit.errors import LabError

ERROR, CONTINUED = 4, 5  # of ggml_log_level

_errors: list[str] = []


@lru_cache(maxsize=1)
def llama_library() -> ModuleType:
    """The module llama_cpp. It writes hundreds of lines for a model; only its errors are kept (`last_error`)."""
    try:
        import llama_cpp
    except ImportError as error:
        what, command = "llama-cpp-python is not installed", 'pip install "open-llm-workbook[llama-cpp]"'
        raise LabError(what, f"{command}, which compiles llama.cpp for some minutes") from error
    except (RuntimeError, FileNotFoundError) as error:
        raise LabError(f"llama-cpp-python cannot load llama.cpp: {error}", "install llama-cpp-python again") from error
    llama_cpp.llama_log_set(_listener(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


def last_error() -> str:
    """What llama.cpp said first since it was asked last, without its functions' names and the folders of files."""
    first, *_ = "".join(_errors).strip().splitlines() or ["llama.cpp gives no reason"]
    _errors.clear()
    return re.sub(r"\S*/", "", re.sub(r"^\w+: ", "", first.strip()))


def metadata(model, key: str) -> str:
    """The value of `key` in the file that llama.cpp's `model` was loaded from; empty where it has none."""
    value = ctypes.create_string_buffer(256)
    llama_library().llama_model_meta_val_str(model, key.encode(), value, len(value))
    return value.value.decode("utf-8", "replace")


@lru_cache(maxsize=1)
def _listener(llama_cpp: ModuleType):
    """The function that llama.cpp calls with each line; kept for as long as the library is loaded."""
    listening = False

    @llama_cpp.llama_log_callback
    def listen(level: int, text: bytes, _data) -> None:
        nonlocal listening
        listening = level == ERROR or (level == CONTINUED and listening)
        if listening:
            _errors.append(text.decode("utf-8", "replace"))
            del _errors[:-20]

    return listen
