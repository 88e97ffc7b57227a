"""A Llama-architecture checkpoint as one GGUF file: weights, tokenizer and chat template, as llama.cpp reads them.

What each key and tensor means is in ggml's specification (github.com/ggml-org/ggml, docs/gguf.md). The `gguf` package
writes the container; what goes into it is decided here. transformers reads GGUF, which makes it an independent check:
a test finds the logits of an f32 file equal to those of the checkpoint.
"""

import ctypes
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from tokenizers import Regex, Tokenizer, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from labkit.errors import LabError
from labkit.export.llama_library import last_error, llama_library

ARCHITECTURE = "LlamaForCausalLM"
OUTTYPES = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16}
STATIC_ROPE = ("default", "linear", "llama3")  # rotations that do not depend on how long the text is

# Texts on which two tokenizers must agree to be taken for equal. A quote after a space is left out: the tokenizers of
# this project split "'s" off even there, as in " 'start'", and llama.cpp has no pre-tokenizer that does.
PROBES = (
    "Hello world, it's 2026-11-21 and they've counted 12345 things.",
    '{"name": "Ada", "values": [1, 2.5, -3e8], "ok":true}\n',
    "def f(x):\n\n    return x ** 2  # twice\tthe same\r\n",
    "  two  spaces,  12   numbers, and (brackets), don't\n\n\n  matter; CAPITALS do!",
    "Größe, naïve café, Привет мир, 你好世界, 🙂 ½ ٣٤",
)

# The rules with which llama.cpp takes a word that is a token as that token, without asking how merges would make it.
WHOLE_WORDS = frozenset(
    ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken")
)


def write_gguf(folder: Path, path: Path, outtype: str = "f32") -> None:
    """Write the checkpoint in `folder` (config.json, safetensors, tokenizer) to `path` as GGUF.

    `outtype` is the number format of the matrices, f32 or f16; vectors stay f32, as llama.cpp wants them. The file
    appears at once when it is complete. Raises LabError for another architecture, for weights that are missing or do
    not fit, and for a tokenizer that llama.cpp cannot follow.
    """
    if outtype not in OUTTYPES:
        raise LabError(f"GGUF files are written as {' or '.join(OUTTYPES)}, not as {outtype}", "choose one of these")
    model, tokenizer = _checkpoint(folder)
    temporary = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(temporary, "llama")
    try:
        _add_network(writer, model, folder.name)
        _add_tokenizer(writer, tokenizer, model)
        writer.add_file_type(OUTTYPES[outtype])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _write_tensors(writer, model, torch.float16 if outtype == "f16" else torch.float32)
        os.replace(temporary, path)
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)


def quantize_gguf(source: Path, out: Path, kind: str) -> dict[str, int]:
    """Quantize the GGUF file `source` (f32 or f16) to `kind`, for example Q8_0 or Q4_K_M, as the new file `out`.

    Returns how many tensors have which type. A K-quant needs rows of a multiple of 256 numbers and Q8_0 of 32;
    llama.cpp gives a matrix that has others the next larger type that fits. Raises LabError where no matrix has the
    wanted type, so that no file is named after what it is not.
    """
    llama = llama_library()
    wanted = getattr(gguf.LlamaFileType, f"MOSTLY_{kind.upper()}", None)
    if wanted is None:
        raise LabError(f"llama.cpp knows no quantization called {kind}", "choose for example Q8_0 or Q4_K_M")
    settings = llama.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = wanted, torch.get_num_threads()
    temporary = out.with_name(f".{out.name}.part")
    try:
        if llama.llama_model_quantize(os.fsencode(source), os.fsencode(temporary), ctypes.byref(settings)):
            what = f"{source.name} could not be quantized to {kind}: {last_error()}"
            raise LabError(what, "give a complete GGUF file of type f32 or f16")
        types = tensor_types(temporary)
        _check_types(types, kind, source)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return types


def tensor_types(path: Path) -> dict[str, int]:
    """How many tensors of the GGUF file have which type, for example {"Q4_K": 31, "F32": 11}."""
    return dict(Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors))


def _check_types(types: dict[str, int], kind: str, source: Path) -> None:
    main = "_".join(part for part in kind.upper().split("_") if part not in ("S", "M", "L"))
    if main not in types:
        got = ", ".join(sorted(types))
        what = f"no matrix of {source.name} can be {main}: its rows are too short for it, and would be {got}"
        raise LabError(what, "choose Q8_0 for rows of a multiple of 32 numbers, or keep f16")


