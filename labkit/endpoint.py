"""An OpenAI-compatible server as any client meets it: its address, its key, whether it answers, what it serves."""

import json
import os
import ssl
import urllib.error
import urllib.request
from http.client import HTTPException
from urllib.parse import urlsplit

from labkit.errors import LabError

KEY_VARIABLE = "LABKIT_API_KEY"


def root_url(base_url: str) -> str:
    """`base_url` without a closing slash or /v1. Raises LabError for anything but http and https, and for what names
    no server: a variable that is not set, for instance, gives an empty text."""
    root = base_url.rstrip("/").removesuffix("/v1")
    if not _names_a_server(root):
        raise LabError(f"{base_url!r} is not an http or https URL", "give one like http://127.0.0.1:8000")
    return root


def _names_a_server(root: str) -> bool:
    try:
        parts = urlsplit(root)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and len(root.split()) == 1
    except ValueError:  # a port beyond 65535, half an IPv6 address
        return False


def key_from_environment() -> str:
    return os.environ.get(KEY_VARIABLE, "").strip()


def auth_headers(api_key: str | None = None) -> dict[str, str]:
    """The header that a server with a key asks for; LABKIT_API_KEY is the key when none is given, nothing without."""
    key = api_key or key_from_environment()
    return {"Authorization": f"Bearer {key}"} if key else {}


def open_client(base_url: str, api_key: str | None = None, timeout: float = 120, retries: int = 0):
    """An openai client. The key is LABKIT_API_KEY when not given; a proxy is not used for this machine's own address.

    Without `retries`, because a measurement that repeats a failed request has measured something else.
    """
    import openai

    root = root_url(base_url)
    return openai.OpenAI(
        base_url=f"{root}/v1",
        api_key=api_key or key_from_environment() or "none",
        max_retries=retries,
        timeout=timeout,
        http_client=openai.DefaultHttpxClient(**_transport(root)),
    )


def open_http(base_url: str, timeout: float, api_key: str | None = None):
    """Plain HTTP to a server, for what the openai client would mend or hide; close it after use.

    The key is LABKIT_API_KEY when not given. Each request has a connection of its own, because some servers drop the
    one on which they have failed.
    """
    import httpx2

    root, limits = root_url(base_url), httpx2.Limits(max_keepalive_connections=0)
    return httpx2.Client(
        base_url=root, headers=auth_headers(api_key), timeout=timeout, limits=limits, **_transport(root)
    )


def read_json_page(url: str, timeout: float = 5, api_key: str | None = None) -> object:
    """The JSON at `url`, or None where the answer is no JSON. Raises OSError or HTTPException when nothing answers."""
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if _loopback(url) else []))
    with opener.open(urllib.request.Request(url, headers=auth_headers(api_key)), timeout=timeout) as response:
        body = response.read(2**20)
    try:
        return json.loads(body)
    except ValueError:
        return None


def read_health(root: str, timeout: float = 5, api_key: str | None = None) -> dict:
    """What /health says, with "status": "ok" added for servers that answer 200 and no JSON.

    A server without /health gives {"status": "not offered"}. Raises LabError when nothing answers.
    """
    try:
        said = read_json_page(f"{root}/health", timeout, api_key)
    except urllib.error.HTTPError as error:
        return {"status": "not offered" if error.code == 404 else f"HTTP {error.code}"}
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise LabError(
            f"no server answers at {root}: {getattr(reason, 'strerror', None) or reason}",
            "start one with `labkit serve`, or check --base-url",
        ) from None
    return {"status": "ok", **said} if isinstance(said, dict) else {"status": "ok"}


def first_model(client) -> str:
    """The first model that the server lists. Raises LabError when it lists none, refuses, or is no such server."""
    import openai

    root = str(client.base_url).rstrip("/").removesuffix("/v1")
    try:
        return next(card.id for card in client.models.list())
    except openai.APIStatusError as error:
        raise refused(error, root) from None
    except openai.APIError as error:
        next_step = "start one with `labkit serve`, or check --base-url"
        raise LabError(f"no server answers at {root}: {error.message}", next_step) from None
    except (AttributeError, TypeError, ValueError):  # a web page, or JSON of another shape
        next_step = "check that --base-url is an OpenAI-compatible server, or give the model's name with --model"
        raise LabError("the answer at /v1/models is no list of models", next_step, root) from None
    except StopIteration:
        raise LabError("the server lists no model", "give the model's name with --model", root) from None


def refused(error, root: str) -> LabError:
    """What an openai APIStatusError means to the person who asked, and the remedy."""
    remedies = {
        401: f"set the variable {KEY_VARIABLE} to the server's key",
        404: "give a model that the server lists at /v1/models",
    }
    remedy = remedies.get(error.status_code, "read the message and the server's log")
    return LabError(f"the server refused with {error.status_code}: {error.message}", remedy, root)


def _transport(root: str) -> dict:
    """Options of an httpx client. Elsewhere the environment speaks (proxies, SSL_CERT_FILE); this machine's own address
    is asked without a proxy, so SSL_CERT_FILE, which a gate with a certificate of its own needs, is read here."""
    if not _loopback(root):
        return {}
    return {"trust_env": False, **({"verify": ssl.create_default_context()} if root.startswith("https:") else {})}


def _loopback(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
