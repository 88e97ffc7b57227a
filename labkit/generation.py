"""Load any causal chat model, embedded or from a hub, and chat with it.

One class serves the command line, the API and the evaluation, so that an answer is the same wherever it is asked for.
The decoding loop is our own twenty lines because a server must stop it between two tokens when its client goes away;
a test holds its greedy answers equal to those of transformers' `generate`.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from labkit.environment import choose_device, peak_memory_mib
from labkit.errors import LabError
from labkit.evidence import Pack, sha256_of
from labkit.layout import MODELS

EMBEDDED = "mini-instruct"
COLDEST = 1e-3  # below this temperature the division overflows long before a second token has a chance

# For tokenizers without a chat template: roles as plain headings, the answer begun for the model.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

Message = dict[str, str]


@dataclass(frozen=True)
class Sampling:
    """How to decode. temperature 0 is greedy and ignores `top_p` and `seed`; `stop` texts are cut from the answer."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """One answer. Token counts are the tokenizer's own; times are seconds of wall clock.

    `finish_reason` is "stop" (end token or stop text) or "length" (max_tokens, or the context, is used up).
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    seconds: float
    first_token_seconds: float


class ChatModel:
    """A tokenizer and a causal model on one device. Made by `load_chat_model`.

    `name` is the hub id or the model folder's name (never a path); `revision` is the hub commit, or the first 12 hex
    digits of the sha256 of the local weights, so that two runs can be told apart.
    """

    def __init__(self, name: str, revision: str, model, tokenizer, device_reason: str):
        self.name, self.revision = name, revision
        self.model, self.tokenizer = model, tokenizer
        self.device, self.device_reason = model.device.type, device_reason
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.context_length = int(getattr(model.config, "max_position_embeddings", 2048))
        self.parameter_count = sum(parameter.numel() for parameter in model.parameters())
        end = model.generation_config.eos_token_id
        end = tokenizer.eos_token_id if end is None else end
        self._end_ids = {end} if isinstance(end, int) else set(end or ())

    def render(self, messages: Sequence[Message]) -> torch.Tensor:
        """The prompt's token ids, shape (1, tokens), through the tokenizer's chat template or the plain one."""
        template = None if self.tokenizer.chat_template else PLAIN_TEMPLATE
        text = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, chat_template=template
        )
        ids = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        return ids.to(self.model.device)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return self.render(messages).shape[1]

    def chat(self, messages: Sequence[Message], sampling: Sampling | None = None) -> Completion:
        """The whole answer to `messages`. Raises LabError when the prompt leaves no room in the context."""
        *_, completion = self.stream(messages, sampling)
        return completion

    def stream(self, messages: Sequence[Message], sampling: Sampling | None = None) -> Iterator[str | Completion]:
        """Pieces of the answer as they are made, then the Completion as the last item.

        Closing the iterator stops the model. A tail that may still become a stop text, or that is half a UTF-8
        character, is held back, so a piece once given is never taken back.
        """
        sampling = sampling or Sampling()
        prompt = self.render(messages)
        room = self.context_length - prompt.shape[1]
        if room < 1:
            raise LabError(
                f"the prompt has {prompt.shape[1]} tokens and the model's context holds {self.context_length}",
                "shorten the prompt, or choose a model with a longer context",
            )
        started, first = time.perf_counter(), 0.0
        made: list[int] = []
        text, sent, reason = "", 0, "length"
        for token in self._tokens(prompt, sampling, min(room, sampling.max_tokens)):
            first = first or time.perf_counter() - started
            if token in self._end_ids:
                reason = "stop"
                break
            made.append(token)
            text = self.tokenizer.decode(made, skip_special_tokens=True)
            cut = first_stop(text, sampling.stop)
            if cut is not None:
                text, reason = text[:cut], "stop"
                break
            ready = max(sent, len(text) - held_back(text, sampling.stop))
            yield text[sent:ready]  # empty while text is held back, so that a caller can stop after any token
            sent = ready
        if len(text) > sent:
            yield text[sent:]
        seconds = time.perf_counter() - started
        yield Completion(text, prompt.shape[1], len(made), reason, seconds, first or seconds)

    @torch.no_grad()
    def _tokens(self, ids: torch.Tensor, sampling: Sampling, limit: int) -> Iterator[int]:
        generator = torch.Generator("cpu").manual_seed(sampling.seed)
        cache = None
        for _ in range(limit):
            out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            token = choose_token(out.logits[0, -1].float().cpu(), sampling, generator)
            yield token
            ids = torch.tensor([[token]], device=self.model.device)


