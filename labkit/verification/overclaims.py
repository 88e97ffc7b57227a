"""The overclaims that this course is about, each by its name: sentences that a pack may not contain.

Facts are compared first (device columns, gate statuses, the contract). English and Japanese sentences are then searched
for in the files that hold words: a claim counts unless its own sentence denies it or makes it depend on something. A
clever wording gets through, as it gets past a tired reader; what the files prove is said by the claims, never by a
sentence.
"""

import ipaddress
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from labkit.adaptation.decision import NO_BASELINE, PREPARE_LORA
from labkit.verification import adaptation_checks as adaptation
from labkit.verification import decision_checks as decision
from labkit.verification import plan_checks as plan
from labkit.verification import release_checks as release
from labkit.verification import service_checks as service
from labkit.verification import training_checks as training
from labkit.verification.reading import PackReader, is_filled
from labkit.verification.timing_checks import GPU_PLAN, made_again
from labkit.verification.verdicts import Contradiction, NotYet

GPU_ON_CPU = "GPU training on CPU rows"
SPEED_ELSEWHERE = "throughput or latency claimed without a GPU of one's own"
STABLE = "stable service from free Colab"
PUBLIC = "public ready without auth, logging and monitoring"
BIG_QUALITY = "quality of a larger model from a smaller one"
NO_SHUTDOWN = "rented GPU without shutdown proof"

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
_HONEST_KEYS = {"cannot prove", "fallback", "stop rule", "upgrade signal", "upgrade_signal", "not_proved"}
_MODEL_SAID = {"prompt", "output", "first_message", "example"}  # the words of a case or of a model claim nothing
_HONEST_SECTIONS = {"known limits", "rejected alternatives"}
_END = re.compile(r"[.;:!?](?=\s|$)|。|\n\s*\n|\n(?=\s*[-*|#])")
_UNSEEN = re.compile("[\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_EMPHASIS = re.compile(r"[*`~]+|(?<!\w)_+|_+(?!\w)")
_DENIED = re.compile(
    r"\b(?:not|never|cannot|can't|isn't|doesn't|don't|won't|nothing|nobody|neither|nor|without|unless|until|before|when|if"
    r"|would|should|must|may|might|could|local number|local measurement)\b",
    re.I,
)
_DENIED_JA = re.compile("ない|ません|なかっ|ぬ|ず[、に]|未|不可|非|場合|[れけせてえねべめ]ば|たら|まで|べき|かもしれ")
_NO = re.compile(r"\bno\b", re.I)
_CLAIMS = {
    GPU_ON_CPU: r"\b(?:trained|training|train|run) on (?:an? |the )?(?:[\w-]{1,20} )?(?:gpu|cuda|h\d00|a100|t4|l4)\b"
    r"|\bgpu training\b|\bcuda acceptance\b",
    SPEED_ELSEWHERE: r"\b(?:serves?|handles?|sustains?|supports?) (?:up to )?\d[\d,.]{0,12} ?k? (?:concurrent )?"
    r"(?:users|clients|requests|tokens)\b|\b\d[\d,.]{0,12} ?(?:tokens|requests) ?(?:/|per) ?s(?:ec(?:ond)?)?\b"
    r"|\b(?:low|production|guaranteed)[- ](?:latency|throughput)\b|\b(?:throughput|latency) of \d",
    STABLE: r"\bstable (?:service|api|endpoint|server|url)\b|\balways[- ](?:on|available|up)\b|\b24/7\b"
    r"|\b99\.\d{1,4} ?%|\bhigh(?:ly)? availab",
    PUBLIC: r"\b(?:public|production|internet)[- ]ready\b|\bready for (?:the )?(?:public|production|internet)\b"
    r"|\b(?:open|exposed) to (?:the )?(?:public|internet)\b",
    BIG_QUALITY: r"\b(\d{1,4}(?:\.\d{1,3})?) ?B\b[^.;\n]{0,40}\b(?:quality|level|grade|class)\b"
    r"|\b(?:quality|level|as good as|matches|on par with|equals?|rivals?)\b"
    r"[^.;\n]{0,40}?\b(\d{1,4}(?:\.\d{1,3})?) ?B\b",
    NO_BASELINE: r"\b(?:is|was|were|been|we|i) (?:fine[- ]?tuned?|tuned)\b",
}
_COUNT = r"(?<![\d一二三四五六七八九十百千万億,.])[\d一二三四五六七八九十百][\d一二三四五六七八九十百千万億,.]{0,12} ?"
_CLAIMS_JA = {
    GPU_ON_CPU: "GPU ?(?:上)?で(?:の)?(?:学習|訓練)",
    SPEED_ELSEWHERE: f"毎秒 ?{_COUNT}(?:トークン|リクエスト|件)|{_COUNT}(?:トークン|リクエスト) ?/ ?秒"
    f"|同時に? ?{_COUNT}(?:人|ユーザー|接続)|{_COUNT}(?:人|ユーザー)(?:の|が|を)?同時",
    STABLE: "安定した? ?(?:サービス|稼働|運用|API)|常時稼働|24時間|高可用",
    PUBLIC: "本番(?:環境)?(?:対応|[での]?(?:利用|運用|公開|使用)が?(?:可能|でき))|公開が?(?:可能|でき|準備完了)",
    BIG_QUALITY: r"(?<![\d.])(\d{1,4}(?:\.\d{1,3})?) ?B ?(?:の|モデル){0,2}(?:並み|相当|級|クラス|に匹敵|と同等)",
    NO_BASELINE: "(?:ファインチューニング|微調整)(?:済み|した|しました|を行っ)",
}
_PATTERNS = {name: re.compile(pattern, re.I) for name, pattern in _CLAIMS.items()}
_PATTERNS_JA = {name: re.compile(pattern, re.I) for name, pattern in _CLAIMS_JA.items()}


@dataclass(frozen=True)
class Said:
    """One sentence of a pack in which an overclaim was found."""

    file: str
    sentence: str
    match: re.Match

    def __str__(self) -> str:
        return f"{self.file} says {self.sentence[:120]!r}"


def said(pack: PackReader, overclaim: str, files: tuple[str, ...] = SAID_IN) -> Iterator[Said]:
    """Each sentence of `files` that makes the claim and does not deny it. Files that cannot be read are left out."""
    for name in files:
        for sentence in _sentences(pack, name):
            for match in _claims(overclaim, sentence):
                if not (_denied(sentence) or _NO.search(sentence[: match.start()])):
                    yield Said(name, sentence, match)


def _claims(overclaim: str, sentence: str) -> Iterator[re.Match]:
    yield from _PATTERNS[overclaim].finditer(sentence)
    if not sentence.isascii():
        yield from _PATTERNS_JA[overclaim].finditer(sentence)


def _denied(sentence: str) -> bool:
    return bool(_DENIED.search(sentence) or _DENIED_JA.search(sentence))


def _sentences(pack: PackReader, name: str) -> list[str]:
    if not pack.exists(name):
        return []
    return pack.once(lambda _: _read_sentences(pack, name), ("sentences", name))


def _read_sentences(pack: PackReader, name: str) -> list[str]:
    try:
        texts = _strings(pack.json(name), "") if name.endswith(".json") else [_prose(_plain(pack.text(name)))]
    except Exception:
        return []  # what cannot be read is its own rule's business
    parts = (part for text in texts for part in _END.split(_plain(text)))
    return [said for part in parts if (said := " ".join(_EMPHASIS.sub(" ", part).split()).strip("-#| "))]


def _plain(text: str) -> str:
    """The text as it is read: full-width letters as plain ones, and without characters that are not seen."""
    return text if text.isascii() else _UNSEEN.sub("", unicodedata.normalize("NFKC", text))


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
            listed = bool(_DENIED.search(line) or _NO.search(line))
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


def _none_says(pack: PackReader, overclaim: str, files: tuple[str, ...] = SAID_IN, more: str = "") -> None:
    if found := next(said(pack, overclaim, files), None):
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
    told = tuple(name for name in SAID_IN if name != GPU_PLAN)  # a plan says what is wanted
    _none_says(pack, GPU_ON_CPU, (*told, training.RUN_README), where)
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
        if float(next(filter(None, found.match.groups()))) > 1.5 * size:
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
