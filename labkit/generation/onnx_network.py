"""The ONNX backend: a graph of onnxruntime-genai's model builder, run by onnxruntime on the CPU.

The graph's GroupQueryAttention takes the length of each row from the attention mask, rotates the positions itself and
writes new keys and values into the memory of the old ones. So rows of unequal length lie beside each other in one
buffer for each layer, padded on the right, and a token costs no copying.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import onnxruntime
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from labkit.errors import LabError
from labkit.export.checkpoint import count_parameters, read_config, weight_files
from labkit.export.onnx import GENAI_CONFIG, GRAPH, cached_onnx
from labkit.export.onnx_folder import GraphFacts, graph_facts, is_onnx_export
from labkit.generation.backends import ONNX_DTYPE
from labkit.generation.network import threads_for
from labkit.generation.prefixes import Layers, Prefixes

INSTEAD = "make the export again, or run its checkpoint with --backend transformers"
SHORTEST_CAPACITY = 128  # tokens; a buffer that is too short is made twice as long
NUMBERS = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}


def load_onnx(source: Path, tokenizer: PreTrainedTokenizerBase, dtype: str, device_reason: str) -> "OnnxNetwork":
    """The network of a folder with an export, or of a checkpoint, which is exported in `dtype` where that was not done
    before. Raises LabError."""
    if is_onnx_export(source):
        facts, ends = graph_facts(source), read_config(source, GENAI_CONFIG).get("model", {}).get("eos_token_id")
        network = OnnxNetwork(source, facts, _ids(ends, tokenizer.eos_token_id), device_reason)
    else:
        dtype = ONNX_DTYPE if dtype == "auto" else dtype
        facts = GraphFacts(sum(map(count_parameters, weight_files(source))), dtype)
        network = OnnxNetwork(cached_onnx(source, dtype), facts, _end_ids(source, tokenizer), device_reason)
    try:
        network.rows().join([0])
    except RuntimeError as error:  # what a kernel does not do is told when it runs
        raise LabError(f"onnxruntime cannot run the graph: {error}", INSTEAD) from error
    return network


class OnnxNetwork:
    """A Network around the folder of an export, which holds a graph and genai_config.json.

    Raises LabError for a graph that asks for more than tokens, mask and remembered keys and values.
    """

    backend, device = "onnx", "cpu"

    def __init__(self, export: Path, facts: GraphFacts, end_ids: frozenset[int], device_reason: str):
        self.dtype, self.device_reason = facts.dtype, device_reason
        self.parameter_count, self.end_ids = facts.parameter_count, end_ids
        model = _model_config(export)
        self.context_length = int(model["context_length"])
        few, every = threads_for(self.parameter_count), torch.get_num_threads()
        self._decoder = self._reader = _session(export / GRAPH, few)
        if few < every:  # a prompt is worth more threads than a token, and a small graph may be loaded twice
            self._reader = _session(export / GRAPH, every)
        self._graph = _graph(self._decoder, model["decoder"])
        self.vocabulary = self._graph.vocabulary
        self._prefixes = Prefixes()

    def rows(self) -> "OnnxRows":
        return OnnxRows(
            self._decoder,
            self._reader,
            self._graph,
            self.context_length,
            self._prefixes,
        )


@dataclass(frozen=True)
class Graph:
    """What the rows must know of a graph: the names, heads and width of its memory, and the numbers in it.

    `every_place` is a graph that gives logits for each token of a prompt, not for the last one alone.
    """

    names: list[tuple[str, str]]
    heads: int
    width: int
    number: torch.dtype
    vocabulary: int
    every_place: bool


def _graph(session, decoder: dict) -> Graph:
    """Raises LabError for a graph that asks for more than tokens, mask and remembered keys and values."""
    names, logits = _memory_names(decoder), session.get_outputs()[0]
    memory = {past for past, _ in names}
    others = {entry.name for entry in session.get_inputs()} - memory
    types = {logits.type, *(entry.type for entry in session.get_inputs() if entry.name in memory)}
    if others != {"input_ids", "attention_mask"} or len(types) != 1 or not types <= NUMBERS.keys():
        what = f"the ONNX graph cannot be decoded in rows: it asks for {', '.join(sorted(others | types))}"
        raise LabError(what, INSTEAD)
    size = (decoder["num_key_value_heads"], decoder["head_size"])
    return Graph(names, *size, NUMBERS[types.pop()], int(logits.shape[-1]), logits.shape[1] != 1)


def _end_ids(checkpoint: Path, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """As transformers has it: of the generation's configuration, else of the model's, else of the tokenizer."""
    found = [read_config(checkpoint, name).get("eos_token_id") for name in ("generation_config.json", "config.json")]
    return _ids(*found, tokenizer.eos_token_id)


def _ids(*found: int | Sequence[int] | None) -> frozenset[int]:
    """The first that is said, as a set."""
    end = next((end for end in found if end is not None), ())
    return frozenset([end] if isinstance(end, int) else end)


def _model_config(export: Path) -> dict:
    model = read_config(export, GENAI_CONFIG).get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    needed = {"num_key_value_heads", "head_size", "num_hidden_layers", "inputs", "outputs"}
    if not isinstance(decoder, dict) or "context_length" not in model or not needed <= decoder.keys():
        what = f"{GENAI_CONFIG} of {export.name} describes no decoder that continues text"
        raise LabError(what, "export the model again with onnxruntime-genai's model builder")
    return model


def _memory_names(decoder: dict) -> list[tuple[str, str]]:
    """The graph's names for keys and values, layer by layer: what it reads, and what it writes."""
    kinds = ("key", "value")
    pairs = [(decoder["inputs"][f"past_{kind}_names"], decoder["outputs"][f"present_{kind}_names"]) for kind in kinds]
    return [(past % layer, present % layer) for layer in range(decoder["num_hidden_layers"]) for past, present in pairs]


