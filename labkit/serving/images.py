"""Images in a request: from the data URL of a part to pixels, or the refusal that says why not.

Nothing is fetched: a server that opens the addresses of its clients reads the network and the disk for strangers.
"""

import base64
import io
from collections.abc import Iterator, Sequence

from PIL import Image, ImageOps

from labkit.errors import LabError
from labkit.generation import ChatModel
from labkit.serving.contract import Limits, Refusal
from labkit.serving.schema import ChatMessage, ImagePart, ImageUrl

FORMATS = {f"data:image/{name};base64": name.upper() for name in ("png", "jpeg", "webp", "gif")}
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}  # 8 bits a channel; others lose their light parts


def read_images(messages: Sequence[ChatMessage], model: ChatModel, limits: Limits) -> list[Image.Image]:
    """The images of a request in order, in RGB. Raises Refusal for those that the server does not take or cannot read.

    Sizes are taken from the files' headers: what would be too large is never decoded.
    """
    parts = list(_parts(messages))
    if not parts:
        return []
    _check_offer(parts, model, limits)
    opened = [(_opened(image.url, f"{where}.url", limits), f"{where}.url") for where, image in parts]
    tokens = sum(_tokens(image, where, model) for image, where in opened)
    if tokens > limits.max_input_tokens:
        text = f"the images alone have {tokens} tokens; the limit is {limits.max_input_tokens}; send smaller images"
        raise Refusal("context_length_exceeded", text, "messages")
    return [_pixels(image, where) for image, where in opened]


def _parts(messages: Sequence[ChatMessage]) -> Iterator[tuple[str, ImageUrl]]:
    """Each image with its place in the body."""
    for number, message in enumerate(messages):
        for at, part in enumerate(message.content if isinstance(message.content, list) else ()):
            if isinstance(part, ImagePart):
                yield f"messages.{number}.content.{at}.image_url", part.image_url


def _check_offer(parts: Sequence[tuple[str, ImageUrl]], model: ChatModel, limits: Limits) -> None:
    if model.vision is None:
        text = f"{model.name} reads no images; send text alone, or serve a model of the Qwen2-VL architecture"
        raise Refusal("unsupported_parameter", text, parts[0][0])
    if len(parts) > limits.max_images:
        text = f"the request has {len(parts)} images; the limit is {limits.max_images}"
        raise Refusal("invalid_value", text, parts[limits.max_images][0])
    for where, image in parts:
        if image.detail not in (None, "auto"):
            text = "the model's processor alone decides how large an image is shown; leave detail out, or send auto"
            raise Refusal("unsupported_parameter", text, f"{where}.detail")


def _opened(url: str, where: str, limits: Limits) -> Image.Image:
    """The image with its header read and its pixels not."""
    kind, data = _data(url, where)
    try:
        image = Image.open(io.BytesIO(data), formats=[kind])
        animated = image.format != "MPO" and getattr(image, "is_animated", False)  # MPO: a photo and its small copies
    except Image.DecompressionBombError:
        raise _too_large("far too many", where, limits) from None
    except Exception:  # a decoder of strangers' bytes may raise anything
        raise Refusal("invalid_value", f"the data is not a {kind} image that can be read", where) from None
    if image.width * image.height > limits.max_image_pixels:
        raise _too_large(f"{image.width} x {image.height}", where, limits)
    if animated:
        raise Refusal("invalid_value", "the image is an animation; send one picture of it", where)
    if image.mode not in MODES:
        raise Refusal("invalid_value", f"the image's pixels are {image.mode}; send 8 bits a channel", where)
    return image


def _data(url: str, where: str) -> tuple[str, bytes]:
    """Pillow's name of the format that the URL names, and the file."""
    head, _, text = url.partition(",")
    if url[:5].lower() != "data:":
        text = "an image is sent as a data URL (data:image/png;base64,...); nothing is fetched from other addresses"
        raise Refusal("invalid_value", text, where)
    if head.lower() not in FORMATS:
        raise Refusal("invalid_value", f"the data URL must begin with one of {', '.join(FORMATS)}", where)
    try:
        return FORMATS[head.lower()], base64.b64decode(text, validate=True)
    except ValueError:
        text = "what follows the comma of the data URL is not base64 with its padding and without spaces"
        raise Refusal("invalid_value", text, where) from None


def _too_large(size: str, where: str, limits: Limits) -> Refusal:
    text = f"the image has {size} pixels; the limit is {limits.max_image_pixels} in all; send a smaller one"
    return Refusal("invalid_value", text, where)


def _tokens(image: Image.Image, where: str, model: ChatModel) -> int:
    try:
        return model.vision.tokens(*image.size)
    except LabError as error:
        raise Refusal("invalid_value", error.what, where) from None


def _pixels(image: Image.Image, where: str) -> Image.Image:
    """The image in RGB as a viewer shows it: turned as its camera was held, and on white where it is transparent."""
    try:
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except Exception:  # a decoder of strangers' bytes may raise anything
        raise Refusal("invalid_value", "the image is cut off or broken", where) from None
