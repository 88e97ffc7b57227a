"""The overclaims that this course is about, each by its name: sentences that a pack may not contain.

Facts are compared first (device columns, gate statuses, the contract). Sentences are then searched for in the files
that hold words, by the patterns of wording.py. A clever wording gets through, as it gets past a tired reader; what the
files prove is said by the claims, never by a sentence.
"""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from labkit.adaptation.decision import PREPARE_LORA
from labkit.verification import adaptation_checks as adaptation
from labkit.verification import decision_checks as decision
from labkit.verification import plan_checks as plan
from labkit.verification import release_checks as release
from labkit.verification import service_checks as service
from labkit.verification import training_checks as training
from labkit.verification.reading import PackReader, is_filled
from labkit.verification.timing_checks import GPU_PLAN, made_again
from labkit.verification.verdicts import Contradiction, NotYet
from labkit.verification.wording import (
    BIG_QUALITY,
    GPU_ON_CPU,
    NO_BASELINE,
    NO_SHUTDOWN,
    PUBLIC,
    SPEED_ELSEWHERE,
    STABLE,
    claims,
    denied,
    plain,
)

SAID_IN = (
    release.README,
    plan.ROUTE_PLAN,
    GPU_PLAN,
    "colab_notes.md",
    service.FIRST_RUN,
    decision.MODEL_DECISION,
    decision.RUNTIME_DECISION,
    decision.RUNBOOK,
    decision.OPEN_ROUTE,
    adaptation.DECISION,
    release.CONTRACT,
    release.GATES,
    release.BENCHMARK,
    release.DRILL,
)
MOST_OWN = 20  # texts of the learner's own that are searched
_HONEST_KEYS = {"cannot prove", "fallback", "stop rule", "upgrade signal", "upgrade_signal", "not_proved"}
_MODEL_SAID = {"prompt", "output", "first_message", "example"}  # the words of a case or of a model claim nothing
_HONEST_SECTIONS = {"known limits", "rejected alternatives"}
_END = re.compile(r"[.;:!?](?=\s|$)|。|\n\s*\n|\n(?=\s*[-*|#])")
_EMPHASIS = re.compile(r"[*`~]+|(?<!\w)_+|_+(?!\w)")
_INSIDE = re.compile(r"(?<=\w)[*~]+(?=\w)")  # emphasis of a part of a word


@dataclass(frozen=True)
class Said:
    """One sentence of a pack in which an overclaim was found."""

    file: str
    sentence: str
    match: re.Match

    def __str__(self) -> str:
        return f"{self.file} says {self.sentence[:120]!r}"


def said(pack: PackReader, overclaim: str) -> Iterator[Said]:
    """Each sentence of the pack's texts that makes the claim and does not deny it. A file that cannot be read is left
    out."""
    for name in _texts(pack):
        for sentence in _sentences(pack, name):
            for match in claims(overclaim, sentence):
                yield Said(name, sentence, match)


def _texts(pack: PackReader) -> list[str]:
    """The files that hold words: those of the lessons, and what else was written down beside them."""
    own = [name for name in sorted(pack.entries) if name.endswith(".md") and name not in SAID_IN]
    return [*SAID_IN, *own[:MOST_OWN]]


def _sentences(pack: PackReader, name: str) -> list[str]:
    if not pack.exists(name):
        return []
    return pack.once(lambda _: _read_sentences(pack, name), ("sentences", name))


def _read_sentences(pack: PackReader, name: str) -> list[str]:
    try:
        texts = _strings(pack.json(name), "") if name.endswith(".json") else [_prose(plain(pack.text(name)))]
    except Exception:
        return []  # what cannot be read is its own rule's business
    parts = (part for text in texts for part in _END.split(plain(text)))
    return [
        said for part in parts if (said := " ".join(_EMPHASIS.sub(" ", _INSIDE.sub("", part)).split()).strip("-#| "))
    ]