def _session(path: Path, threads: int):
    """A session whose threads sleep between two tokens, for a server has others to run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False  # a plan of the memory for each new length of a prompt
    options.log_severity_level = 4  # an error is raised, and not written beside it
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes have no base but this
        reason = str(error).strip().splitlines()[0].rpartition("[ONNXRuntimeError] : ")[2]  # the innermost one
        raise LabError(f"onnxruntime cannot load {path.name}: {reason}", INSTEAD) from error


@dataclass(frozen=True, eq=False)
class Pass:
    """A pass of the graph over some rows, with its places in memory: what it reads there, and where it writes.

    `ids` has shape (rows, tokens); `mask` (rows, tokens that the memory holds), 1 for each token of a row; `logits`
    (rows, vocab).
    """

    binding: onnxruntime.IOBinding
    ids: numpy.ndarray
    mask: numpy.ndarray
    logits: numpy.ndarray


class OnnxRows:
    """The rows under way. `_slots[row]` is where in the buffers a row lies; rows that leave make the last slot move.

    A buffer has the shape (slots, heads, capacity in tokens, width of a head); what lies past a row's length is noise
    that the mask hides.
    """

    def __init__(
        self,
        decoder,
        reader,
        graph: Graph,
        context_length: int,
        prefixes: Prefixes,
    ):
        self._decoder, self._reader, self._graph = decoder, reader, graph
        self._most, self._prefixes = context_length, prefixes
        self._slots: list[int] = []
        self._lengths: list[int] = []  # of each slot
        self._steps: dict[int, Pass] = {}  # a token for each of so many rows
        self._readers: dict[int, onnxruntime.IOBinding] = {}  # the memory of a slot, for its prompt
        first = (1, graph.heads, min(SHORTEST_CAPACITY, context_length), graph.width)
        self._memory = [torch.zeros(first, dtype=graph.number) for _ in graph.names]

    def __len__(self) -> int:
        return len(self._slots)

    @torch.inference_mode()
    def join(self, ids: Sequence[int]) -> Tensor:
        """Add a row for the prompt `ids` as the last one, and return its next token's logits, shape (vocab,)."""
        slot, length = len(self._slots), len(ids)
        self._make_room(slot + 1, length)
        known = self._recall(slot, self._prefixes.longest(ids))
        reader = self._readers[slot] = self._readers.get(slot) or self._binding(self._reader, slot, 1)
        reading = self._pass(reader, 1, length - known, length)
        reading.ids[0], reading.mask[0] = ids[known:], 1
        self._reader.run_with_iobinding(reading.binding)
        self._prefixes.keep(ids, self._layers(slot, length))
        self._slots.append(slot)
        self._lengths.append(length)
        return torch.from_numpy(reading.logits[0]).float()

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Give each row its token, in order, and return the logits of what comes next, shape (rows, vocab)."""
        rows, lengths = len(tokens), [length + 1 for length in self._lengths]
        self._make_room(rows, max(lengths))
        capacity = self._memory[0].shape[2]
        step = self._steps[rows] = self._steps.get(rows) or self._pass(
            self._binding(self._decoder, 0, rows), rows, 1, capacity
        )
        step.ids[self._slots, 0] = tokens
        step.mask[:] = numpy.arange(capacity) < numpy.array(lengths)[:, None]
        self._decoder.run_with_iobinding(step.binding)
        self._lengths = lengths
        return torch.from_numpy(step.logits[self._slots]).float()  # a copy: the next step writes there again

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """Forget row number `row`; the rows after it move up."""
        gap, last = self._slots.pop(row), len(self._slots)
        length = self._lengths.pop()
        if gap != last:
            for memory in self._memory:
                memory[gap, :, :length] = memory[last, :, :length]
            self._slots[self._slots.index(last)] = gap
            self._lengths[gap] = length

    def _make_room(self, slots: int, tokens: int) -> None:
        """Make the buffers larger, twofold or more, where they do not hold that many rows of that many tokens."""
        have, heads, capacity, width = self._memory[0].shape
        if slots <= have and tokens <= capacity:
            return
        more = slots if slots <= have else max(slots, 2 * have)
        longer = capacity if tokens <= capacity else min(max(tokens, 2 * capacity), self._most)
        for number, old in enumerate(self._memory):
            self._memory[number] = torch.zeros(max(more, have), heads, longer, width, dtype=old.dtype)
            self._memory[number][:have, :, :capacity] = old
        self._steps.clear()
        self._readers.clear()

    def _recall(self, slot: int, layers: Layers) -> int:
        """Copy what is remembered of a prompt's beginning into `slot`; the number of its tokens."""
        known = layers[0][0].shape[2] if layers else 0
        for memory, kept in zip(self._memory, [half for layer in layers for half in layer], strict=False):
            memory[slot, :, :known] = kept[0]
        return known

    def _layers(self, slot: int, length: int) -> Layers:
        halves = [memory[slot : slot + 1, :, :length].clone() for memory in self._memory]
        return list(zip(halves[::2], halves[1::2], strict=True))

    def _binding(self, session, slot: int, rows: int) -> onnxruntime.IOBinding:
        """The memory of some slots as what the graph reads and, in the same place, as what it writes."""
        binding = session.io_binding()
        for (past, present), memory in zip(self._graph.names, self._memory, strict=True):
            part = memory[slot : slot + rows]
            _bind(binding.bind_input, past, part)
            _bind(binding.bind_output, present, part)
        return binding

    def _pass(self, binding: onnxruntime.IOBinding, rows: int, tokens: int, total: int) -> Pass:
        """A pass of `tokens` for each of the rows of `binding`, of which none is longer than `total` afterwards."""
        ids, mask = torch.zeros(rows, tokens, dtype=torch.int64), torch.zeros(rows, total, dtype=torch.int64)
        places = tokens if self._graph.every_place else 1
        logits = torch.empty(rows, places, self._graph.vocabulary, dtype=self._memory[0].dtype)
        _bind(binding.bind_input, "input_ids", ids)
        _bind(binding.bind_input, "attention_mask", mask)
        _bind(binding.bind_output, "logits", logits)
        return Pass(binding, ids.numpy(), mask.numpy(), logits.numpy()[:, -1])


def _bind(bind, name: str, tensor: Tensor) -> None:
    bind(name, "cpu", 0, tensor.numpy().dtype, tensor.shape, tensor.data_ptr())
