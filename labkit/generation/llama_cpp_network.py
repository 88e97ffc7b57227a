"""The llama.cpp backend: a GGUF file, run on the CPU through llama-cpp-python's low-level functions.

One context of llama.cpp holds the keys and values of all rows in one buffer (its unified cache), and one call of
llama_decode gives every row its next token. A row is a sequence with a number; the number of a row that left is used
again, and a beginning that prompts share is held once, by as many sequences as have it.
"""

import ctypes
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import psutil
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from labkit.errors import LabError
from labkit.export.llama_library import last_error, llama_library, metadata
from labkit.generation.gguf_tokenizer import load_tokenizer
from labkit.generation.network import threads_for
from labkit.generation.prefixes import SHORTEST_PREFIX, common

ROWS = 8
MOST_ROWS = 128
MOST_MEMORY = 4 * 2**30  # bytes for the keys and values of all rows
KEPT_PREFIXES = 4  # each is a sequence whose memory is taken beforehand
LONGEST_PASS = 512  # tokens; a longer prompt is read in several passes


def load_llama_cpp(path: Path, rows: int = ROWS) -> tuple["LlamaCppNetwork", PreTrainedTokenizerBase]:
    """The GGUF file's network, for at most `rows` rows at once, and its tokenizer. Raises LabError (see both)."""
    network = LlamaCppNetwork(path, rows)
    return network, load_tokenizer(path, network.model)


