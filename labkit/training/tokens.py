"""Tokenizers trained on the text at hand, and texts and chats as token ids."""

from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from labkit.training.data import TokenData

SMALLEST_BPE = 256 + 3  # every byte, and the three special tokens
END_OF_TEXT = "<|endoftext|>"
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
# ChatML, the layout of the Qwen family: each turn between <|im_start|>role and <|im_end|>.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019): any text can be encoded, and frequent strings become one token.

    Digits stay single tokens, because a small model copies a number digit by digit but cannot learn a token for each.
    A space is a token of its own, so that a word has the same tokens after a space as after a quote or a bracket:
    copying a name from a sentence into JSON is then copying, and not translating.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(" ", "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, *CHAT_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_characters(text: str) -> Tokenizer:
    """One token for each character of `text`; a character it never saw becomes the end-of-text token."""
    vocabulary = {END_OF_TEXT: 0} | {character: n for n, character in enumerate(sorted(set(text)), start=1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=END_OF_TEXT))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def encode_chats(tokenizer: Tokenizer, chats: Sequence[Sequence[dict[str, str]]]) -> TokenData:
    """Chats in CHAT_TEMPLATE's layout, one after the other; only the last turn, the assistant's, is scored."""
    prompts, answers = [], []
    for messages in chats:
        turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages[:-1])
        prompts.append(f"{turns}<|im_start|>assistant\n")
        answers.append(f"{messages[-1]['content']}<|im_end|>")
    pieces: list[list[int]] = []
    scored: list[np.ndarray] = []
    for prompt, answer in zip(tokenizer.encode_batch(prompts), tokenizer.encode_batch(answers), strict=True):
        pieces.append(prompt.ids + answer.ids)
        scored.append(np.repeat([False, True], [len(prompt.ids), len(answer.ids)]))
    lengths = np.array([len(piece) for piece in pieces])
    tokens = np.array([token for piece in pieces for token in piece], dtype=np.uint16)
    return TokenData(tokens, np.concatenate(scored), np.cumsum(lengths) - lengths)
