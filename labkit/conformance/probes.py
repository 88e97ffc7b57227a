"""The table of probes, and the report that they make of one endpoint."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from labkit.conformance import answers, refusals, streams, structured
from labkit.conformance.findings import Probe, Verdict
from labkit.conformance.wire import Wire
from labkit.endpoint import first_model, open_client, read_health, root_url
from labkit.evidence import utc_now

NOT_PROVED = (
    "Each feature was asked for once or a few times, with one model and without load: this proves neither that it holds"
    " under concurrency and for every value, nor that the answers are any good."
)

PROBES = (
    Probe("server", "/v1/models", answers.models, "GET; right is a list that has the model"),
    Probe("server", "/health", answers.health, "GET; right is 200"),
    Probe("server", "/metrics", answers.metrics, "GET; right is Prometheus' text format"),
    Probe("server", "/openapi.json", answers.openapi, "GET; right is a document that describes the chat path"),
    Probe("server", "/v1/completions", answers.completions, "a prompt; right is choices[0].text"),
    Probe("chat", "content as text", answers.content_text, "one message; right is OpenAI's chat.completion object"),
    Probe("chat", "content as parts", answers.content_parts, "the message as text parts; right is the same prompt"),
    Probe("chat", "image part", answers.image_part, "a PNG in a data URL; right is a longer prompt"),
    Probe("chat", "system role", answers.role("system"), "a system message; right is another prompt or answer"),
    Probe("chat", "developer role", answers.role("developer"), "its newer name; right is another prompt or answer"),
    Probe("chat", "tool message", answers.tool_message, "a tool's result in the history; right is that it is read"),
    Probe("chat", "reasoning_content", answers.reasoning_message, "in the history; right is that it is accepted"),
    Probe("chat", "max_tokens", answers.limit("max_tokens"), "5; right is at most 5 tokens and 'length'"),
    Probe("chat", "max_completion_tokens", answers.limit("max_completion_tokens"), "its newer name; right is the same"),
    Probe("chat", "stop", answers.stop(str), "a piece of the answer; right is the text before it, and 'stop'"),
    Probe("chat", "stop list", answers.stop(lambda text: ["never said", text]), "in a list; right is the same"),
    Probe("chat", "stop streamed", answers.stop(str, streamed=True), "in a stream; right is the same"),
    Probe("chat", "finish_reason", answers.finish_reason, "max_tokens, stop; right is 'length', then 'stop'"),
    Probe("chat", "temperature 0", answers.temperature_0, "3 times; right is one and the same answer"),
    Probe("chat", "temperature 2", answers.temperature_2, "3 times; right are different answers"),
    Probe("chat", "seed", answers.seed, "at temperature 2, or 1; right is that the seed decides the answer"),
    Probe("chat", "n", answers.two_choices, "2; right are two choices"),
    Probe("chat", "logprobs", answers.logprobs, "with 2 top_logprobs; right are both, for each token"),
    Probe("chat", "presence_penalty", answers.penalty("presence_penalty", -2), "-2; right is another answer"),
    Probe("chat", "frequency_penalty", answers.penalty("frequency_penalty", -2), "-2; right is another answer"),
    Probe("chat", "usage", answers.usage, "nothing; right are counts of which the total is the sum"),
    Probe("stream", "chunks", streams.chunks, "stream; right are a role, pieces of text, then finish_reason"),
    Probe("stream", "[DONE]", streams.done, "stream; right is that it is the last event"),
    Probe("stream", "same answer", streams.same_answer, "stream at temperature 0; right is the plain answer's text"),
    Probe("stream", "usage when asked", streams.usage_asked, "include_usage; right is a last chunk without choices"),
    Probe("stream", "usage only when asked", streams.usage_unasked, "no include_usage; right is no usage"),
    Probe("structure", "json_object", structured.json_object, "against the prompt; right is an object"),
    Probe("structure", "json_schema", structured.json_schema, "against the prompt; right is a fitting object"),
    Probe("structure", "tools, auto", structured.tools, "one tool; right is a right call, or a prompt that has it"),
    Probe("structure", "tools, forced", structured.forced_tool, "against the prompt; right is the call, fitting"),
    Probe("errors", "malformed JSON", refusals.raw(b'{"messages": [', 400), "half a body; right is 400"),
    Probe("errors", "missing messages", refusals.missing_messages, "no messages; right is 400"),
    Probe("errors", "unknown model", refusals.mistake(404, model="no-such-model"), "right is 404"),
    Probe("errors", "wrong type", refusals.mistake(400, temperature="hot"), "temperature as text; right is 400"),
    Probe("errors", "unknown parameter", refusals.mistake(400, no_such_parameter=1), "right is 400, as OpenAI does"),
    Probe("errors", "negative max_tokens", refusals.mistake(400, max_tokens=-1), "right is 400"),
    Probe("errors", "wrong method", refusals.method, "GET on the chat path; right is 405 or 404"),
    Probe(
        "errors",
        "wrong content type",
        refusals.raw(b"hello", 415, 400, content_type="text/plain"),
        "plain text; right is 415 or 400",
    ),
    Probe("errors", "wrong key", refusals.wrong_key, "another key; right is 401 where the server has one"),
    Probe("errors", "client leaves a stream", refusals.leave(stream=True), "right is that the next is answered soon"),
    Probe("errors", "client leaves an answer", refusals.leave(stream=False), "right is the same"),
    Probe("errors", "prompt too long", refusals.long_prompt, "600 words or more; right is 400, or 413"),
)


def conformance(base_url: str, model: str | None = None, probes: Iterable[Probe] = PROBES) -> dict:
    """The content of conformance.json: what each of `probes` found at `base_url` (with or without /v1).

    `model` is the first one that the server lists when not given. Takes about 100 short requests, one after the other;
    the last may keep a server that takes prompts of any length busy for longer than the probe waits (60 s).
    Raises LabError when no server answers, it refuses the key, or it lists no model; later failures are findings.
    """
    root = root_url(base_url)
    read_health(root)
    wire = Wire(root, model or first_model(open_client(root)))
    with wire.http:
        rows = [{"group": probe.group, "sent": probe.sent, **asdict(probe.ask(wire))} for probe in probes]
    counts = Counter(row["verdict"] for row in rows)
    return {
        "base_url": root,
        "time": utc_now(),
        "model": wire.model,
        "counts": {verdict: counts[verdict] for verdict in Verdict},
        "findings": rows,
        "not_proved": NOT_PROVED,
    }


def feature_rows(found: Mapping) -> list[dict[str, str]]:
    """conformance.json in a few rows: for each group the features that are supported, and each other one with why."""
    rows = []
    for group in dict.fromkeys(finding["group"] for finding in found["findings"]):
        of_group = [finding for finding in found["findings"] if finding["group"] == group]
        good = [finding["feature"] for finding in of_group if finding["verdict"] == Verdict.SUPPORTED]
        others = [f"{f['feature']} ({f['verdict']}: {f['detail']})" for f in of_group if f["feature"] not in good]
        rows.append({"group": group, "supported": ", ".join(good), "not, or not fully": "; ".join(others)})
    return rows
