"""A tiny chat model and a live server around one: what the tests of serving and of the benchmark share."""

import contextlib
import threading
import time

import httpx
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from labkit.serving.app import create_app
from labkit.serving.connections import Server
from labkit.serving.contract import ERRORS, Limits, ServerSettings
from labkit.serving.process import free_port

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL = Limits(80, 40, 4096, 30, concurrency=1, queue=1)
LONG = Limits(80, 3000, 4096, 60, concurrency=1, queue=1)
ERROR_FIELDS = {"message", "type", "param", "code"}
HELLO = [{"role": "user", "content": "hello there"}]


def make_tiny_model(folder):
    """A random Llama of 0.1 M parameters with an ASCII tokenizer, which never ends an answer by itself."""
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ["hello there user system assistant", "".join(map(chr, range(32, 127))) + "\n"]
    tokenizer.train_from_iterator(text * 3, trainers.BpeTrainer(vocab_size=160, special_tokens=special))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=CHATML)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=4096,
        eos_token_id=1,
        bos_token_id=0,
    )
    network = LlamaForCausalLM(config)
    with torch.no_grad():
        network.lm_head.weight[:2] = 0
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


def until(condition, seconds=20):
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
