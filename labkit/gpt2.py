"""GPT-2 by hand: token and position embeddings, blocks of causal attention and MLP, a head tied to the embedding.

Parameter names and layouts are those of transformers' `GPT2LMHeadModel` (a linear map is stored input x output there),
so a checkpoint trained here loads into that class, and a test finds equal logits. Attention is written as plain matrix
products because that can be read line by line; at these sizes it is also faster on a CPU than the fused kernel.
Source of the architecture: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class GPT2Config:
    """Sizes of the network. `block_size` is the longest context in tokens; `n_embd` must be a multiple of `n_head`."""

    vocab_size: int
    block_size: int = 64
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128


class Linear(nn.Module):
    """y = x W + b with W stored as (inputs, outputs), as GPT-2's published weights are."""

    def __init__(self, inputs: int, outputs: int, std: float = 0.02):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * std)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.T, self.bias)


class Attention(nn.Module):
    """Causal self-attention: each token looks at itself and at the tokens before it, never ahead."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd, 0.02 / math.sqrt(2 * config.n_layer))
        seen = causal_mask(config.block_size).float().log()  # 0 or -inf, to be added to the scores
        self.register_buffer("mask", seen, persistent=False)

    def forward(self, x: Tensor, cache: dict[str, Tensor] | None = None) -> Tensor:
        """`x` (batch, time, width). With a `cache`, x is what follows the tokens whose keys and values it holds."""
        batch, time, width = x.shape
        q, k, v = (part.view(batch, time, self.n_head, -1).transpose(1, 2) for part in self.c_attn(x).split(width, 2))
        if cache is not None:
            k, v = (torch.cat([cache[name], new], 2) if cache else new for name, new in (("k", k), ("v", v)))
            cache.update(k=k, v=v)
        if x.is_cuda and cache is None:  # at long contexts a GPU needs the kernel that never stores the scores
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mixed = self.mix(q, k, v)
        return self.c_proj(mixed.transpose(1, 2).reshape(batch, time, width))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What each query gathers, (batch, head, time, width / head); `k` and `v` may reach further back than `q`."""
        time, seen = q.shape[2], k.shape[2]
        scores = (q / math.sqrt(q.shape[3])) @ k.transpose(2, 3)  # (batch, head, time, seen)
        scores = scores + self.mask[seen - time : seen, :seen]
        return scores.softmax(-1) @ v


class MLP(nn.Module):
    """Each token by itself: four times wider, a smooth non-linearity, and back."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, 0.02 / math.sqrt(2 * config.n_layer))

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(functional.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(config.n_embd), Attention(config)
        self.ln_2, self.mlp = nn.LayerNorm(config.n_embd), MLP(config)

    def forward(self, x: Tensor, cache: dict[str, Tensor] | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """Token ids, shape (batch, time), to logits, shape (batch, time, vocab_size).

    GPT-2's embeddings start at a standard deviation of 0.02, at a width of 768. A narrow model learns faster from a
    larger one (benchmarks/README.md has the figures), so here it is two thirds of ln(vocab_size) / n_embd where that is
    more. The bound: with a tied head a token's first score for itself is about width x deviation, and one that came
    near ln(vocab_size) would lift the first loss off that of even belief.
    """

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                "ln_f": nn.LayerNorm(config.n_embd),
            }
        )
        std = max(0.02, 2 / 3 * math.log(config.vocab_size) / config.n_embd)
        nn.init.normal_(self.transformer.wte.weight, std=std)
        nn.init.normal_(self.transformer.wpe.weight, std=0.01)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, ids: Tensor, caches: list[dict[str, Tensor]] | None = None) -> Tensor:
        """With `caches`, one dict for each block and empty at first, `ids` are only what follows the last call's."""
        done = caches[0]["k"].shape[2] if caches and caches[0] else 0
        positions = torch.arange(done, done + ids.shape[1], device=ids.device)
        x = self.transformer.wte(ids) + self.transformer.wpe(positions)
        for number, block in enumerate(self.transformer.h):
            x = block(x, caches[number] if caches else None)
        return self.lm_head(self.transformer.ln_f(x))

    @torch.no_grad()
    def generate(self, ids: Tensor, tokens: int, temperature: float = 0.0, top_k: int = 0, seed: int = 0) -> Tensor:
        """`ids`, shape (1, time), and `tokens` more after them; temperature 0 takes the likeliest token each time.

        `top_k` draws from that many likeliest tokens (all when 0). Keys and values are cached until the context is
        full; from then on every position moves with each token, so each token is computed from its whole window.
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        caches: list[dict[str, Tensor]] = [{} for _ in self.transformer.h]
        fresh = ids[:, -self.config.block_size :]
        for _ in range(tokens):
            logits = self(fresh, caches)[0, -1]
            next_id = logits.argmax() if temperature <= 0 else draw(logits / temperature, top_k, generator)
            ids = torch.cat([ids, next_id.to(ids.device).view(1, 1)], dim=1)
            fresh = ids[:, -1:]
            if caches[0]["k"].shape[2] == self.config.block_size:
                caches, fresh = [{} for _ in caches], ids[:, -self.config.block_size :]
        return ids


def draw(logits: Tensor, top_k: int, generator: torch.Generator) -> Tensor:
    """One token id drawn by its probability. Drawn on the CPU, so that a seed means the same on every device."""
    weights = logits.softmax(-1).cpu()
    if top_k:
        weights = weights.masked_fill(weights < weights.topk(min(top_k, len(weights))).values[-1], 0)
    return torch.multinomial(weights, 1, generator=generator)


def causal_mask(time: int) -> Tensor:
    """(time, time), True where the row's token may look at the column's token: itself and all before it."""
    return torch.ones(time, time, dtype=torch.bool).tril()


def anatomy(config: GPT2Config, tokens: int, seed: int = 13) -> list[tuple[str, tuple[int, ...], int]]:
    """Send `tokens` tokens through a model with random weights and watch: (part, shape of its output, parameters).

    The parts come in the order in which the tokens pass through them.
    """
    torch.manual_seed(seed)
    model = GPT2(config)
    seen: list[tuple[str, tuple[int, ...], int]] = []
    parts = {"token embedding": model.transformer.wte, "position embedding": model.transformer.wpe}
    first = model.transformer.h[0]
    parts |= {"first block: attention": first.attn, "first block: MLP": first.mlp}
    parts |= {f"block {number}": block for number, block in enumerate(model.transformer.h, start=1)}
    parts |= {"final layer norm": model.transformer.ln_f, "head (tied to the token embedding)": model.lm_head}

    def watch(name: str):
        def hook(part: nn.Module, _inputs: tuple, output: Tensor) -> None:
            seen.append((name, tuple(output.shape), sum(p.numel() for p in part.parameters())))

        return hook

    for name, part in parts.items():
        part.register_forward_hook(watch(name))
    with torch.no_grad():
        model(torch.arange(tokens).unsqueeze(0) % config.vocab_size)
    return seen
