"""What an overclaim sounds like: patterns of sentences in English, Japanese and the languages beside them.

A claim counts unless its own sentence denies it or makes it depend on something. "Without doubt" denies nothing.
"""

import html
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from labkit.adaptation.decision import NO_BASELINE

GPU_ON_CPU = "GPU training on CPU rows"
SPEED_ELSEWHERE = "throughput or latency claimed without a GPU of one's own"
STABLE = "stable service from free Colab"
PUBLIC = "public ready without auth, logging and monitoring"
BIG_QUALITY = "quality of a larger model from a smaller one"
NO_SHUTDOWN = "rented GPU without shutdown proof"

MOST_SENTENCES = 10_000  # that are kept, each with one of the claims; a pack has some 2,500
_UNSEEN = re.compile("[\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_TAG = re.compile(r"</?(?:a|b|i|u|s|p|br|em|strong|span|sub|sup|small|big|mark|code|font|ins|del)\b[^<>]{0,80}>", re.I)
_WORD = re.compile(r"\w*[a-zA-Z]\w*")
# Letters of other alphabets that look like Latin ones; they count as those within a word that has Latin letters too.
_LOOKALIKES = str.maketrans("аеіјоорсухѕԁԛԝһαονρτ", "aeijoopcyxsdqwhaovpt")

_IDIOMS = re.compile(
    r"\b(?:without (?:any |a |the slightest )?(?:doubt|question|exception|reservations?)"
    r"|(?:there is )?no doubt(?: that)?"
    r"|not (?:only|just|merely|to mention)|(?:it )?cannot be denied(?: that)?|nothing (?:less than|but)|no less than"
    r"|no (?:wonder|question)|nicht nur|ohne (?:jeden )?zweifel|sans (?:aucun )?doute|non seulement|no sólo|no solo"
    r"|sin (?:ninguna )?duda)\b",
    re.I,
)
_DENIED = re.compile(
    r"\b(?:not|never|cannot|can't|isn't|doesn't|don't|won't|nothing|nobody|neither|nor|without|unless|until|before|when|if"
    r"|would|should|must|may|might|could|local number|local measurement)\b",
    re.I,
)
_DENIED_JA = re.compile("ない|ません|なかっ|ぬ|ず[、に]|未|不可|非|場合|[れけせてえねべめ]ば|たら|まで|べき|かもしれ")
_DENIED_ELSEWHERE = re.compile(
    r"\b(?:nicht|kein\w{0,2}|nie(?:mals)?|ohne|weder|wenn|falls|solange|bevor|bis|sollte|könnte|müsste|wäre"
    r"|ne|pas|jamais|aucune?|sans|ni|avant|serait|pourrait|no|nunca|jamás|sin|antes|hasta|sería|podría|não|sem|seria"
    r"|non|mai|senza|nessun\w?|prima|sarebbe|si)\b|\bn['\u2019]|^se\b|[不没沒无無未非]",
    re.I,
)
_NO = re.compile(r"\bno\b", re.I)

_DEVICE = r"(?:gpu|cuda|[abh]\d00|t4|l40?s?|a10g?|rtx ?\d{4}(?: ti)?)"
_MANY = r"(?:(?:\w{2,12} )?(?:hundreds?|thousands?|millions?)(?: of)?|\d[\d,.]{0,12} ?k?)"
_RIVALS = r"\b(?:gpt-?[345]\w{0,3}|chatgpt|claude|gemini)\b"
_CLAIMS = {
    GPU_ON_CPU: rf"\b(?:trained|training|train|run) on (?:an? |the )?(?:[\w-]{{1,20}} ){{0,2}}{_DEVICE}\b"
    rf"|\b(?:trained|training) (?:with|using|via) (?:an? |the )?(?:[\w-]{{1,20}} ){{0,2}}{_DEVICE}\b"
    r"|\bgpu[- ]train(?:ing|ed)\b|\bcuda acceptance\b",
    SPEED_ELSEWHERE: rf"\b(?:serves?|handles?|sustains?|supports?|scales? to) (?:up to )?{_MANY} ?(?:concurrent )?"
    r"(?:users|clients|requests|tokens)\b"
    r"|\b\d[\d,.]{0,12} ?k? ?(?:tok(?:en)?s?|req(?:uest)?s?) ?(?:/|per|a) ?s(?:ec(?:ond)?)?\b"
    r"|\b\d[\d,.]{0,12} ?k? ?(?:tps|rps|qps)\b|\b(?:tokens|requests) (?:per|a) second ?(?::|=|is|are|of)? ?\d"
    r"|\b(?:low|production|guaranteed)[- ](?:latency|throughput)\b|\b(?:throughput|latency) of \d",
    STABLE: r"\bstable (?:service|api|endpoint|server|url)\b|\balways[- ](?:on|available|up)\b|\b24/7\b"
    r"|\b99\.\d{1,4} ?%|\bhigh(?:ly)? availab",
    PUBLIC: r"\b(?:public|production|prod|internet|enterprise)[- ](?:ready|grade)\b|\bbattle[- ]tested\b"
    r"|\bready (?:for (?:the )?(?:public|production|internet)|to go live|to be deployed)\b"
    r"|\b(?:can|is) (?:safely )?be(?:ing)? deployed (?:in|to) production\b|\bsafe for (?:real )?(?:customers|users)\b"
    r"|\b(?:open|exposed) to (?:the )?(?:public|internet)\b",
    BIG_QUALITY: r"\b(\d{1,4}(?:\.\d{1,3})?) ?B\b[^.;\n]{0,40}\b(?:quality|level|grade|class)\b"
    r"|\b(?:quality|level|as good as|matches|on par with|equals?|rivals?|(?:performs?|answers?|behaves?) like)\b"
    rf"[^.;\n]{{0,40}}?(?:\b(\d{{1,4}}(?:\.\d{{1,3}})?)(?: ?B\b|[ -]billion)|{_RIVALS})",
    NO_BASELINE: r"\b(?:is|was|were|been|we|i) (?:fine[- ]?tuned?|tuned)\b",
}
_COUNT = r"(?<![\d一二三四五六七八九十百千万億,.])[\d一二三四五六七八九十百][\d一二三四五六七八九十百千万億,.]{0,12} ?"
_CLAIMS_JA = {
    GPU_ON_CPU: "GPU ?(?:上)?で(?:の)?(?:学習|訓練)",
    SPEED_ELSEWHERE: f"毎秒 ?{_COUNT}(?:トークン|リクエスト|件)|{_COUNT}(?:トークン|リクエスト) ?/ ?秒"
    f"|同時に? ?{_COUNT}(?:人|ユーザー|接続)|{_COUNT}(?:人|ユーザー)(?:の|が|を)?同時",
    STABLE: "安定した? ?(?:サービス|稼働|運用|API)|常時稼働|24時間|高可用",
    PUBLIC: "本番(?:環境)?(?:対応|[での]?(?:利用|運用|公開|使用)が?(?:可能|でき))|公開が?(?:可能|でき|準備完了)"
    "|本番(?:環境|運用)?に耐え|実運用(?:が?可能|に耐え)",
    BIG_QUALITY: r"(?<![\d.])(\d{1,4}(?:\.\d{1,3})?) ?B ?(?:の|モデル){0,2}(?:並み|相当|級|クラス|に匹敵|と同等)",
    NO_BASELINE: "(?:ファインチューニング|微調整)(?:済み|した|しました|を行っ)",
}
_CLAIMS_ELSEWHERE = {
    GPU_ON_CPU: rf"\bauf (?:einer |der )?(?:[\w-]{{1,20}} )?{_DEVICE} trainiert|\bGPU-Training"
    rf"|\bentra[iî]n[ée]e? sur (?:un |une |le )?(?:[\w-]{{1,20}} )?{_DEVICE}\b"
    rf"|\b(?:entrenad|treinad|addestrat)[oa] (?:en|em|na|numa|su) (?:una? |uma |la )?(?:[\w-]{{1,20}} )?{_DEVICE}\b",
    SPEED_ELSEWHERE: r"\b\d[\d,. ]{0,12} ?(?:Tokens?|Anfragen|jetons|requêtes|peticiones|solicitudes|richieste)"
    r" (?:pro|je|par|por|al) (?:Sekunde|seconde|segundo|secondo)\b|每秒 ?\d[\d,.]{0,12} ?(?:个)? ?(?:token|词元|请求)",
    PUBLIC: r"\bproduktions(?:reif|bereit|fertig|tauglich)|\b(?:bereit|reif) für (?:den |die )?(?:Produkti|Öffentlich)"
    r"|\bprête? (?:pour|à) (?:la |le )?(?:production|public)|\b(?:list|apt|pront)[oa] (?:para|per) (?:la |el |a |il )?"
    r"(?:producción|produção|produzione|público|pubblico)|生产环境(?:可用|就绪)|用于生产|生产就绪",
}
_ALL = tuple(
    {name: re.compile(pattern, re.I) for name, pattern in patterns.items()}
    for patterns in (_CLAIMS, _CLAIMS_JA, _CLAIMS_ELSEWHERE)
)


@lru_cache(MOST_SENTENCES)
def claims(overclaim: str, sentence: str) -> tuple[re.Match, ...]:
    """Each place of `sentence` that makes the claim, where the sentence does not take it back.

    The packs of a class say most of their sentences alike, so what was found is kept.
    """
    return tuple(_found(overclaim, sentence))


def _found(overclaim: str, sentence: str) -> Iterator[re.Match]:
    said = _IDIOMS.sub(" ", sentence)
    english, japanese, elsewhere = (patterns.get(overclaim) for patterns in _ALL)
    if not denied_by(said):
        yield from (match for match in english.finditer(said) if not _NO.search(said[: match.start()]))
        if japanese and not said.isascii():
            yield from japanese.finditer(said)
    if elsewhere and (match := elsewhere.search(said)) and not _DENIED_ELSEWHERE.search(said):
        yield match


def denied_by(sentence: str) -> bool:
    return bool(_DENIED.search(sentence) or _DENIED_JA.search(sentence))


def denied(line: str) -> bool:
    """Whether a line such as `It cannot prove:` says no to what follows."""
    return bool(_DENIED.search(line) or _NO.search(line))


def plain(text: str) -> str:
    """The text as it is read: entities and tags of HTML resolved, full-width letters and look-alikes as plain ones, and
    without characters that are not seen."""
    text = _TAG.sub("", html.unescape(text) if "&" in text else text)
    if text.isascii():
        return text
    return _WORD.sub(lambda word: word[0].translate(_LOOKALIKES), _UNSEEN.sub("", unicodedata.normalize("NFKC", text)))
