"""What can be evaluated: a model in this process, or one behind an OpenAI-compatible API."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from labkit.endpoint import first_model, open_client, read_health, root_url
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


def endpoint_target(base_url: str, api_key: str | None = None, model: str | None = None) -> Target:
    """The model behind an OpenAI-compatible API at `base_url`, with or without /v1; the key is LABKIT_API_KEY's.

    Without `model` it is the one that the server names, or lists first. What the server does not say of itself on
    /health (only ours does) stays "unknown". Raises LabError when no server answers. The openai client retries twice on
    connection errors and on 429 and 5xx answers.
    """
    import openai

    root = root_url(base_url)
    said = read_health(root)
    client = open_client(root, api_key, timeout=60, retries=2)
    model = model or said.get("model") or first_model(client)

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
