"""LoRA adapters on a base model: which folder fits which base, and rows of several adapters in one pass.

An adapter is a folder as peft writes it: adapter_config.json and adapter_model.safetensors, and the card.json that
`labkit lora` adds. All adapters of a network lie beside the base's weights, so a row's adapter is a choice and never a
reload.
"""

import contextlib
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from peft import LoraConfig, PeftConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from labkit.errors import LabError
from labkit.evidence import sha256_of
from labkit.export.checkpoint import read_config
from labkit.generation.torchao import without_old_torchao

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "card.json"
BASE = "__base__"  # peft's word for a row without an adapter
NAME = re.compile(r"[\w.:/@+-]{1,100}")


def check_names(adapters: Mapping[str, Path], base: str) -> None:
    """Raises LabError for a name that no request could ask for, or that means the base."""
    for name in adapters:
        if not NAME.fullmatch(name):
            raise LabError(f"{name!r} cannot be an adapter's name", "use letters, digits and - _ . : / @ +")
        if name == base:
            raise LabError(f"an adapter and its base are both called {name}", "give the adapter another name")


def read_adapter(folder: Path, base_revision: str) -> LoraConfig:
    """The configuration of the adapter in `folder`. Raises LabError for a folder that is no LoRA adapter, or whose
    card names another revision of the base, and for one that cannot share its base with other rows."""
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        what = f"{folder.name} is no adapter: it does not hold {CONFIG} and {WEIGHTS}"
        raise LabError(what, "give the folder that `labkit lora` or peft's save_pretrained wrote")
    kind = read_config(folder, CONFIG).get("peft_type")
    if kind != "LORA":
        raise LabError(f"the adapter {folder.name} is of the kind {kind}, and only LORA is run here", "train a LoRA")
    made_for = read_config(folder, CARD).get("base_revision")
    if made_for and made_for != base_revision:
        what = f"the adapter {folder.name} was made for the base revision {made_for}, and {base_revision} is loaded"
        raise LabError(what, "load that base, or train the adapter again on this one")
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError) as error:
        raise LabError(f"{CONFIG} of {folder.name} cannot be read: {error}", "write the adapter again") from error
    if reason := why_not_shared(config):
        what = f"the adapter {folder.name} cannot lie beside its base: {reason}"
        raise LabError(what, "merge it into its base and load that, or train it without")
    config.inference_mode = True
    return config


def why_not_shared(config: LoraConfig) -> str:
    """Why rows of this adapter cannot run beside others, as the end of a sentence; empty where they can."""
    if config.use_dora:
        return "it is a DoRA, whose weights peft does not mix in a batch"
    if config.bias != "none":
        return f"it changes the base's own biases (bias={config.bias})"
    if config.init_lora_weights not in (True, False, "gaussian", "orthogonal"):
        return f"it changes the base's own weights (init_lora_weights={config.init_lora_weights})"
    return ""


def adapter_revision(folder: Path, base_revision: str) -> str:
    """Base and adapter in one: the base's revision, "+", the first 12 hex digits of the adapter's sha256."""
    return f"{base_revision}+{sha256_of(folder / WEIGHTS)[:12]}"


@contextlib.contextmanager
def peft_at_work() -> Iterator[None]:
    """Silence for transformers' FutureWarning about what peft asks of a model as it lays an adapter on it, and no
    quarrel about a torchao that nobody asked for."""
    without_old_torchao()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


class Adapters:
    """A base with the adapters of `folders` (name to folder) beside its weights.

    One pass may have rows of several. peft keeps which adapter is active in the layers themselves, so passes of all
    threads go one after the other. Raises LabError for an adapter that is none, or not this base's (see
    `read_adapter`), or whose weights have another shape.
    """

    def __init__(self, base: PreTrainedModel, folders: Mapping[str, Path], base_revision: str):
        self._base, self._lock = base, threading.Lock()
        # peft makes modules of these names, and a module's name has no dots.
        self._keys = {name: f"adapter{number}" for number, name in enumerate(folders)}
        self._peft: PeftModel | None = None
        for name, folder in folders.items():
            self._add(self._keys[name], folder, read_adapter(folder, base_revision))
        self._names: list[str] | None = None  # of the rows of a mixed pass
        self._active: str | None = None
        for module in self._peft.modules():
            if isinstance(module, LoraLayer | AuxiliaryTrainingWrapper):
                module.register_forward_pre_hook(self._tell, with_kwargs=True)
        self._peft.eval()

    def run(self, adapters: Sequence[str], inputs: Mapping[str, object]):
        """A pass of the base over rows of these adapters, one name for each row, "" for the base alone."""
        names = [self._keys[name] if name else BASE for name in adapters]
        with self._lock:
            self._choose(names)
            return self._base(**inputs)

    def _choose(self, names: list[str]) -> None:
        """Rows that agree need no mixing: their adapter is made the active one, and stays it."""
        wanted = names[0] if len(set(names)) == 1 else "mixed"
        self._names = names if wanted == "mixed" else None
        if wanted == self._active:
            return
        self._active = None
        if wanted == BASE:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            if wanted != "mixed":
                self._peft.base_model.set_adapter(wanted, inference_mode=True)
        self._active = wanted

    def _tell(self, module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        return None if self._names is None else (args, kwargs | {"adapter_names": self._names})

    def _add(self, key: str, folder: Path, config: LoraConfig) -> None:
        try:
            state = load_file(folder / WEIGHTS)
            with peft_at_work():
                if self._peft is None:
                    self._peft = PeftModel(self._base, config, key)
                else:
                    self._peft.add_adapter(key, config)
            found = set_peft_model_state_dict(self._peft, state, adapter_name=key)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            raise self._unfit(folder, (str(error).strip() or type(error).__name__).splitlines()[-1].strip()) from error
        lacking = [name for name in found.missing_keys if f".{key}." in name]
        if lacking or found.unexpected_keys:
            one = next(iter(lacking or found.unexpected_keys))
            raise self._unfit(folder, f"{one} is {'missing' if lacking else 'not a part of it'}")

    def _unfit(self, folder: Path, reason: str) -> LabError:
        what = f"the adapter {folder.name} does not fit the base: {reason}"
        return LabError(what, "load the base that it was trained on")
