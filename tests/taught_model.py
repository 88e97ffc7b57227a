"""A tiny model that learned a few answers by heart: clients meet calls, thinking and plain text that a model wrote."""

import json

import torch
from test_tool_calls import HERMES_TEMPLATE
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from labkit.generation import load_chat_model
from labkit.serving.contract import Limits
from labkit.serving.plan import Planner
from labkit.serving.schema import ChatRequest

LIMITS = Limits(1500, 120, 65536, 60, concurrency=2, queue=4)
MOST_STEPS = 400
# As Qwen's: the model opens its thinking itself, and thinking that comes back has a place in the prompt.
TEMPLATE = HERMES_TEMPLATE.replace(
    "message.role + '\\n' + message.content }}",
    "message.role + '\\n' }}"
    "{%- if message.reasoning_content %}"
    "{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}"
    "{{- message.content }}",
)


def teach(start, folder, lessons):
    """A model like that in `start` which answers each request of `lessons`, (body, answer), as told; kept in `folder`.

    Its tokenizer is made for these texts: short prompts are learned in seconds.
    """
    tokenizer = AutoTokenizer.from_pretrained(start).train_new_from_iterator([TEMPLATE, json.dumps(lessons)] * 9, 400)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(start, vocab_size=len(tokenizer)))
    network.save_pretrained(folder)
    model = load_chat_model(str(folder), device="cpu")
    prompts = [Planner(model, LIMITS).plan(ChatRequest.model_validate(body)).prompts[0] for body, _ in lessons]
    learn(network, prompts, [[*model.text_ids(answer), tokenizer.eos_token_id] for _, answer in lessons])
    network.save_pretrained(folder)
    return load_chat_model(str(folder), device="cpu")


def learn(network, prompts, answers):
    """Train until every token of every answer is by far the likeliest."""
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for at, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        ids[at, : len(row)] = torch.tensor(row)
        labels[at, len(row) - len(answer) : len(row)] = torch.tensor(answer)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(MOST_STEPS):
        loss = network(ids, labels=labels).loss
        if loss < 0.01:
            return
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    raise AssertionError(f"not learned: {loss}")
