"""Images in a prompt: a random Qwen2-VL with a real processor, in the network's rows and through the live server."""

import base64
import io
import json
import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import jsonschema
import openai
import pytest
import torch
from PIL import Image
from tiny_server import HELLO, SMALL, chat, live, make_tiny_vision_model, refused

from labkit.conformance import PROBES, conformance
from labkit.errors import LabError
from labkit.generation import load_chat_model
from labkit.generation.batch import Batch
from labkit.generation.prefixes import Prefixes
from labkit.serving.contract import Limits, Refusal
from labkit.serving.images import read_images
from labkit.serving.schema import ChatMessage

WIDE = replace(
    SMALL, max_input_tokens=400, max_output_tokens=100, max_body_bytes=400_000, concurrency=3, queue=4, max_images=2
)


def picture(seed, width=40, height=24):
    """Noise, so that no two of them look alike to a random model."""
    return Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height))


def url_of(image, kind="png", **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def part(url, **more):
    return {"type": "image_url", "image_url": {"url": url, **more}}


def asking(*parts, text="hello"):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


RED, NOISE = part(url_of(Image.new("RGB", (40, 24), "red"))), part(url_of(picture(1)))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = make_tiny_vision_model(tmp_path_factory.mktemp("models") / "tiny-qwen2-vl")
    return load_chat_model(str(folder), device="cpu")


@pytest.fixture(scope="module")
def url(model):
    with live(model, WIDE) as base_url:
        yield base_url


def prompt(model, *images, text="hello"):
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    return model.vision.prompt(model.prompt_text([{"role": "user", "content": content}]), images)


# The network


def whole(network, ids, images):
    """The logits after `ids` from one pass without any memory, with positions as transformers itself finds them."""
    tokens = torch.tensor([ids])
    seen = {"pixel_values": images.pixels, "image_grid_thw": images.grid} if images else {}
    kinds = {"mm_token_type_ids": (tokens == network.config.image_token_id).int()} if images else {}
    with torch.inference_mode():
        return network(input_ids=tokens, **seen, **kinds).logits[0, -1]


@pytest.mark.parametrize("window", [None, 8])
def test_rows_with_and_without_images_have_the_logits_of_rows_alone(model, tmp_path, window):
    """Thirty random joins, steps and leaves; an image takes fewer positions than tokens, each row another number."""
    network = model.network.model
    if window:
        sliding = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
        folder = make_tiny_vision_model(tmp_path / "sliding", **sliding)
        network = load_chat_model(str(folder), device="cpu").network.model
    draw, batch, rows = random.Random(2), Batch(network, Prefixes()), []
    sizes = [(), (), ((40, 24),), ((24, 56),), ((9, 9), (64, 32))]
    for number in range(30):
        if len(rows) < 4 and draw.random() < 0.5:
            chosen = draw.choice(sizes)
            text = "there user assistant system " + "".join(draw.choices("abcdef", k=draw.randrange(9)))
            images = [picture(number, *size) for size in chosen]
            row = prompt(model, *images, text=text) if images else (model.text_ids(text), None)
            rows.append(row)
            torch.testing.assert_close(batch.join(*row), whole(network, *row), rtol=1e-4, atol=1e-4)
        elif rows and draw.random() < 0.25:
            number = draw.randrange(len(rows))
            batch.leave(number)
            del rows[number]
        elif rows:
            rows = [([*ids, draw.randrange(5, 160)], images) for ids, images in rows]
            logits = batch.step([ids[-1] for ids, _ in rows])
            alone = torch.stack([whole(network, *row) for row in rows])
            torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)


def test_the_same_placeholders_with_other_pixels_are_another_prompt(model):
    (first, one), (second, other) = prompt(model, picture(1)), prompt(model, picture(2))
    assert first == second
    rows = Batch(model.network.model, Prefixes())
    unseen = rows.join(first)  # the same tokens, written by somebody: kept as the beginning of texts alone
    after_one, after_other, again = rows.join(first, one), rows.join(second, other), rows.join(first, one)
    assert (after_one - after_other).abs().max() > 0.1
    torch.testing.assert_close(after_one, whole(model.network.model, first, one), rtol=1e-4, atol=1e-4)
    assert torch.equal(after_one, again)
    torch.testing.assert_close(rows.join(first), unseen)


