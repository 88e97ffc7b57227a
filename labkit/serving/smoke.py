"""The smoke test: one health check and one chat through the openai client, as a stranger would meet the service."""

import time

from labkit.endpoint import first_model, open_client, read_health, refused, root_url
from labkit.errors import LabError
from labkit.evidence import utc_now

QUESTION = "Hello! What can you help me with?"
MAX_TOKENS = 32
POLL_SECONDS = 0.2


def wait_until_ready(base_url: str, seconds: float) -> None:
    """Return when /health of the server at `base_url` is ok, or it has none. Raises LabError after `seconds`."""
    root, deadline = root_url(base_url), time.monotonic() + seconds
    while True:
        try:
            said = str(read_health(root)["status"])
        except LabError as error:
            said = error.what
        if said in ("ok", "not offered"):
            return
        if not time.monotonic() < deadline:  # at once, too, for seconds that are no number
            next_step = "read the server's log: it says why it did not start"
            raise LabError(f"the server was not ready within {seconds:g} s: {said}", next_step, root)
        time.sleep(POLL_SECONDS)


def smoke_test(base_url: str, model: str | None = None, api_key: str | None = None) -> dict:
    """The content of api_smoke_test.json for the server at `base_url` (with or without /v1).

    `model` is the first one the server lists when not given; `api_key` is LABKIT_API_KEY when not given. transformers
    serve answers as MODEL@REVISION, which is taken apart here.
    Raises LabError when no server answers, it refuses the key, or it answers with an error.
    """
    import openai

    root = root_url(base_url)
    health = read_health(root)
    client = open_client(root, api_key)
    model = model or first_model(client)
    try:
        started = time.perf_counter()
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=MAX_TOKENS, temperature=0
        )
    except openai.APIStatusError as error:
        raise refused(error, root) from None
    except openai.APIError as error:
        raise LabError(f"the server did not answer: {error.message}", "look at the server's log", root) from None
    latency = time.perf_counter() - started
    usage = answer.usage
    named, _, at = answer.model.partition("@") if answer.model.startswith(f"{model}@") else (answer.model, "", "")
    return {
        "base_url": root,
        "time": utc_now(),
        "client": f"openai {openai.__version__}",
        "health": health,
        "model": named,
        "revision": str(health.get("revision") or answer.system_fingerprint or at or "unknown"),
        "has_choices": bool(answer.choices),
        "first_message": (answer.choices[0].message.content or "") if answer.choices else "",
        "usage": {
            "prompt_tokens": usage.prompt_tokens if usage else None,
            "completion_tokens": usage.completion_tokens if usage else None,
            "total_tokens": usage.total_tokens if usage else None,
        },
        "latency_ms": round(latency * 1000, 1),
    }
