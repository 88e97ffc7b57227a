"""Probes of a streamed answer: its events, its end, its usage, and whether it says what the plain answer says."""

from labkit.conformance.findings import Outcome, Verdict
from labkit.conformance.wire import Wire, at


def chunks(wire: Wire) -> Outcome:
    stream, faults = wire.streamed, []
    if not stream.content_type.startswith("text/event-stream"):
        faults.append(f"sent as {stream.content_type or 'nothing'}")
    if at(stream.chunks, 0, "choices", 0, "delta", "role") != "assistant":
        faults.append("the first chunk has no role")
    if len(stream.pieces) < 2:
        faults.append(f"the text came in {len(stream.pieces)} piece")
    reasons = [at(chunk, "choices", 0, "finish_reason") for chunk in stream.chunks if at(chunk, "choices")]
    if not reasons or not reasons[-1] or any(reasons[:-1]):
        faults.append("finish_reason is not on the last chunk alone")
    if faults:
        return Verdict.PARTLY, "; ".join(faults)
    return Verdict.SUPPORTED, f"role, {len(stream.pieces)} pieces of text, finish_reason {reasons[-1]!r}"


def done(wire: Wire) -> Outcome:
    if wire.streamed.events[-1] == "[DONE]":
        return Verdict.SUPPORTED, "the last event"
    return Verdict.WRONG, "the stream ends without data: [DONE]"


def same_answer(wire: Wire) -> Outcome:
    stream, plain = wire.streamed, wire.plain
    told = (stream.text, stream.finish_reason)
    if told == (plain.text, plain.finish_reason):
        return Verdict.SUPPORTED, f"the same {len(stream.text)} characters and finish_reason"
    what = "text" if stream.text != plain.text else f"finish_reason ({stream.finish_reason}, {plain.finish_reason})"
    return (Verdict.WRONG if wire.repeats == 1 else Verdict.PARTLY), f"another {what} than the plain answer"


def usage_asked(wire: Wire) -> Outcome:
    stream = wire.stream(stream_options={"include_usage": True})
    having = [number for number, chunk in enumerate(stream.chunks) if at(chunk, "usage")]
    if not having:
        return Verdict.IGNORED, "no chunk has usage"
    last, faults = stream.chunks[having[-1]], []
    if len(having) > 1 or having[-1] != len(stream.chunks) - 1:
        faults.append("usage is not on the last chunk alone")
    if at(last, "choices"):
        faults.append("its chunk has choices")
    if at(last, "usage", "completion_tokens") != wire.plain.tokens("completion"):
        faults.append("its count is not that of the plain answer")
    if faults:
        return Verdict.PARTLY, "; ".join(faults)
    return Verdict.SUPPORTED, f"last chunk, no choices, {last['usage']['completion_tokens']} tokens"


def usage_unasked(wire: Wire) -> Outcome:
    having = sum(bool(at(chunk, "usage")) for chunk in wire.streamed.chunks)
    return (Verdict.WRONG, f"{having} chunks have usage unasked") if having else (Verdict.SUPPORTED, "none unasked")
