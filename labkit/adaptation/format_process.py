"""The process that measures one number format: `measure_formats` starts it, gives it a job as JSON, and waits.

Every backend is asked through its rows, which give the logits of each token, so that a format is scored alike whatever
runs it. float32 comes first and leaves the tokens and its log-probabilities for the others in the job's folder.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from labkit.adaptation.quantization import NEW_TOKENS, REFERENCE
from labkit.environment import peak_memory_mib
from labkit.errors import LabError
from labkit.export.checkpoint import weights_size
from labkit.export.onnx import GRAPH, cached_onnx
from labkit.generation import EMBEDDED, ChatModel, load_chat_model
from labkit.layout import MODELS

TOGETHER = 8  # chats that are scored in one batch
MOST_REFERENCE = 2**29  # bytes of log-probabilities on the disk; of a large vocabulary fewer tokens are scored
NUMBER = np.dtype(np.float32)


@dataclass(frozen=True)
class Chat:
    """A held-out chat as token ids: the prompt, and the answer with its end token, which is scored."""

    prompt: list[int]
    answer: list[int]


@dataclass
class Score:
    """What a format thought of the answers' tokens, gathered place by place. `reference` is the file of float32's
    log-probabilities, (tokens, vocabulary) in the order of the chats; float32 writes it."""

    reference: Path
    vocabulary: int
    writes: bool
    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    agreed: list[bool] = field(default_factory=list)

    def __enter__(self) -> "Score":
        self._file = open(self.reference, "wb" if self.writes else "rb")
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def take(self, place: int, target: int, logits: Tensor) -> None:
        """The `logits`, shape (vocab,), before the token `target`, which is number `place` of all."""
        said = logits.float().cpu()[: self.vocabulary].log_softmax(-1)
        self.nll.append(-said[target].item())
        self._file.seek(place * self.vocabulary * NUMBER.itemsize)
        if self.writes:
            said.numpy().tofile(self._file)
        right = said if self.writes else torch.from_numpy(np.fromfile(self._file, NUMBER, self.vocabulary))
        self.kl.append((right.exp() * (right - said)).sum().item())
        self.agreed.append(bool(right.argmax() == said.argmax()))


def measure(job: dict) -> dict:
    """The fields of a FormatRow that are measured. Raises LabError where the format cannot run here."""
    before = psutil.Process().memory_info().rss
    model = _load(job)
    size, size_of = _size(job, model)
    cuda = model.device == "cuda"
    chats = _chats(job, model)
    used, started = time.process_time(), time.perf_counter()
    first, speed = _speed(model, chats[: job["repeats"]])
    cores = (time.process_time() - used) / (time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if cuda else round(peak_memory_mib() * 2**20)
    return {
        "dtype": model.dtype,
        "device": model.device,
        "size_bytes": size,
        "size_of": size_of,
        "peak_bytes": peak,
        "before_bytes": 0 if cuda else before,
        "tokens_per_second": speed,
        "first_token_seconds": first,
        "cores": cores,
        **_scores(job, model, chats),
    }


def write(job: dict) -> dict:
    """Write the model as a GGUF file of the job's type. Raises LabError without llama.cpp or for another model."""
    from labkit.export.llama_library import llama_library

    llama_library()
    from labkit.export.gguf import quantize_gguf, write_gguf

    folder, plain = _checkpoint(job["model"]), Path(job["folder"]) / "f32.gguf"
    if not plain.is_file():
        write_gguf(folder, plain)
    return {"tensors": quantize_gguf(plain, _gguf(job), job["dtype"])}


def _gguf(job: dict) -> Path:
    return Path(job["folder"]) / f"{job['dtype']}.gguf"


def _checkpoint(model: str) -> Path:
    folder = MODELS / EMBEDDED if model == EMBEDDED else Path(model).expanduser()
    if not folder.is_dir():
        raise LabError("only a checkpoint in a local folder is written as GGUF", "download it, and give its folder")
    return folder


def _load(job: dict) -> ChatModel:
    if job["backend"] == "llama.cpp":
        return load_chat_model(str(_gguf(job)), rows=TOGETHER)
    device = "auto" if job["backend"] == "onnx" else job["device"]  # it has but one
    return load_chat_model(job["model"], device, job["dtype"], job["backend"])


