"""The tokenizer of a GGUF file as transformers' class, which prompts, answers and constraints work with."""

import ctypes
import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from labkit.errors import LabError
from labkit.export.gguf import PROBES, WHOLE_WORDS
from labkit.export.llama_library import llama_library, metadata


def load_tokenizer(path: Path, model) -> PreTrainedTokenizerBase:
    """The tokenizer.json beside `path` where there is one, else what transformers makes of the file's own vocabulary.

    `model` is llama.cpp's, which is asked in both cases: a tokenizer.json must spell its tokens as the file does, and
    a tokenizer made from the file must split texts as llama.cpp does. Raises LabError where it does not.
    """
    beside = path.with_name("tokenizer.json").is_file()
    try:
        source = {} if beside else {"gguf_file": path.name}
        tokenizer = AutoTokenizer.from_pretrained(path.resolve().parent, trust_remote_code=False, **source)
    except Exception as error:  # transformers meets a vocabulary that it does not know in many ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = f"transformers cannot read the tokenizer of {path.name}: {reason}"
        raise LabError(what, "put the tokenizer.json of the original model beside the file") from error
    if not beside:
        tokenizer = faithful(tokenizer, model)
    for text in PROBES:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if beside and spelled(model, ids) != tokenizer.decode(ids).encode():
            what = f"the tokenizer.json beside {path.name} belongs to another model"
            raise LabError(what, "put the right one there, or remove it")
        if not beside and ids != tokenised(model, text):
            what = f"transformers splits {text!r} in another way than llama.cpp does for {path.name}"
            raise LabError(what, "put the tokenizer.json of the original model beside the file")
    if not tokenizer.chat_template:
        template = llama_library().llama_model_chat_template(model, None)
        tokenizer.chat_template = template.decode() if template else None
    return tokenizer


def faithful(tokenizer: PreTrainedTokenizerBase, model) -> PreTrainedTokenizerBase:
    """`tokenizer`, made by transformers from a file, without what the file does not say.

    transformers' class for byte-level BPE brings an <|endoftext|> of its own, whose number the network does not know,
    and asks for merges even of words that are tokens.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    size = llama_library().llama_vocab_n_tokens(llama_library().llama_model_get_vocab(model))
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["id"] < size]
    if metadata(model, "tokenizer.ggml.pre") in WHOLE_WORDS:
        parts["model"]["ignore_merges"] = True
    backend = Tokenizer.from_str(json.dumps(parts))
    roles = {role: getattr(tokenizer, role) for role in ("bos_token", "eos_token", "unk_token", "pad_token")}
    known = {role: text for role, text in roles.items() if text and backend.token_to_id(text) is not None}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=tokenizer.chat_template, **known)


def tokenised(model, text: str) -> list[int]:
    """`text` as llama.cpp's own tokenizer splits it, special tokens read as such and none added."""
    llama, raw = llama_library(), text.encode()
    room = (llama.llama_token * (len(raw) + 16))()
    vocabulary = llama.llama_model_get_vocab(model)
    return list(room[: llama.llama_tokenize(vocabulary, raw, len(raw), room, len(room), False, True)])


def spelled(model, ids: list[int]) -> bytes:
    """The bytes that llama.cpp's vocabulary has for `ids`."""
    llama, room = llama_library(), ctypes.create_string_buffer(512)
    vocabulary = llama.llama_model_get_vocab(model)
    return b"".join(room[: max(llama.llama_token_to_piece(vocabulary, n, room, len(room), 0, True), 0)] for n in ids)
