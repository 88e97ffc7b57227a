"""What can be evaluated: a model in this process, or one behind an OpenAI-compatible API."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from labkit.endpoint import first_model, open_client, read_health, root_url
from labkit.errors import LabError
from labkit.generation import ChatModel, Sampling

CLIENTS = 4  # requests at once to a server, unless told: what `labkit serve` answers together
RETRIES = 2  # of the openai client, on connection errors and on 408, 409, 429 and 5xx answers
PATIENCE = 120.0  # seconds for which one case waits where a server names the time to come back


@dataclass(frozen=True)
class Reply:
    """One answer with its cost: milliseconds from request to last token, and the tokenizer's own counts."""

    text: str
    latency_ms: float
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Target:
    """What is evaluated: a name, the facts that identify it, and a function from prompt to reply.

    `concurrency` is how many requests it takes at once unless told otherwise; 1 is a target that never takes more.
    """

    model: str
    revision: str
    device: str
    dtype: str
    ask: Callable[[str, Sampling], Reply]
    backend: str = "unknown"
    concurrency: int = 1


def model_target(model: ChatModel) -> Target:
    """A model in this process."""

    def ask(prompt: str, sampling: Sampling) -> Reply:
        done = model.chat([{"role": "user", "content": prompt}], sampling)
        return Reply(done.text, done.seconds * 1000, done.prompt_tokens, done.completion_tokens)

    return Target(model.name, model.revision, model.device, model.dtype, ask, model.backend)


def endpoint_target(base_url: str, api_key: str | None = None, model: str | None = None) -> Target:
    """The model behind an OpenAI-compatible API at `base_url`, with or without /v1; the key is LABKIT_API_KEY's.

    Without `model` it is the one that the server names, or lists first. What the server does not say of itself on
    /health (only ours does) stays "unknown". Raises LabError when no server answers.

    A busy server that names the time to come back (Retry-After) is asked again for up to PATIENCE seconds. The latency
    is that of the request that was answered, without the waiting and the requests before it.
    """
    import openai

    root = root_url(base_url)
    said = read_health(root)
    client = open_client(root, api_key, timeout=60, retries=RETRIES)
    model = model or said.get("model") or first_model(client)

    def ask(prompt: str, sampling: Sampling) -> Reply:
        def request():
            return client.chat.completions.with_raw_response.create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                seed=sampling.seed,
            )

        try:
            return _reply(_patiently(request), root)
        except openai.OpenAIError as error:
            raise LabError(f"the server at {root} refused a case: {error}", "look at the server's log") from error

    adapters = said.get("adapters")
    if isinstance(adapters, dict) and model in adapters:
        said = {**said, "revision": adapters[model]}
    revision, device, dtype, backend = (
        str(said.get(key, "unknown")) for key in ("revision", "device", "dtype", "backend")
    )
    return Target(model, revision, device, dtype, ask, backend, CLIENTS)


def _patiently(request: Callable):
    """What `request` returns, asked again as long as the server names a time to come back within PATIENCE seconds."""
    import openai

    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return request()
        except openai.APIStatusError as error:
            wait = _retry_after(error)
            if wait is None or time.monotonic() + wait > deadline:
                raise
            time.sleep(wait)


def _retry_after(error) -> float | None:
    """The seconds that a busy server names, or None: a date, or no word of when, is left to the openai client."""
    try:
        return max(0.1, float(error.response.headers["retry-after"])) if error.status_code in (429, 503) else None
    except (KeyError, ValueError):
        return None


def _reply(response, root: str) -> Reply:
    try:
        done = response.parse()
        text, usage = done.choices[0].message.content or "", done.usage
        took = response.elapsed.total_seconds() * 1000
        return Reply(text, took, usage.prompt_tokens, usage.completion_tokens)
    except (AttributeError, IndexError, TypeError):  # a web page, or JSON of another shape
        what = f"the server at {root} answered a case without choices or without usage"
        raise LabError(what, "check that --base-url is an OpenAI-compatible server") from None