def choose_token(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token id from `logits`, shape (vocab,): greedy below COLDEST, else nucleus sampling.

    Nucleus: the smallest set of tokens whose probability reaches `top_p` (Holtzman et al. 2020, arXiv 1904.09751).
    """
    if sampling.temperature < COLDEST:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    ordered, index = probabilities.sort(descending=True)
    outside = ordered.cumsum(0) - ordered >= sampling.top_p
    outside[0] = False  # the likeliest token stays even at top_p 0
    pick = torch.multinomial(ordered.masked_fill(outside, 0.0), 1, generator=generator)
    return int(index[pick])


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the earliest stop text begins in `text`, or None."""
    found = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return min(found, default=None)


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may still change: half a character, or the beginning of a stop text."""
    broken = len(text) - len(text.rstrip("\ufffd"))
    partial = (n for stop in stops for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
    return max(broken, max(partial, default=0))


def write_first_run(pack: Pack, model: ChatModel, prompt: str, answer: Completion, command: str) -> None:
    """first_run.md: the exact command, prompt and output, what they cost, and what they were made on."""
    facts = {
        "Command": f"`{command}`",
        "Prompt": one_line(prompt),
        "Output": one_line(answer.text) or "(empty)",
        "Latency": f"{answer.seconds:.2f} s",
        "Peak memory": f"{peak_memory_mib():.0f} MiB",
        "Tokens": f"{answer.prompt_tokens} in, {answer.completion_tokens} out, ended by {answer.finish_reason}",
        "Model": model.name,
        "Revision": model.revision,
        "Device": model.device,
        "Device reason": model.device_reason,
        "Number format": model.dtype,
        "Route": pack.route,
    }
    lines = [f"- {key}: {value}" for key, value in facts.items()]
    pack.write_text("first_run.md", "\n".join(["# First run", "", *lines]) + "\n", "13.2")


def one_line(text: str) -> str:
    """`text` on one line: a line break becomes the two characters \\n, so that the original can be read back."""
    return text.replace("\n", "\\n")


def load_chat_model(model: str = EMBEDDED, device: str = "auto", dtype: str = "auto") -> ChatModel:
    """Load `model`: the embedded model's name, a folder with a transformers checkpoint, or a hub id.

    `device` is auto, cpu, cuda or mps. `dtype` is a torch type's name; "auto" is float32 on the CPU, where 16-bit
    arithmetic is rarely faster, and the checkpoint's own type elsewhere. No code from a hub is ever run.
    Raises LabError for an absent device, a path that is no model, or a hub that cannot be reached.
    """
    chosen = choose_device(device)
    folder = _local_folder(model)
    transformers_logging.disable_progress_bar()  # a bar for loading 9 MB is only noise in a log
    if dtype == "auto" and chosen.name == "cpu":
        dtype = "float32"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder or model, trust_remote_code=False)
        network = AutoModelForCausalLM.from_pretrained(folder or model, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LabError(
            f"the model {folder.name if folder else model} could not be loaded: {first_line}",
            "give a folder that holds config.json, tokenizer and weights, or a hub id and a network",
        ) from error
    network = network.to(chosen.name).eval()
    revision = _local_revision(folder) if folder else (getattr(network.config, "_commit_hash", None) or "unknown")
    return ChatModel(folder.name if folder else model, revision, network, tokenizer, chosen.reason)


def _local_folder(model: str) -> Path | None:
    """The folder that `model` means, or None for a hub id. A path that does not exist is an error, never a hub id."""
    if model == EMBEDDED:
        return MODELS / EMBEDDED
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise LabError(
            f"there is no model folder called {path.name}",
            f"check the spelling of the path, or leave --model out to use the embedded model {EMBEDDED}",
        )
    return None


def _local_revision(folder: Path) -> str:
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return sha256_of(weights[0])[:12] if weights else "unknown"
