"""The reference backend: any causal model that transformers loads, on the device that was chosen."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from labkit.generation.batch import Batch, Prefixes


class TransformersNetwork:
    """A Network around a transformers model; weights, number format and device are the model's own."""

    backend = "transformers"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device_reason: str):
        self.model = model
        self.device, self.device_reason = model.device.type, device_reason
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.context_length = int(getattr(model.config.get_text_config(), "max_position_embeddings", 2048))
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.parameter_count = sum(parameter.numel() for parameter in model.parameters())
        end = model.generation_config.eos_token_id
        end = tokenizer.eos_token_id if end is None else end
        self.end_ids = frozenset([end] if isinstance(end, int) else end or ())
        self._prefixes = Prefixes()

    def rows(self) -> Batch:
        return Batch(self.model, self._prefixes)