def _prose(text: str) -> str:
    """A Markdown text without the parts whose business is what is not claimed: honest sections and fields, the list
    below a line such as `It cannot prove:`, and what a model was asked and said."""
    kept, section, field, listed, quoted = [], False, False, False, False
    for line in text.splitlines():
        key = re.match(r"- ([A-Za-z][\w ]{0,30}):", line)
        if line.startswith("#"):
            section, field, listed, quoted = line.strip("# ").lower() in _HONEST_SECTIONS, False, False, False
        elif key:
            field, quoted = key[1].lower() in _HONEST_KEYS, key[1].lower() in _MODEL_SAID
        elif not line.strip():
            field = False
        if line.rstrip().endswith(":"):
            listed = denied(line)
        elif line.strip() and not line.lstrip().startswith(("-", "*")):
            listed = False
        if not (section or field or listed or quoted):
            kept.append(line)
    return "\n".join(kept)


def _strings(value: object, key: str) -> list[str]:
    if key in _HONEST_KEYS | _MODEL_SAID:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for name, item in value.items() for text in _strings(item, name)]
    return [text for item in value for text in _strings(item, key)] if isinstance(value, list) else []


def _none_says(pack: PackReader, overclaim: str, more: str = "") -> None:
    if found := next(said(pack, overclaim), None):
        raise Contradiction(f"{overclaim}: {found}{more}")


def check_gpu_training(pack: PackReader) -> str:
    device = training.log_devices(pack)
    if device == "cuda":
        return "every row of the log says cuda"
    where = f", the log's rows say {device}"
    report = pack.json(training.RUN_ENVIRONMENT) if pack.exists(training.RUN_ENVIRONMENT) else {}
    if "cuda" in (device, report.get("device")) or report.get("verdict") == training.CUDA_ACCEPTANCE:
        told = f"device {report.get('device')}, verdict {report.get('verdict')}"
        raise Contradiction(f"{GPU_ON_CPU}: {training.RUN_ENVIRONMENT} says {told}{where}")
    if pack.exists(training.TRACE):
        text = pack.text(training.TRACE)
        if re.search(r"^verdict: CUDA acceptance|^device: cuda", text, re.M):
            raise Contradiction(f"{GPU_ON_CPU}: {training.TRACE} says cuda{where}")
    told = (found for found in said(pack, GPU_ON_CPU) if found.file != GPU_PLAN)  # a plan says what is wanted
    if found := next(told, None):
        raise Contradiction(f"{GPU_ON_CPU}: {found}{where}")
    return f"the rows say {device}, and no file says more"


def check_speed(pack: PackReader) -> str:
    """What the gates and the benchmark claim is judged by their own rules; here it is what people are told."""
    _none_says(pack, SPEED_ELSEWHERE, more=f", which {pack.route} cannot prove")
    return f"no file claims a speed that {pack.route} cannot prove"


def check_stable(pack: PackReader) -> str:
    _none_says(pack, STABLE, more=", and a session of Colab ends without notice")
    return "no file promises a stable service"


def check_public(pack: PackReader) -> str:
    found = next(said(pack, PUBLIC), None)
    contract = pack.json(release.CONTRACT) if pack.exists(release.CONTRACT) else {}
    missing = [name for name, there in _operated(contract).items() if not there]
    if found and missing:
        raise Contradiction(f"{PUBLIC}: {found}, {release.CONTRACT} has no {', '.join(missing)}")
    if "authorization" in missing and (host := _open_host(contract)):
        raise Contradiction(f"{PUBLIC}: {release.CONTRACT} serves at {host} without authorization")
    return (
        "no file says that it is ready for the public" if not found else f"{found}, with auth, logging and monitoring"
    )


def _open_host(contract: dict) -> str:
    """The host of the endpoint where others than this machine can reach it; empty for the loopback, or for none."""
    endpoint = contract.get("endpoint")
    host = urlsplit(str(endpoint.get("base_url") or "")).hostname if isinstance(endpoint, dict) else None
    try:
        return "" if not host or ipaddress.ip_address(host).is_loopback else host
    except ValueError:
        return "" if host == "localhost" else str(host)


def _operated(contract: dict) -> dict[str, bool]:
    """Whether the contract names authorization, logging and monitoring (its metrics address is one)."""
    auth, endpoint = str(contract.get("authorization") or "none"), contract.get("endpoint")
    metrics = endpoint.get("metrics") if isinstance(endpoint, dict) else None
    return {
        "authorization": is_filled(auth) and not auth.lower().startswith(("none", "no ")),
        "logging": is_filled(contract.get("logging")),
        "monitoring": is_filled(contract.get("monitoring")) or is_filled(metrics),
    }


