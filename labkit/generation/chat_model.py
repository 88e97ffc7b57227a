"""Load any causal chat model, embedded or from a hub, and chat with it.

One class serves the command line, the API and the evaluation, so that an answer is the same wherever it is asked for.
The decoding loop is our own because a server must stop it between two tokens when its client goes away, and decode
several answers together; a test holds its greedy answers equal to those of transformers' `generate`.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from labkit.decoding import Sampling
from labkit.environment import Device, choose_device, peak_memory_mib
from labkit.errors import LabError
from labkit.evidence import Pack
from labkit.export.checkpoint import read_config, weights_revision
from labkit.export.onnx_folder import is_onnx_export
from labkit.generation.answer import Answer, Completion
from labkit.generation.backends import LLAMA_CPP, ONNX, ONNX_DEVICE, TRANSFORMERS, Backend, choose_backend
from labkit.generation.bits import load_what_peft_loads
from labkit.generation.constraint import Constraint
from labkit.generation.network import Network, Rows
from labkit.layout import EMBEDDED, MODELS

# For tokenizers without a chat template: roles as plain headings, the answer begun for the model.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

Message = dict


class ChatModel:
    """A tokenizer and the network that runs a causal model. Made by `load_chat_model`.

    `name` is the hub id or the model folder's name (never a path); `revision` is the hub commit, or the first 12 hex
    digits of the sha256 of the local weights, so that two runs can be told apart. `vision` is None for a model that
    reads text alone.

    `adapters` are those that lie beside its weights, name to revision: the base's, "+", and the first 12 hex digits of
    the adapter's own. `chat` and `stream` use `adapter`, "" for the base alone; see `using`.
    """

    def __init__(
        self,
        name: str,
        revision: str,
        network: Network,
        tokenizer: PreTrainedTokenizerBase,
        backend_reason: str,
        adapters: Mapping[str, str] | None = None,
    ):
        self.name, self.revision, self.base_revision = name, revision, revision
        self.adapters, self.adapter = dict(adapters or {}), ""
        self.network, self.tokenizer, self.vision = network, tokenizer, getattr(network, "vision", None)
        self.backend, self.backend_reason = network.backend, backend_reason
        self.device, self.device_reason, self.dtype = network.device, network.device_reason, network.dtype
        self.context_length, self.parameter_count = network.context_length, network.parameter_count

    def using(self, adapter: str) -> "ChatModel":
        """The same network answering with `adapter`, "" for the base alone. Raises LabError for one it lacks."""
        if adapter and adapter not in self.adapters:
            known = ", ".join(self.adapters) or "none"
            raise LabError(f"{self.name} was loaded without an adapter {adapter!r}", f"it has {known}")
        other = copy.copy(self)
        other.adapter, other.revision = adapter, self.adapters.get(adapter, self.base_revision)
        return other

    def prompt_ids(self, messages: Sequence[Message], **template: object) -> list[int]:
        """The token ids of `prompt_text`."""
        return self.text_ids(self.prompt_text(messages, **template))

    def prompt_text(self, messages: Sequence[Message], **template: object) -> str:
        """The prompt through the tokenizer's chat template or the plain one, given `template` (tools)."""
        plain = None if self.tokenizer.chat_template else PLAIN_TEMPLATE
        return self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, chat_template=plain, **template
        )

    def text_ids(self, text: str) -> list[int]:
        """The token ids of `text` as it is, no special token added, of any length: `answer` refuses one too long."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def prompt_of(self, text: str) -> list[int]:
        """The token ids of a raw prompt, with the beginning-of-text token where the model was trained with one."""
        return self.tokenizer(text)["input_ids"]

    def constraint(self, grammar: str) -> Constraint | None:
        """What keeps one answer to `grammar` (see `json_grammar`); None for no grammar. Raises LabError."""
        return Constraint(self.tokenizer, self.network.vocabulary, grammar) if grammar else None

    def answer(
        self, ids: Sequence[int], sampling: Sampling, constraint: Constraint | None = None, kept: str = ""
    ) -> Answer:
        """The empty answer to the prompt `ids`, to be given logits token by token.

        `constraint` keeps it to a form; the text of the special token `kept` is not left out.
        Raises LabError when the prompt leaves no room.
        """
        room = self.context_length - len(ids)
        if room < 1:
            raise LabError(
                f"the prompt has {len(ids)} tokens and the model's context holds {self.context_length}",
                "shorten the prompt, or choose a model with a longer context",
            )
        most = min(room, sampling.max_tokens)
        return Answer(self.tokenizer, len(ids), sampling, self.network.end_ids, most, constraint, kept)

    def join(self, rows: Rows, ids: Sequence[int]) -> Tensor:
        """Add a row for the prompt `ids` with this model's adapter; its next token's logits, shape (vocab,)."""
        return rows.join(ids, adapter=self.adapter) if self.adapter else rows.join(ids)

    def chat(self, messages: Sequence[Message], sampling: Sampling | None = None, grammar: str = "") -> Completion:
        """The whole answer to `messages`. Raises LabError when the prompt leaves no room in the context."""
        *_, completion = self.stream(messages, sampling, grammar)
        return completion

    def stream(
        self, messages: Sequence[Message], sampling: Sampling | None = None, grammar: str = ""
    ) -> Iterator[str | Completion]:
        """Pieces of the answer as they are made, then the Completion as the last item.

        Closing the iterator stops the model. A piece is empty while text is held back, so that a caller can stop after
        any token.
        """
        ids, rows = self.prompt_ids(messages), self.network.rows()
        answer = self.answer(ids, sampling or Sampling(), self.constraint(grammar))
        answer.take(self.join(rows, ids))
        yield answer.piece()
        while not answer.finish_reason:
            answer.take(rows.step([answer.last])[0])
            yield answer.piece()
        yield answer.completion()


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
        **({"Adapter": model.adapter} if model.adapter else {}),
        "Device": model.device,
        "Device reason": model.device_reason,
        "Backend": model.backend,
        "Number format": model.dtype,
        "Route": pack.route,
    }
    lines = [f"- {key}: {value}" for key, value in facts.items()]
    pack.write_text("first_run.md", "\n".join(["# First run", "", *lines]) + "\n", "13.2")


def one_line(text: str) -> str:
    """`text` on one line: a line break becomes the two characters \\n, so that the original can be read back."""
    return text.replace("\n", "\\n")


def load_chat_model(
    model: str = EMBEDDED,
    device: str = "auto",
    dtype: str = "auto",
    backend: str | None = None,
    rows: int = 8,
    revision: str = "",
    adapter: str | Path = "",
    adapters: Mapping[str, str | Path] | None = None,
) -> ChatModel:
    """Load `model`: the embedded model's name, a folder with a transformers checkpoint or an ONNX export, a GGUF file,
    or a hub id.

    `device` is auto, cpu, cuda or mps; `backend` is auto, transformers, onnx or llama.cpp (see `choose_backend`);
    None is the reference: transformers, llama.cpp for a GGUF file, and onnx for an ONNX export.
    `dtype` is a torch type's name, or int8, nf4 or nf4-dq by bitsandbytes; for onnx one of its PRECISIONS. "auto" is
    int4 for onnx; else float32 on the CPU, where 16-bit arithmetic is rarely faster, and the checkpoint's own type
    elsewhere. `rows` is the most answers at once, for which llama.cpp takes its memory beforehand. `revision` is the
    hub's commit, tag or branch to load; local weights have one revision, and must be that. No code from a hub is ever
    run.
    `adapter` is the folder of a LoRA adapter to answer with; `adapters` (name to folder) lie beside the base, which
    answers until `using` says otherwise. Both need transformers.
    Raises LabError for an absent device or backend, a path that is no model or another revision, a hub that cannot
    be reached, or an adapter that does not fit.
    """
    own = {Path(adapter).resolve().name: adapter} if adapter else {}
    folders = {name: Path(folder).expanduser() for name, folder in {**(adapters or {}), **own}.items()}
    loaded = _load_base(model, device, dtype, backend, rows, revision, bool(folders))
    if not folders:
        return loaded
    load_what_peft_loads()
    from labkit.generation.adapters import adapter_revision, check_names

    check_names(adapters or {}, loaded.name)
    loaded.network.adapt(folders, loaded.revision)
    loaded.adapters = {name: adapter_revision(folder, loaded.revision) for name, folder in folders.items()}
    return loaded.using(*own) if own else loaded


def _load_base(
    model: str, device: str, dtype: str, backend: str | None, rows: int, revision: str, adapted: bool
) -> ChatModel:
    """See `load_chat_model`; `adapted` is a base on which adapters will be laid."""
    source = local_source(model)
    if source is not None and revision:
        _require_revision(source, revision)
    own = _own_backend(source)
    backend = backend or own
    chosen = ONNX_DEVICE if device == "auto" and ONNX in (backend, own) else choose_device(device)
    picked = choose_backend(backend, source, chosen.name, dtype, adapted)
    if picked.name == LLAMA_CPP:
        from labkit.generation.llama_cpp_network import load_llama_cpp

        network, tokenizer = load_llama_cpp(source, rows)
        return ChatModel(source.stem, weights_revision(source), network, tokenizer, picked.reason)
    pin = {"revision": revision} if source is None and revision else {}
    with told_as_lab_error(source.name if source else model):
        # A model's own class of configuration loads transformers' models with it: seconds that ONNX does not need.
        config = PreTrainedConfig.from_dict(read_config(source)) if picked.name == ONNX else None
        tokenizer = AutoTokenizer.from_pretrained(source or model, config=config, trust_remote_code=False, **pin)
    try:
        network = _network(picked.name, source, model, tokenizer, dtype, chosen, pin)
    except LabError as error:
        if picked.name == TRANSFORMERS or backend != "auto":
            raise
        picked = Backend(TRANSFORMERS, f"onnx was tried first, and {error.what}")
        network = _network(TRANSFORMERS, source, model, tokenizer, dtype, chosen, pin)
    held = weights_revision(source) if source else hub_commit(model, revision)
    return ChatModel(source.name if source else model, held, network, tokenizer, picked.reason)


def _own_backend(source: Path | None) -> str:
    """What runs a file or folder that is for one runtime alone; transformers for all others."""
    if source and source.is_file():
        return LLAMA_CPP
    return ONNX if source and is_onnx_export(source) else TRANSFORMERS


def hub_commit(model: str, revision: str) -> str:
    """The commit that was just loaded from the hub, by the folder of the hub's cache in which its files are."""
    found = try_to_load_from_cache(model, "config.json", revision=revision or None)
    return Path(found).parent.name if isinstance(found, str) else "unknown"