def _size(job: dict, model: ChatModel) -> tuple[int, str]:
    """Bytes of the weights, and which: in memory where they are made from another format while they are loaded."""
    if job["backend"] == "transformers":
        from labkit.generation.bits import memory_of_weights

        return memory_of_weights(model.network.model), "in memory"
    if job["backend"] == "llama.cpp":
        return weights_size(_gguf(job)), "file"
    export = cached_onnx(_checkpoint(job["model"]), job["dtype"])
    return sum(file.stat().st_size for file in export.glob(f"{GRAPH}*")), "file"


def _chats(job: dict, model: ChatModel) -> list[Chat]:
    """The tokens that float32's tokenizer makes of the chats, the same for all formats."""
    path = Path(job["folder"]) / "tokens.json"
    if job["format"] != REFERENCE:
        return [Chat(*pair) for pair in json.loads(path.read_text())]
    end = [model.tokenizer.eos_token_id] if model.tokenizer.eos_token_id in model.network.end_ids else []
    room = MOST_REFERENCE // (NUMBER.itemsize * model.network.vocabulary)
    chats: list[Chat] = []
    for prompt, answer in job["chats"]:
        ids, said = model.prompt_ids([{"role": "user", "content": prompt}]), model.text_ids(answer) + end
        fits = len(ids) + max(len(said), NEW_TOKENS) <= model.context_length
        if fits and sum(len(chat.answer) for chat in chats) + len(said) <= room:
            chats.append(Chat(ids, said))
    if not chats:
        raise LabError("no held-out chat fits the model's context", "give shorter ones with --held-out")
    path.write_text(json.dumps([(chat.prompt, chat.answer) for chat in chats]))
    return chats


def _speed(model: ChatModel, chats: Sequence[Chat]) -> tuple[float, float]:
    """Median seconds to the first token, and median tokens per second after it, of one greedy answer at a time.

    The prompts are read backwards: they take as long, and share no beginning that the network would remember.
    """
    firsts, rates = [], []
    for ids in [chats[0].prompt, *(chat.prompt[::-1] for chat in chats)]:
        rows, started = model.network.rows(), time.perf_counter()
        token = int(rows.join(ids).argmax())
        first = time.perf_counter()
        for _ in range(NEW_TOKENS):
            token = int(rows.step([token])[0].argmax())
        firsts.append(first - started)
        rates.append(NEW_TOKENS / (time.perf_counter() - first))
        rows.leave(0)
    return statistics.median(firsts[1:]), statistics.median(rates[1:])  # the first one warms up


def _scores(job: dict, model: ChatModel, chats: Sequence[Chat]) -> dict:
    vocabulary = Path(job["folder"]) / "vocabulary"
    if writes := job["format"] == REFERENCE:
        vocabulary.write_text(str(model.network.vocabulary))
    with Score(Path(job["folder"]) / "reference", int(vocabulary.read_text()), writes) as score:
        place = 0
        for at in range(0, len(chats), TOGETHER):
            place = _score_together(model, chats[at : at + TOGETHER], score, place)
    tokens = len(score.nll)
    return {
        "scored_tokens": tokens,
        "perplexity": float(np.exp(sum(score.nll) / tokens)),
        "kl": max(0.0, sum(score.kl) / tokens),  # rounding can make the mean of nearly equal ones negative
        "top1_agreement": sum(score.agreed) / tokens,
    }


def _score_together(model: ChatModel, chats: Sequence[Chat], score: Score, place: int) -> int:
    """Give each chat's answer to the model token by token, all chats in one batch; the place after the last token."""
    rows = model.network.rows()
    live = []
    for chat in chats:
        score.take(place, chat.answer[0], rows.join(chat.prompt))
        live.append((chat, place))
        place += len(chat.answer)
    given = 0
    while True:
        for row in reversed(range(len(live))):
            if given + 1 == len(live[row][0].answer):
                rows.leave(row)
                del live[row]
        if not live:
            return place
        logits = rows.step([chat.answer[given] for chat, _ in live])
        given += 1
        for (chat, first), said in zip(live, logits, strict=True):
            score.take(first + given, chat.answer[given], said)


def done(job: dict) -> dict:
    """What the job's task says, or under not_run why it could not be done."""
    try:
        return {"measure": measure, "write": write}[job["task"]](job)
    except LabError as error:
        return {"not_run": error.what}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    Path(asked["answer"]).write_text(json.dumps(done(asked)), encoding="utf-8")