class LlamaCppNetwork:
    """A Network around a GGUF file. `dtype` is the file's quantization, for example Q4_K_M.

    The memory for keys and values is taken at once: each of `rows` rows may grow to the whole context. Where that is
    more than MOST_MEMORY, or a quarter of what is free, the context is shortened. `device_reason` says what it takes.
    Raises LabError for a file that is not there or no GGUF, a model that does not fit, or no model of text.
    """

    backend, device = "llama.cpp", "cpu"

    def __init__(self, path: Path, rows: int = ROWS):
        if not 1 <= rows <= MOST_ROWS:
            raise LabError(f"llama.cpp decodes 1 to {MOST_ROWS} rows together, not {rows}", "ask for fewer at once")
        llama, self.model = llama_library(), _load(path)
        vocabulary = llama.llama_model_get_vocab(self.model)
        self.vocabulary = llama.llama_vocab_n_tokens(vocabulary)
        self.end_ids = frozenset(n for n in range(self.vocabulary) if llama.llama_vocab_is_eog(vocabulary, n))
        self.parameter_count = llama.llama_model_n_params(self.model)
        self.dtype = _file_type(self.model)
        token_bytes = _bytes_for_a_token(self.model)
        room = min(MOST_MEMORY, psutil.virtual_memory().available // 4) // (rows * token_bytes)
        self.context_length = max(1, min(llama.llama_model_n_ctx_train(self.model), room))
        taken, threads = rows * self.context_length * token_bytes / 1e6, threads_for(self.parameter_count)
        self.device_reason = (
            f"llama.cpp runs on the CPU, on {threads} thread{'s' if threads > 1 else ''}; "
            f"{rows} rows of {self.context_length} tokens take {taken:.0f} MB"
        )
        self._sequences = Sequences(self.model, rows, rows * self.context_length, threads)

    def rows(self) -> "LlamaCppRows":
        return LlamaCppRows(self._sequences)


class LlamaCppRows:
    """The rows under way: which sequence each is, and how many tokens it has."""

    def __init__(self, sequences: "Sequences"):
        self._sequences = sequences
        self._numbers: list[int] = []
        self._lengths: list[int] = []
        weakref.finalize(self, sequences.abandon, self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def join(self, ids: Sequence[int]) -> Tensor:
        """Add a row for the prompt `ids` as the last one, and return its next token's logits, shape (vocab,).

        Raises LabError where the network was loaded for fewer rows.
        """
        number, logits = self._sequences.begin(ids)
        self._numbers.append(number)
        self._lengths.append(len(ids))
        return logits

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Give each row its token, in order, and return the logits of what comes next, shape (rows, vocab)."""
        logits = self._sequences.go_on(self._numbers, tokens, self._lengths)
        self._lengths = [length + 1 for length in self._lengths]
        return logits

    def leave(self, row: int) -> None:
        """Forget row number `row`; the rows after it move up."""
        self._sequences.end(self._numbers[row])
        del self._numbers[row], self._lengths[row]


class Sequences:
    """The sequences of one context of llama.cpp: those of the rows, and those that keep the last prompts' beginnings.

    All rows of a network are in one context, whichever thread asks. `begin` and `end` belong together; rows that are
    dropped without an end are cleared away when the next one begins.
    """

    def __init__(self, model, rows: int, tokens: int, threads: int):
        """Room for `rows` sequences which together have at most `tokens` tokens; `threads` of llama.cpp's own, which
        spin while they wait for each other, compute a pass."""
        self._llama, self._lock = llama_library(), threading.Lock()
        self._vocabulary = self._llama.llama_vocab_n_tokens(self._llama.llama_model_get_vocab(model))
        self._context = _context(model, rows + KEPT_PREFIXES, tokens, threads)
        weakref.finalize(self, _free, self._context, model).atexit = False  # a thread may still be decoding then
        self._memory = self._llama.llama_get_memory(self._context)
        self._pass = Pass(self._llama)
        self._rows, self._free = rows, list(range(rows + KEPT_PREFIXES))
        self._abandoned: deque[int] = deque()
        self._under_way = 0
        self._kept: list[tuple[list[int], int]] = []  # prompts and their sequences, newest first
        self._shares = not (self._llama.llama_model_is_recurrent(model) or self._llama.llama_model_is_hybrid(model))

    def begin(self, ids: Sequence[int]) -> tuple[int, Tensor]:
        """A new sequence for the prompt `ids`: its number, and the next token's logits, shape (vocab,)."""
        with self._lock:
            self._clear_abandoned()
            if self._under_way == self._rows:
                what = f"llama.cpp was loaded for {self._rows} rows at once, and all are under way"
                raise LabError(what, "ask for fewer answers at once")
            number = self._free.pop()
            self._under_way += 1
            try:
                logits = self._read(ids, number)
                self._keep(ids, number)
            except BaseException:
                self._clear(number)
                raise
            return number, logits

    def go_on(self, numbers: Sequence[int], tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Give each sequence its token: the logits of what comes next, shape (sequences, vocab)."""
        with self._lock:
            self._pass.fill(numbers, tokens, positions)
            self._decode()
            return self._logits(len(numbers))

    def end(self, number: int) -> None:
        with self._lock:
            self._clear(number)

    def abandon(self, numbers: Sequence[int]) -> None:
        """The sequences `numbers` will not go on. Takes no lock: called when Python drops the rows, at any moment."""
        self._abandoned.extend(numbers)

    def _clear_abandoned(self) -> None:
        while self._abandoned:
            self._clear(self._abandoned.popleft())

    def _clear(self, number: int) -> None:
        self._under_way -= 1
        self._forget(number)

    def _forget(self, number: int) -> None:
        self._llama.llama_memory_seq_rm(self._memory, number, -1, -1)
        self._free.append(number)

    def _read(self, ids: Sequence[int], number: int) -> Tensor:
        """Give `number` the prompt, as much of it as possible from memory: the last token's logits, shape (vocab,)."""
        for start in range(self._recall(ids, number), len(ids), LONGEST_PASS):
            part = ids[start : start + LONGEST_PASS]
            self._pass.fill([number] * len(part), part, range(start, start + len(part)), last_only=True)
            self._decode()
        return self._logits(1)[0]

    def _recall(self, ids: Sequence[int], number: int) -> int:
        """Give `number` the longest beginning of `ids` that is kept, all of it but the last token: its length."""
        shared = [(common(ids[:-1], kept), source) for kept, source in self._kept]
        length, source = max(shared, default=(0, 0))
        if length < SHORTEST_PREFIX:
            return 0
        self._llama.llama_memory_seq_cp(self._memory, source, number, 0, length)
        return length

    def _keep(self, ids: Sequence[int], number: int) -> None:
        """Keep the newest prompt; a beginning that it holds whole is dropped."""
        if not self._shares or len(ids) < SHORTEST_PREFIX:
            return
        stay = [pair for pair in self._kept if common(ids, pair[0]) < len(pair[0])][: KEPT_PREFIXES - 1]
        for pair in self._kept:
            if pair not in stay:
                self._forget(pair[1])
        copy = self._free.pop()
        self._llama.llama_memory_seq_cp(self._memory, number, copy, 0, len(ids))
        self._kept = [(list(ids), copy), *stay]

    def _decode(self) -> None:
        """One pass. Beginnings that are kept give way to rows: without them there is room for every row's context."""
        failed = self._llama.llama_decode(self._context, self._pass.batch)
        if failed == 1 and self._kept:
            for _, number in self._kept:
                self._forget(number)
            self._kept = []
            failed = self._llama.llama_decode(self._context, self._pass.batch)
        if failed:
            raise LabError(f"llama.cpp could not go on: {last_error()}", "ask for fewer or shorter answers at once")

    def _logits(self, rows: int) -> Tensor:
        """A copy: llama.cpp writes the next pass's logits over these."""
        logits = self._llama.llama_get_logits(self._context)
        return torch.from_numpy(np.ctypeslib.as_array(logits, (rows, self._vocabulary)).copy())


class Pass:
    """What llama_decode is given: tokens, each with its sequence, its position, and whether its logits are wanted."""

    def __init__(self, llama):
        self._tokens = np.zeros(LONGEST_PASS, np.int32)
        self._positions = np.zeros(LONGEST_PASS, np.int32)
        self._sequences = np.zeros(LONGEST_PASS, np.int32)
        self._wanted = np.zeros(LONGEST_PASS, np.int8)
        self._counts = np.ones(LONGEST_PASS, np.int32)  # a token belongs to one sequence
        step = self._sequences.itemsize
        self._pointers = self._sequences.ctypes.data + step * np.arange(LONGEST_PASS, dtype=np.uintp)
        whole = ctypes.POINTER(ctypes.c_int32)
        self.batch = llama.llama_batch(
            token=self._tokens.ctypes.data_as(whole),
            pos=self._positions.ctypes.data_as(whole),
            n_seq_id=self._counts.ctypes.data_as(whole),
            seq_id=self._pointers.ctypes.data_as(ctypes.POINTER(whole)),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(
        self, numbers: Sequence[int], tokens: Sequence[int], positions: Sequence[int], last_only: bool = False
    ) -> None:
        size = len(tokens)
        self.batch.n_tokens = size
        self._tokens[:size], self._positions[:size], self._sequences[:size] = tokens, positions, numbers
        self._wanted[:size] = not last_only
        self._wanted[size - 1] = True


def _load(path: Path):
    """llama.cpp's model, memory-mapped."""
    llama = llama_library()
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise LabError(f"{path.name} cannot be read: {error.strerror}", "check the spelling of the path") from error
    if magic != b"GGUF":
        what = f"{path.name} is not a GGUF file: it does not begin with the letters GGUF"
        raise LabError(what, "give a .gguf file, or use --backend transformers for a folder of safetensors")
    settings = llama.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(os.fsencode(path), settings)
    if not model:
        what = f"llama.cpp could not load {path.name}: {last_error()}"
        raise LabError(what, "check that the file is complete and the memory holds it, or choose a smaller one")
    if llama.llama_model_has_encoder(model) or not llama.llama_model_has_decoder(model):
        llama.llama_model_free(model)
        raise LabError(f"{path.name} is no model that continues text", "choose a causal language model")
    return model


def _context(model, sequences: int, tokens: int, threads: int):
    llama = llama_library()
    settings = llama.llama_context_default_params()
    settings.n_ctx, settings.n_seq_max, settings.kv_unified = tokens, sequences, True
    settings.n_batch = settings.n_ubatch = LONGEST_PASS
    settings.n_outputs_max = sequences
    settings.n_threads = settings.n_threads_batch = threads
    context = llama.llama_init_from_model(model, settings)
    if not context:
        llama.llama_model_free(model)
        what = f"llama.cpp found no memory for the context: {last_error()}"
        raise LabError(what, "ask for fewer answers at once, or choose a smaller model")
    return context


def _free(context, model) -> None:
    llama_library().llama_free(context)
    llama_library().llama_model_free(model)


def _bytes_for_a_token(model) -> int:
    """Keys and values of one token in all layers, as 16-bit numbers."""
    llama = llama_library()
    architecture, heads = metadata(model, "general.architecture"), llama.llama_model_n_head(model)
    width = llama.llama_model_n_embd(model) // max(heads, 1)
    keys, values = (metadata(model, f"{architecture}.attention.{half}_length") for half in ("key", "value"))
    both = int(keys or width) + int(values or width)
    return 2 * both * max(llama.llama_model_n_head_kv(model), 1) * llama.llama_model_n_layer(model)


def _file_type(model) -> str:
    number = metadata(model, "general.file_type")
    try:
        return gguf.LlamaFileType(int(number)).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return "unknown"
