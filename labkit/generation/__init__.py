"""Answers from any causal language model: loading, prompts, sampling, constraints, and decoding alone or together."""

from labkit.decoding import Sampling
from labkit.generation.answer import Answer, Completion, TokenScore, first_stop, held_back
from labkit.generation.chat_model import EMBEDDED, ChatModel, Message, load_chat_model, write_first_run
from labkit.generation.constraint import Constraint, json_grammar
from labkit.generation.network import Images
from labkit.generation.sampling import COLDEST, choose_token
from labkit.generation.together import Chat, chat_together

__all__ = [
    "COLDEST",
    "EMBEDDED",
    "Answer",
    "Chat",
    "ChatModel",
    "Completion",
    "Constraint",
    "Images",
    "Message",
    "Sampling",
    "TokenScore",
    "chat_together",
    "choose_token",
    "first_stop",
    "held_back",
    "json_grammar",
    "load_chat_model",
    "write_first_run",
]