def _require_revision(source: Path, revision: str) -> None:
    if (held := weights_revision(source)) != revision:
        what = f"{source.name} holds the revision {held}, and {revision} is asked for"
        raise LabError(what, "put the weights of that revision there, or leave --revision out")


def _network(
    backend: str, source: Path | None, model: str, tokenizer, dtype: str, device: Device, pin: dict[str, str]
) -> Network:
    """A backend's libraries are loaded with it: those of transformers' models alone take seconds."""
    if backend == ONNX:
        from labkit.generation.onnx_network import load_onnx

        return load_onnx(source, tokenizer, dtype, device.reason)
    from labkit.generation.transformers_network import load_transformers

    with told_as_lab_error(source.name if source else model):
        return load_transformers(source or model, tokenizer, dtype, device, pin)


@contextlib.contextmanager
def told_as_lab_error(name: str) -> Iterator[None]:
    """What transformers raises for a folder that is no model, or a hub that it cannot reach, as a LabError."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LabError(
            f"the model {name} could not be loaded: {first_line.removesuffix(' from one of: ')}",
            "give a folder that holds config.json, tokenizer and weights, or a hub id and a network",
        ) from error


def local_source(model: str) -> Path | None:
    """The folder or GGUF file that `model` means, or None for a hub id. A path that is not there is an error, never a
    hub id. A folder with nothing to load but one GGUF file, as `labkit export gguf` leaves it, means that file."""
    if model == EMBEDDED:
        return MODELS / EMBEDDED
    path = Path(model).expanduser()
    if path.is_dir() and not ((path / "config.json").is_file() or is_onnx_export(path)):
        path = _gguf_in(path) or path
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path.resolve()
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1 or path.suffix == ".gguf":
        kind = "file" if path.suffix == ".gguf" else "folder"
        raise LabError(
            f"there is no model {kind} called {path.name}",
            f"check the spelling of the path, or leave --model out to use the embedded model {EMBEDDED}",
        )
    return None


def _gguf_in(folder: Path) -> Path | None:
    """The one GGUF file in `folder`, None without any. Raises LabError for several."""
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise LabError(f"{folder.name} holds {len(files)} GGUF files: {names}", "give the path of one of them")
    return files[0] if files else None