def test_answers_to_an_image_are_those_of_transformers(model, url):
    ids, images = prompt(model, picture(1))
    tokens = torch.tensor([ids])
    seen = {"pixel_values": images.pixels, "image_grid_thw": images.grid}
    kinds = (tokens == model.network.model.config.image_token_id).int()
    made = model.network.model.generate(
        input_ids=tokens, mm_token_type_ids=kinds, **seen, max_new_tokens=12, do_sample=False
    )
    said = chat(url, messages=asking(NOISE), max_tokens=12).json()["choices"][0]["message"]["content"]
    assert said == model.tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)


def test_the_tokens_of_an_image_are_known_before_it_is_decoded(model):
    for size in ((40, 24), (9, 9), (300, 200), (1, 30)):
        ids, _ = prompt(model, picture(0, *size))
        assert model.vision.tokens(*size) == ids.count(model.network.model.config.image_token_id) > 0
    with pytest.raises(LabError, match="takes no image of 500 x 2 pixels"):
        model.vision.tokens(500, 2)


# Through the server


def test_the_openai_client_sends_an_image_plain_and_streamed(url, model):
    ask = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0).chat.completions.create
    common = {"model": "tiny-qwen2-vl", "messages": asking(part(url_of(picture(1)), detail="auto")), "max_tokens": 16}
    plain = ask(**common)
    ids, _ = prompt(model, picture(1))
    assert ids.count(4) == 15  # 40 x 24 pixels
    assert plain.usage.prompt_tokens == len(ids)
    assert plain.usage.completion_tokens == 16
    *chunks, last = ask(**common, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain.choices[0].message.content
    assert last.usage == plain.usage


def test_another_image_is_another_answer_and_the_seed_decides_a_sampled_one(url):
    def scores(*parts, **sampling):
        body = {"messages": asking(*parts), "logprobs": True, "top_logprobs": 3, "max_tokens": 8, **sampling}
        return chat(url, **body).json()["choices"][0]["logprobs"]["content"]

    noise = scores(NOISE)
    assert abs(noise[0]["top_logprobs"][0]["logprob"] - scores(RED)[0]["top_logprobs"][0]["logprob"]) > 0.01
    assert scores(NOISE) == noise
    assert scores(NOISE, RED) != scores(RED, NOISE)
    warm = scores(NOISE, temperature=1.5, seed=3)
    assert scores(NOISE, temperature=1.5, seed=3) == warm
    assert scores(NOISE, temperature=1.5, seed=4) != warm


def test_images_and_texts_that_are_answered_together_are_answered_as_alone(url):
    prompts = [asking(NOISE), HELLO, asking(RED, text="x" * 30), asking(RED, NOISE), asking(text="what now")]

    def ask(messages):
        return chat(url, messages=messages, max_tokens=8).json()["choices"][0]["message"]["content"]

    alone = [ask(messages) for messages in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(ask, prompts)) == alone
    assert len(set(alone)) == len(prompts)


def test_tools_and_schemas_hold_for_images_and_for_text(url):
    form = {"type": "object", "properties": {"k": {"enum": ["a", "b"]}}, "required": ["k"]}
    form["additionalProperties"] = False
    tool = {"type": "function", "function": {"name": "see", "parameters": form}}
    schema = {"type": "json_schema", "json_schema": {"name": "f", "schema": form}}
    for messages in (asking(NOISE), HELLO):
        called = chat(url, messages=messages, tools=[tool], tool_choice="required").json()["choices"]
        call = called[0]["message"]["tool_calls"][0]["function"]
        assert (call["name"], call["arguments"]) in [("see", '{"k": "a"}'), ("see", '{"k": "b"}')]
        said = chat(url, messages=messages, response_format=schema).json()["choices"][0]["message"]["content"]
        assert said.replace(" ", "") in ('{"k":"a"}', '{"k":"b"}')


def test_the_prompts_tokens_are_limited_with_those_of_its_images(model):
    tokens = len(prompt(model, picture(1))[0])
    assert model.context_length == 512
    with live(model, replace(WIDE, max_input_tokens=tokens)) as url:
        assert chat(url, messages=asking(NOISE), max_tokens=1).status_code == 200
        longer = chat(url, messages=asking(NOISE, text="hello~"))
        assert f"{tokens + 1} tokens" in refused(longer, 400, "context_length_exceeded", "messages")
        large = chat(url, messages=asking(part(url_of(picture(1, 64, 64)))))
        assert "the images alone have 64 tokens" in refused(large, 400, "context_length_exceeded", "messages")


# What is refused


def png_of(width, height):
    """The beginning of a PNG file that claims to be so large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def cut(url):
    return f"{url.partition(',')[0]},{base64.b64encode(base64.b64decode(url.partition(',')[2])[:-900]).decode()}"


FRAMES = {"save_all": True, "append_images": [picture(2)]}
BAD_URLS = [
    ("https://example.com/cat.png", "nothing is fetched"),
    ("http://127.0.0.1:1/cat.png", "nothing is fetched"),
    ("file:///etc/passwd", "nothing is fetched"),
    ("/etc/passwd", "nothing is fetched"),
    ("", "nothing is fetched"),
    (NOISE["image_url"]["url"].replace("png", "svg+xml"), "must begin with one of"),
    ("data:text/plain;base64,aGVsbG8=", "must begin with one of"),
    ("data:image/png,aGVsbG8=", "must begin with one of"),
    ("data:image/png;base64,a*b", "not base64"),
    ("data:image/png;base64,aGVsbG8", "not base64"),
    ("data:image/png;base64,é", "not base64"),
    ("data:image/png;base64,aGVsbG8=", "not a PNG image"),
    ("data:image/png;base64,", "not a PNG image"),
    (url_of(picture(1), "gif").replace("gif", "png"), "not a PNG image"),
    (cut(url_of(picture(1))), "cut off or broken"),
    (url_of(picture(1), "gif", **FRAMES), "animation"),
    (url_of(Image.new("I;16", (40, 24))), "8 bits a channel"),
    (url_of(Image.new("RGB", (500, 2))), "takes no image of 500 x 2 pixels"),
    (png_of(5000, 5000), "5000 x 5000 pixels; the limit is 16777216"),
    (png_of(60_000, 60_000), "far too many pixels; the limit is 16777216"),
]


@pytest.mark.parametrize(("address", "message"), BAD_URLS)
def test_what_is_no_image_in_the_request_is_refused(url, address, message):
    response = chat(url, messages=[*HELLO, *asking(NOISE, part(address))])
    assert message in refused(response, 400, "invalid_value", "messages.1.content.1.image_url.url")


BAD_PARTS = [
    (asking({"type": "image_url"}), "invalid_value", "messages.0.content.0.image_url"),
    (asking({"type": "image_url", "image_url": "data:"}), "invalid_value", "messages.0.content.0.image_url"),
    (asking({"type": "image_url", "image_url": {}}), "invalid_value", "messages.0.content.0.image_url.url"),
    (asking(part("data:", size=3)), "unsupported_parameter", "messages.0.content.0.image_url.size"),
    (asking(part("data:", detail="huge")), "invalid_value", "messages.0.content.0.image_url.detail"),
    (asking({**NOISE, "alt": "x"}), "unsupported_parameter", "messages.0.content.0.alt"),
    (asking({"type": "input_audio"}), "invalid_value", "messages.0.content.0"),
    (asking({"type": ["text"]}), "invalid_value", "messages.0.content.0"),
    (asking("text"), "invalid_value", "messages.0.content.0"),
    (asking({"type": "text"}), "invalid_value", "messages.0.content.0.text"),
    ([{"role": "system", "content": [NOISE]}, *HELLO], "invalid_value", "messages.0"),
    (
        asking(part(NOISE["image_url"]["url"], detail="low")),
        "unsupported_parameter",
        "messages.0.content.0.image_url.detail",
    ),
    (
        asking(part(NOISE["image_url"]["url"], detail="high")),
        "unsupported_parameter",
        "messages.0.content.0.image_url.detail",
    ),
    (asking(NOISE, RED, NOISE), "invalid_value", "messages.0.content.2.image_url"),
    (asking(NOISE, text="<|image_pad|>"), "invalid_value", "messages"),
    (asking(NOISE, text="<|video_pad|>"), "invalid_value", "messages"),
]


@pytest.mark.parametrize(("messages", "code", "param"), BAD_PARTS)
def test_parts_that_are_not_honoured_are_refused_where_they_stand(url, messages, code, param):
    assert refused(chat(url, messages=messages), 400, code, param)


def test_a_model_without_vision_says_what_to_do(tiny_model):
    with live(tiny_model) as url:
        response = chat(url, messages=[*HELLO, *asking(RED)])
        message = refused(response, 400, "unsupported_parameter", "messages.1.content.0.image_url")
        assert "send text alone, or serve a model of the Qwen2-VL architecture" in message
        rows = conformance(url, probes=[probe for probe in PROBES if probe.feature == "image part"])["findings"]
    assert rows[0]["verdict"] == "refused"


# What an image looks like


def seen(model, url):
    return read_images([ChatMessage(role="user", content=asking(part(url))[0]["content"])], model, Limits())[0]


def test_images_are_seen_as_a_viewer_shows_them(model):
    clear = Image.new("RGBA", (16, 8), (0, 0, 0, 0))
    clear.putpixel((3, 3), (255, 0, 0, 255))
    shown = seen(model, url_of(clear))
    assert (shown.mode, shown.getpixel((0, 0)), shown.getpixel((3, 3))) == ("RGB", (255, 255, 255), (255, 0, 0))
    turned = Image.Exif()
    turned[0x0112] = 6  # a camera held on its side
    assert seen(model, url_of(picture(1), "jpeg", exif=turned)).size == (24, 40)
    for kind in ("webp", "gif"):
        assert seen(model, url_of(picture(1), kind)).size == (40, 24)
    for mode in ("1", "L", "LA", "P", "RGBA"):
        assert seen(model, url_of(picture(1).convert(mode))).mode == "RGB"
    with pytest.raises(Refusal, match="the limit is 900 in all"):
        read_images(
            [ChatMessage(role="user", content=asking(NOISE)[0]["content"])], model, Limits(max_image_pixels=900)
        )


# What is said about it


def test_the_contract_and_the_openapi_document_tell_of_images(url, tiny_model):
    contract = httpx.get(f"{url}/contract").json()
    assert (contract["limits"]["max_images"], contract["limits"]["max_image_pixels"]) == (2, 4096 * 4096)
    assert "image_url" in contract["request"]["messages"]
    document = httpx.get(f"{url}/openapi.json").json()
    request = {"$ref": "#/components/schemas/ChatRequest", "components": document["components"]}
    request = jsonschema.Draft202012Validator(request)
    request.validate({"messages": asking(NOISE)})
    for wrong in (asking({**NOISE, "type": "image"}), asking({"type": "image_url"}), asking({**NOISE, "alt": "x"})):
        assert not request.is_valid({"messages": wrong})


def test_the_conformance_probe_sees_the_image(url):
    rows = conformance(url, probes=[probe for probe in PROBES if probe.feature == "image part"])["findings"]
    assert rows[0]["verdict"] == "supported"


def test_an_older_checkpoint_has_its_template_beside_the_processor_and_cannot_be_without_one(tmp_path):
    folder = make_tiny_vision_model(tmp_path / "blind")
    template = folder / "chat_template.jinja"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()
    ids, _ = prompt(load_chat_model(str(folder), device="cpu"), picture(1))
    assert ids.count(4) == 15
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(LabError, match="the model blind could not be loaded"):
        load_chat_model(str(folder), device="cpu")