def _checkpoint(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _check_architecture(config)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, info = LlamaForCausalLM.from_pretrained(
            folder, dtype="auto", trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].replace(str(folder), folder.name)
        what, next_step = f"the checkpoint {folder.name} could not be read: {reason}", "give a complete model folder"
        raise LabError(what, f"{next_step}: config.json, safetensors, tokenizer") from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise LabError(f"the checkpoint {folder.name} lacks {missing}", "copy or download all of its safetensors files")
    return model, tokenizer


def _check_architecture(config) -> None:
    has = (getattr(config, "architectures", None) or ["none"])[0]
    if has != ARCHITECTURE:
        what = f"only {ARCHITECTURE} checkpoints are written as GGUF, and this is {has}"
        raise LabError(what, "use llama.cpp's convert_hf_to_gguf.py for other architectures")
    rope = config.rope_parameters["rope_type"]
    if rope not in STATIC_ROPE:
        what = f"positions scaled by {rope} are not written as GGUF; {', '.join(STATIC_ROPE)} are"
        raise LabError(what, "use llama.cpp's convert_hf_to_gguf.py")


def _add_network(writer: gguf.GGUFWriter, model: LlamaForCausalLM, name: str) -> None:
    config = model.config
    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _write_tensors(writer: gguf.GGUFWriter, model: LlamaForCausalLM, dtype: torch.dtype) -> None:
    """One tensor after the other, so that never two of them are held a second time."""
    for name, tensor in _tensors(model):
        half = dtype == torch.float16 and tensor.ndim > 1
        kind = np.dtype(np.float16 if half else np.float32)
        writer.add_tensor_info(name, tensor.shape, kind, tensor.numel() * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in _tensors(model):
        numbers = tensor.to(dtype if tensor.ndim > 1 else torch.float32)
        if not numbers.isfinite().all():
            what = f"{name} holds numbers that {dtype} cannot"
            raise LabError(what, "write the file as f32, or repair the checkpoint")
        writer.write_tensor_data(numbers.contiguous().numpy())


def _tensors(model: LlamaForCausalLM) -> Iterator[tuple[str, Tensor]]:
    """Each tensor under llama.cpp's name; tied output weights are left out, for llama.cpp then takes the embedding."""
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        projection = name.split(".")[-2]
        yield (
            names.get_name(name, try_suffixes=(".weight", ".bias")),
            interleaved(tensor, heads[projection]) if projection in heads else tensor,
        )
    factors = _rope_factors(model)
    if factors is not None:
        yield gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS] + ".weight", factors


def interleaved(tensor: Tensor, heads: int) -> Tensor:
    """The rows of a query or key projection, (heads x width, …), in the order in which llama.cpp rotates them.

    A rotary embedding turns pairs of numbers. transformers pairs number i of a head with i + width / 2, llama.cpp's
    Llama graph pairs neighbours (2i, 2i + 1), as the paper does (Su et al. 2021, arXiv 2104.09864).
    """
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _rope_factors(model: LlamaForCausalLM) -> Tensor | None:
    """What each frequency of the rotation is divided by, shape (head_dim / 2,); None where nothing is scaled."""
    scaled = model.model.rotary_emb.inv_freq.float()
    width = model.config.head_dim
    plain = model.config.rope_parameters["rope_theta"] ** (-torch.arange(0, width, 2).float() / width)
    factors = plain / scaled
    return None if torch.allclose(factors, torch.ones_like(factors)) else factors


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, model: LlamaForCausalLM) -> None:
    texts, types = _vocabulary(tokenizer, model.config.vocab_size)
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for byte-level BPE
    writer.add_tokenizer_pre(_pre_tokenizer(tokenizer))
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_merges(_merges(tokenizer))
    end = model.generation_config.eos_token_id
    ends = [end] if isinstance(end, int) else end or []
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id in ends or not ends else ends[0]
    turn = next((token for token in ends if token != eos), None)
    add = (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_eot_token_id, writer.add_pad_token_id)
    for put, token in zip(add, (tokenizer.bos_token_id, eos, turn, tokenizer.pad_token_id), strict=True):
        if token is not None:
            put(token)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[list[str], list[gguf.TokenType]]:
    """Text and type of each of the network's `size` tokens; numbers that no token has are padding."""
    if len(tokenizer) > size:
        what = f"the tokenizer has {len(tokenizer)} tokens and the network {size}"
        raise LabError(what, "use the tokenizer that the model was trained with")
    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    types = [gguf.TokenType.NORMAL if number in texts else gguf.TokenType.UNUSED for number in range(size)]
    for number, token in added.items():
        types[number] = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
    return [texts.get(number, f"[PAD{number}]") for number in range(size)], types


def _merges(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _pre_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """llama.cpp's name for the rule by which text is split before merging: the first that gives the same tokens.

    llama.cpp knows such rules by name only. A home-trained tokenizer may have one of its own; where its merges never
    reach over the difference, another rule does the same.
    """
    original = tokenizer.backend_tokenizer
    if json.loads(original.to_str())["model"]["type"] == "BPE":
        for name, rule in _rules().items():
            twin = Tokenizer.from_str(original.to_str())
            twin.pre_tokenizer, twin.normalizer = rule, None
            twin.model.ignore_merges = name in WHOLE_WORDS
            if all(_ids(twin, text) == _ids(original, text) for text in PROBES):
                return name
    what = f"the tokenizer splits text in a way that llama.cpp has no name for ({', '.join(_rules())} were tried)"
    raise LabError(what, "only byte-level BPE is written as GGUF here; use llama.cpp's convert_hf_to_gguf.py")


def _rules() -> dict[str, pre_tokenizers.PreTokenizer]:
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError as error:
        what = f"transformers {transformers.__version__} does not tell how llama.cpp splits texts"
        raise LabError(what, "install the version of pyproject.toml to write GGUF files") from error
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    llama3 = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"]), "isolated")
    return {
        "gpt-2": plain,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain]),
        "llama-bpe": pre_tokenizers.Sequence([llama3, spelled]),
    }


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids
