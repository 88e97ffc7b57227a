"""Measure one model in several number formats on this machine, so that a runtime is not chosen by folklore.

Apart from the rest of this package because it loads torch.
"""

import statistics
from collections.abc import Sequence

from labkit.generation import Sampling, load_chat_model

PROMPT = "How long do customers have to ask for a refund?"


def compare_dtypes(
    model: str = "mini-instruct",
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    repeats: int = 3,
    max_tokens: int = 8,
) -> list[dict[str, str]]:
    """One row per dtype: bytes of weights in memory, median seconds of `repeats` greedy answers, tokens per second.

    The first answer warms up and is not counted. Raises LabError when the model cannot be loaded.
    """
    return [_measure(model, dtype, repeats, max_tokens) for dtype in dtypes]


def _measure(model: str, dtype: str, repeats: int, max_tokens: int) -> dict[str, str]:
    chat = load_chat_model(model, dtype=dtype)
    messages, sampling = [{"role": "user", "content": PROMPT}], Sampling(max_tokens=max_tokens)
    chat.chat(messages, Sampling(max_tokens=2))
    answers = [chat.chat(messages, sampling) for _ in range(repeats)]
    seconds = statistics.median(answer.seconds for answer in answers)
    size = sum(p.numel() * p.element_size() for p in chat.network.model.parameters())
    return {
        "dtype": chat.dtype,
        "device": chat.device,
        "weights": f"{size / 1e6:.2f} MB",
        "median latency": f"{seconds:.3f} s",
        "tokens per second": f"{answers[0].completion_tokens / seconds:.0f}" if seconds else "not measurable",
        "answer": answers[0].text,
    }