def check_quality(pack: PackReader) -> str:
    """The sizes that a sentence or the model's own name says, against the size of the model that was decided for."""
    fields = pack.fields(decision.MODEL_DECISION, ("Model", "Size"))
    size = decision.billions(fields["Size"])
    if size is None:
        raise NotYet(f"{decision.MODEL_DECISION} does not say how many parameters the model has")
    named = re.search(r"(?<![\d.])(\d{1,4}(?:\.\d{1,3})?) ?[Bb]\b", fields["Model"])
    if named and float(named[1]) > 2 * size:
        raise Contradiction(
            f"{BIG_QUALITY}: {decision.MODEL_DECISION} names {fields['Model'][:60]}, its size is {size:.3g} B"
        )
    for found in said(pack, BIG_QUALITY):
        if float(next(filter(None, found.match.groups()), "inf")) > 1.5 * size:
            raise Contradiction(f"{BIG_QUALITY}: {found}, the model has {size:.3g} B parameters")
    return f"{size:.3g} B parameters, and no file claims the quality of more"


def check_fine_tuning(pack: PackReader) -> str:
    """A pack that chooses to fine-tune, or says that it did, has cases that fail without it.

    An adapter alone may be an exercise, and an evaluation may be newer than the choice: neither is a claim.
    """
    chosen, sentence = _chosen(pack), next(said(pack, NO_BASELINE), None)
    tuned = chosen or sentence or (pack.exists(adaptation.ADAPTER) and "adapter/ is there")
    if not tuned:
        return "nothing was fine-tuned, and no file says so"
    if failing := _failing(pack):
        return f"{failing} cases fail without it"
    what = f"{NO_BASELINE}: {tuned}, and no case of the pack fails without it"
    if not (chosen or sentence):
        if pack.exists(adaptation.DECISION) and adaptation.facts_of(pack).decision != PREPARE_LORA:
            return f"adapter/ is an exercise: {adaptation.DECISION} decides against it"
        raise NotYet(what)
    made_again(pack, service.RESULTS, decision.RUNBOOK)
    raise Contradiction(what)


def _chosen(pack: PackReader) -> str:
    """What the runbook says where it chooses to fine-tune; else nothing."""
    choice = pack.json(decision.RUNBOOK).get("adaptation") if pack.exists(decision.RUNBOOK) else None
    named = str(choice.get("choice")) if isinstance(choice, dict) else ""
    tuning = re.match(r"\s*(?:q?lora|full|fine[- ]?tun)", named, re.I)
    return f"{decision.RUNBOOK} chooses {named[:60]!r}" if tuning else ""


def _failing(pack: PackReader) -> int:
    """The failing cases that fine-tuning can rest on: those of the decision, else those of the pack's evaluation."""
    if pack.exists(adaptation.DECISION):
        return len(adaptation.facts_of(pack).failures)
    if not pack.exists(service.RESULTS):
        raise NotYet("something was fine-tuned, and there is no evaluation yet")
    return sum(row["pass"] == "false" for row in service.result_rows(pack))


def check_rented(pack: PackReader) -> str:
    """A rented machine that was used is proved to have stopped before the pack says that all is done."""
    try:
        return release.check_shutdown(pack)
    except NotYet as gap:
        what = f"{NO_SHUTDOWN}: {gap}"
        if _passes_shutdown(pack) and not _stopped(pack):
            made_again(pack, release.SHUTDOWN, release.GATES)
            raise Contradiction(f"{NO_SHUTDOWN}: {release.GATES} passes the shutdown path, and {gap}") from None
        raise NotYet(what) from None


def _passes_shutdown(pack: PackReader) -> bool:
    return pack.exists(release.GATES) and any(
        row["status"] == "pass" for row in release.gate_rows(pack) if row["gate"] == "shutdown path"
    )


def _stopped(pack: PackReader) -> bool:
    """What the gate passes on. A stop hook that failed, or a limit that was passed, is not the gate's business."""
    proof = pack.json(release.SHUTDOWN)
    return proof.get("process_gone") is True and proof.get("port_closed") is True
