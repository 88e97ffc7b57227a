"""The smoke test: one health check and one chat through the openai client, as a stranger would meet the service."""

import json
import os
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from urllib.parse import urlsplit

from labkit.errors import LabError
from labkit.evidence import utc_now

QUESTION = "Hello! What can you help me with?"
MAX_TOKENS = 32


def smoke_test(base_url: str, model: str | None = None, api_key: str | None = None) -> dict:
    """The content of api_smoke_test.json for the server at `base_url` (with or without /v1).

    `model` is the first one the server lists when not given; `api_key` is LABKIT_API_KEY when not given.
    Raises LabError when no server answers, it refuses the key, or it answers with an error.
    """
    import openai

    root = root_url(base_url)
    health = read_health(root)
    client = open_client(root, api_key)
    try:
        model = model or next(card.id for card in client.models.list())
        started = time.perf_counter()
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=MAX_TOKENS, temperature=0
        )
    except openai.APIStatusError as error:
        raise LabError(f"the server refused with {error.status_code}: {error.message}", _remedy(error), root) from None
    except openai.APIError as error:
        raise LabError(f"the server did not answer: {error.message}", "look at the server's log", root) from None
    except StopIteration:
        raise LabError("the server lists no model", "give the model's name with --model", root) from None
    latency = time.perf_counter() - started
    usage = answer.usage
    return {
        "base_url": root,
        "time": utc_now(),
        "client": f"openai {openai.__version__}",
        "health": health,
        "model": answer.model,
        "revision": str(health.get("revision") or answer.system_fingerprint or "unknown"),
        "has_choices": bool(answer.choices),
        "first_message": (answer.choices[0].message.content or "") if answer.choices else "",
        "usage": {
            "prompt_tokens": usage.prompt_tokens if usage else None,
            "completion_tokens": usage.completion_tokens if usage else None,
            "total_tokens": usage.total_tokens if usage else None,
        },
        "latency_ms": round(latency * 1000, 1),
    }


def _remedy(error) -> str:
    if error.status_code == 401:
        return "set the variable LABKIT_API_KEY to the server's key"
    if error.status_code == 404:
        return "give a model that the server lists at /v1/models"
    return "read the message and the server's log"


def root_url(base_url: str) -> str:
    """`base_url` without a closing slash or /v1. Raises LabError for anything but http and https."""
    root = base_url.rstrip("/").removesuffix("/v1")
    if urlsplit(root).scheme not in ("http", "https"):
        raise LabError(f"{base_url} is not an http or https URL", "give one like http://127.0.0.1:8000")
    return root


def open_client(root: str, api_key: str | None = None):
    """An openai client for `root` without retries; a proxy from the environment is not used for this machine."""
    import openai

    key = api_key or os.environ.get("LABKIT_API_KEY") or "none"
    proxied = openai.DefaultHttpxClient(trust_env=not _loopback(root))
    return openai.OpenAI(base_url=f"{root}/v1", api_key=key, max_retries=0, timeout=120, http_client=proxied)


def read_health(root: str, timeout: float = 5) -> dict:
    """What /health says, with "status": "ok" added for servers that answer 200 and no JSON.

    A server without /health gives {"status": "not offered"}. Raises LabError when nothing answers.
    """
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if _loopback(root) else []))
    try:
        with opener.open(f"{root}/health", timeout=timeout) as response:
            body = response.read(65536)
    except urllib.error.HTTPError as error:
        return {"status": "not offered" if error.code == 404 else f"HTTP {error.code}"}
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise LabError(
            f"no server answers at {root}: {getattr(reason, 'strerror', None) or reason}",
            "start one with `labkit serve`, or check --base-url",
        ) from None
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    return {"status": "ok", **said} if isinstance(said, dict) else {"status": "ok"}


def _loopback(root: str) -> bool:
    return urlsplit(root).hostname in ("127.0.0.1", "localhost", "::1")
