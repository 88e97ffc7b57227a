"""Images in a prompt, for models of the Qwen2-VL architecture (Wang et al. 2024, arXiv 2409.12191).

Such a model reads an image as a row of placeholder tokens, one for each square of pixels, and the processor of its
checkpoint says how many and turns the pixels into numbers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL.Image import Image
from transformers import AutoImageProcessor, PreTrainedTokenizerBase, Qwen2VLProcessor

from labkit.errors import LabError
from labkit.generation.network import Images


class StillProcessor(Qwen2VLProcessor):
    """The processor without its part for videos, which needs torchvision; images need only Pillow."""

    def __init__(self, image_processor, tokenizer):
        super().__init__(image_processor, tokenizer)


class Vision:
    """The processor of a checkpoint, for prompts that have images."""

    def __init__(self, processor: Qwen2VLProcessor):
        self._processor = processor

    def tokens(self, width: int, height: int) -> int:
        """How many tokens an image of that many pixels takes. Raises LabError for one that is too long and thin."""
        sizing = self._processor.image_processor
        try:
            return sizing.get_number_of_image_patches(height, width) // sizing.merge_size**2
        except ValueError as error:
            raise LabError(f"the model takes no image of {width} x {height} pixels: {error}", "cut the image") from None

    def prompt(self, text: str, images: Sequence[Image]) -> tuple[list[int], Images]:
        """The token ids of `text`, which has a placeholder for each of `images`, and what the network is given of them.

        Raises LabError where the placeholders are not as many as the images, because somebody wrote one into a message.
        """
        places, name = text.count(self._processor.image_token), self._processor.image_token
        if places != len(images):
            what = f"{name}, which stands for an image, is in the prompt {places} times for {len(images)} images"
            raise LabError(what, f"leave {name} out of the text; a chat template that writes none knows no images")
        try:
            made = self._processor(text=[text], images=list(images), return_tensors="pt", add_special_tokens=False)
        except ValueError as error:
            raise LabError(f"the processor refuses the prompt: {error}", "leave its tokens out of the text") from None
        return made["input_ids"][0].tolist(), Images(made["pixel_values"], made["image_grid_thw"])


def load_vision(model: str | Path, tokenizer: PreTrainedTokenizerBase, pin: Mapping[str, str]) -> Vision:
    """What the checkpoint `model`, a folder or a hub id of which `pin` may name the revision, says of images.

    Pillow prepares them on every machine.

    A chat template that lies beside the processor alone, as older checkpoints have it, is given to `tokenizer`.
    """
    if not tokenizer.chat_template:
        tokenizer.chat_template = StillProcessor.get_processor_dict(model, **pin)[0].get("chat_template")
    images = AutoImageProcessor.from_pretrained(model, backend="pil", trust_remote_code=False, **pin)
    return Vision(StillProcessor(images, tokenizer))
