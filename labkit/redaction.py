"""Secrets, home folders and host names are taken out of a text before it becomes part of a pack.

A pack is made to be handed in, so whatever is in it is public. The patterns for tokens are those of detect-secrets
where it has one; `OWN` holds those that it lacks. Only formats that say of themselves what they are (a prefix, a
header) are looked for: entropy alone raises false alarms on hashes and model output.
"""

import json
import platform
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import PurePosixPath

import regex

from labkit.errors import LabError

TEXT_SUFFIXES = {".txt", ".md", ".json", ".jsonl", ".csv", ".ipynb", ".log", ".html", ".yaml", ".yml", ".toml", ".svg"}
SECONDS = 5.0  # that one pattern may take on one text: a hostile one can be made to take years
HOME_PATH, HOST_NAME = "home path", "host name"

# Detectors of detect-secrets 1.5.0 whose formats carry a mark of their own. Left out: those that guess by entropy, by
# a keyword nearby or by a short prefix (artifactory, cloudant, ibm_*, softlayer, keyword, high_entropy_strings).
DETECTORS = {
    "aws": "AWSKeyDetector",
    "azure_storage_key": "AzureStorageKeyDetector",
    "discord": "DiscordBotTokenDetector",
    "github_token": "GitHubTokenDetector",
    "gitlab_token": "GitLabTokenDetector",
    "jwt": "JwtTokenDetector",
    "mailchimp": "MailchimpDetector",
    "npm": "NpmDetector",
    "openai": "OpenAIDetector",
    "pypi_token": "PypiTokenDetector",
    "sendgrid": "SendGridDetector",
    "slack": "SlackDetector",
    "square_oauth": "SquareOAuthDetector",
    "stripe": "StripeDetector",
    "telegram_token": "TelegramBotTokenDetector",
    "twilio": "TwilioKeyDetector",
}
# Formats as in gitleaks' rules, https://github.com/gitleaks/gitleaks/blob/master/config/gitleaks.toml (2026-11-27), and
# for URL credentials RFC 3986, section 3.2.1. A group named `secret` is what is taken out, else the whole match.
OWN = {
    "Hugging Face token": r"\b(?:hf_[A-Za-z0-9]{30,}|api_org_[A-Za-z]{34})\b",
    "OpenAI-style key": r"\bsk-(?=[\w-]{0,200}\d)(?=[\w-]{0,200}[A-Z])[\w-]{32,200}",
    "Groq key": r"\bgsk_[A-Za-z0-9]{40,}\b",
    "Replicate token": r"\br8_[A-Za-z0-9]{37}\b",
    "NVIDIA key": r"\bnvapi-[\w-]{60,}",
    "Google API key": r"\bAIza[\w-]{35}(?![\w-])",
    "GitHub token": r"\bgithub_pat_\w{50,}",
    "private key": r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----[^\"-]*"
    r"(?:-----END [A-Z ]{0,40}KEY(?: BLOCK)?-----)?",
    "URL credentials": r"://(?P<secret>[^\s:/?#\[\]@'\"<>{}]{0,100}:[^\s/?#\[\]@'\"<>{}]{1,200})@",
    "bearer token": r"\b[Bb]earer\s{1,4}(?P<secret>(?=[\w.~+/-]{0,200}\d)[\w.~+/-]{20,}=*)",
    HOME_PATH: r"(?:(?<=file://)|(?<![\w./~<-]))(?:/(?:home|Users)/[^\s/\\\"'<>:,;)(|`$*{}]+|/root(?=/)"
    r"|[A-Za-z]:(?:\\{1,2}|/)Users(?:\\{1,2}|/)[^\s/\\\"'<>:,;)(|`$*{}]+)",
    HOST_NAME: r"(?<![\w.@/-])(?=[\w.-]{0,80}[\d-])[A-Za-z0-9][\w-]{0,62}(?:\.[\w-]{1,63}){0,6}"
    r"\.(?:internal|local|lan|corp|localdomain|home\.arpa)\b(?![\w(-])",
    "shell prompt": r"\b(?P<secret>[a-z_][\w-]{0,31}@[\w-][\w.-]{0,62}):(?=[~/]\S{0,200}[$#] )",
}
_INSTEAD = {HOME_PATH: "~"}  # whatever else is found becomes "[redacted: its kind]"


@dataclass(frozen=True)
class Redacted:
    """A text and what was taken out of it: kind to count, empty where nothing was."""

    content: bytes
    found: dict[str, int]


def redact(name: str, content: bytes) -> Redacted:
    """`content` of a file called `name` without secrets, home folders and host names; no other byte is changed.

    Files that are not text by their suffix, or not UTF-8, stay as they are. Raises LabError for a text that cannot be
    searched in SECONDS.
    """
    if PurePosixPath(name).suffix.lower() not in TEXT_SUFFIXES:
        return Redacted(content, {})
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return Redacted(content, {})
    found: Counter[str] = Counter()
    try:
        clean = _notebook(text, found) if name.endswith(".ipynb") else redact_text(text, found)
    except TimeoutError:
        raise LabError(
            f"{name} could not be searched for secrets: one line of it keeps the search busy without end",
            "write the file again with shorter lines",
        ) from None
    return Redacted(clean.encode("utf-8") if found else content, dict(sorted(found.items())))


def redact_text(text: str, found: Counter[str]) -> str:
    """`text` with each match replaced; `found` counts them by kind."""
    for kind, pattern in patterns():
        text = pattern.sub(partial(_replace, kind, found), text, timeout=SECONDS)
    return text


def _replace(kind: str, found: Counter[str], match: regex.Match) -> str:
    found[kind] += 1
    group = "secret" if "secret" in match.re.groupindex else 0
    start, end = match.start(group) - match.start(), match.end(group) - match.start()
    return f"{match[0][:start]}{_INSTEAD.get(kind, f'[redacted: {kind}]')}{match[0][end:]}"


@cache
def patterns() -> tuple[tuple[str, regex.Pattern], ...]:
    """(kind, pattern) of everything that is looked for, this machine's own name too where it is no plain word."""
    known = [(kind, regex.compile(pattern)) for kind, pattern in OWN.items()]
    for module, name in DETECTORS.items():
        detector = getattr(import_module(f"detect_secrets.plugins.{module}"), name)
        known += [(detector.secret_type, _adopted(pattern)) for pattern in detector.denylist]
    node = platform.node()
    if len(node) > 4 and any(not c.isalpha() for c in node):
        known.append((HOST_NAME, regex.compile(rf"(?<![\w.-]){regex.escape(node)}(?![\w-])")))
    return tuple(known)


def _adopted(pattern) -> regex.Pattern:
    """A pattern of detect-secrets as one of ours. Where a secret stands between quotes, the quotes must stay: without
    them JSON is no JSON any more."""
    text, quotes = pattern.pattern, r"""[\'\"]("""
    return regex.compile(text.replace(quotes, quotes + "?P<secret>") if quotes in text else text, pattern.flags)


def _notebook(text: str, found: Counter[str]) -> str:
    """A notebook as text, every string in it searched; the lines of a cell or an output are searched together."""
    try:
        clean = _walk(json.loads(text), lambda string: redact_text(string, found))
    except (ValueError, RecursionError):
        found.clear()
        return redact_text(text, found)
    return json.dumps(clean, indent=1, ensure_ascii=False) + "\n" if found else text


def _walk(value: object, change: Callable[[str], str]) -> object:
    """`value` with every string changed, pictures (base64) as they are."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        whole = "".join(value)
        clean = change(whole)
        return value if clean == whole else clean.splitlines(keepends=True)
    if isinstance(value, list):
        return [_walk(item, change) for item in value]
    if isinstance(value, dict):
        return {key: item if key.startswith("image/") else _walk(item, change) for key, item in value.items()}
    return value
