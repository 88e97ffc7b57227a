"""A tiny chat model and a live server around one: what the tests of serving and of the benchmark share."""

import contextlib
import threading
import time

import httpx
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from labkit.serving.app import create_app
from labkit.serving.connections import Server
from labkit.serving.contract import ERRORS, Limits, ServerSettings
from labkit.serving.ports import free_port

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SEEING = (
    "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools>\n"
    'Call one as <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n{% endif %}'
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL = Limits(80, 40, 4096, 30, concurrency=1, queue=1)
LONG = Limits(80, 3000, 4096, 60, concurrency=1, queue=1)
ERROR_FIELDS = {"message", "type", "param", "code"}
HELLO = [{"role": "user", "content": "hello there"}]


def make_tiny_model(folder, **config):
    """A random Llama of 0.1 M parameters with an ASCII tokenizer, which never ends an answer by itself.

    Its heads are 12 wide, which onnxruntime does not run; `config` replaces sizes.
    """
    fast = make_tokenizer(CHATML)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"vocab_size": len(fast), "max_position_embeddings": 4096} | config
    network = LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=1, bos_token_id=0))
    with torch.no_grad():
        network.lm_head.weight[:2] = 0
    network.save_pretrained(folder)
    return folder


def make_tokenizer(template, more=()):
    """ASCII, with the special tokens of ChatML as numbers 0 and 1 and `more` after them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ["hello there user system assistant", "".join(map(chr, range(32, 127))) + "\n"]
    trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=["<|im_start|>", "<|im_end|>", *more])
    tokenizer.train_from_iterator(text * 3, trainer)
    special = {"eos_token": "<|im_end|>", "additional_special_tokens": list(more)}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **special)


def make_tiny_vision_model(folder, **text):
    """A random Qwen2-VL of 0.1 M parameters, laid out as on the hub. An image takes a token for 8 x 8 pixels.

    Its weights are large, so that attention, and with it a wrong position, shows in the logits.
    """
    fast = make_tokenizer(SEEING, ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>"])
    fast.save_pretrained(folder)
    sizes = {"shortest_edge": 64, "longest_edge": 4096}
    Qwen2VLImageProcessorPil(patch_size=4, size=sizes).save_pretrained(folder)
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 2, 2]}
    read = {
        "vocab_size": len(fast),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_parameters": rope,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "initializer_range": 0.3,
        **text,
    }
    see = {"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    ids = {f"{name}_token_id": at for at, name in enumerate(("vision_start", "vision_end", "image"), start=2)}
    config = Qwen2VLConfig(text_config=read, vision_config={**see, "initializer_range": 0.3}, **ids)
    network = Qwen2VLForConditionalGeneration(config)
    with torch.no_grad():
        network.lm_head.weight[:5] = 0
    network.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def live(model, limits=SMALL, drain=None, **settings):
    """A real uvicorn server around `model` in a thread of this process: its base URL."""
    settings = ServerSettings(port=free_port(), limits=limits, **settings)
    server = Server(create_app(model, settings), drain, port=settings.port, log_level="critical")
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield settings.base_url
    finally:
        server.should_exit = True
        thread.join(20)


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def chat(url, **body):
    return httpx.post(f"{url}/v1/chat/completions", json={"messages": HELLO, **body}, timeout=60)


def refused(response, status, code, param=None):
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param), response.text
    assert set(error) == ERROR_FIELDS
    assert "Traceback" not in response.text
    assert ERRORS[code][0] == status
    return error["message"]
