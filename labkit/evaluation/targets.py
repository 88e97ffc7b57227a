"""What can be evaluated: a model in this process, or one behind an OpenAI-compatible API."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from labkit.errors import LabError
from labkit.generation import ChatModel, Sampling


@dataclass(frozen=True)
class Reply:
    """One answer with its cost: milliseconds from request to last token, and the tokenizer's own counts."""

    text: str
    latency_ms: float
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Target:
    """What is evaluated: a name, the facts that identify it, and a function from prompt to reply."""

    model: str
    revision: str
    device: str
    dtype: str
    ask: Callable[[str, Sampling], Reply]


def model_target(model: ChatModel) -> Target:
    """A model in this process."""

    def ask(prompt: str, sampling: Sampling) -> Reply:
        done = model.chat([{"role": "user", "content": prompt}], sampling)
        return Reply(done.text, done.seconds * 1000, done.prompt_tokens, done.completion_tokens)

    return Target(model.name, model.revision, model.device, model.dtype, ask)


def endpoint_target(base_url: str, api_key: str = "") -> Target:
    """The model behind an OpenAI-compatible API at `base_url`, with or without /v1.

    What the server does not say of itself on /health (only ours does) stays "unknown". Raises LabError when no server
    answers. The openai client retries twice on connection errors and on 429 and 5xx answers.
    """
    import openai

    root = base_url.rstrip("/").removesuffix("/v1")
    client = openai.OpenAI(base_url=f"{root}/v1", api_key=api_key or "none", max_retries=2, timeout=60)
    try:
        said = _health(root)
        model = said.get("model") or client.models.list().data[0].id
    except (openai.OpenAIError, IndexError) as error:
        raise LabError(
            f"no model answers at {root}: {error}", "start one with `labkit serve`, or mend the URL"
        ) from None

    def ask(prompt: str, sampling: Sampling) -> Reply:
        started = time.perf_counter()
        try:
            done = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                seed=sampling.seed,
            )
        except openai.OpenAIError as error:
            raise LabError(f"the server at {root} refused a case: {error}", "look at the server's log") from error
        took = (time.perf_counter() - started) * 1000
        return Reply(
            done.choices[0].message.content or "", took, done.usage.prompt_tokens, done.usage.completion_tokens
        )

    facts = (str(said.get(key, "unknown")) for key in ("revision", "device", "dtype"))
    return Target(model, *facts, ask)


def _health(root: str) -> dict:
    """What /health says, or nothing where a server has no such page or answers it with something else."""
    try:
        with urllib.request.urlopen(f"{root}/health", timeout=5) as answer:
            said = json.loads(answer.read())
    except (urllib.error.HTTPError, ValueError):
        return {}
    except OSError as error:
        raise LabError(f"no server answers at {root}", "start one with `labkit serve`, or mend the URL") from error
    return said if isinstance(said, dict) else {}
