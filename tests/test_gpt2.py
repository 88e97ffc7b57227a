"""The hand-built GPT-2: equal to transformers' own, blind to the future, and sane at the start."""

import math

import pytest
import torch
from transformers import GPT2Config as LibraryConfig
from transformers import GPT2LMHeadModel

from labkit.gpt2 import GPT2, GPT2Config, anatomy, causal_mask

CONFIG = GPT2Config(vocab_size=211, block_size=32, n_layer=3, n_head=4, n_embd=48)


@pytest.fixture(scope="module")
def model() -> GPT2:
    torch.manual_seed(5)
    return GPT2(CONFIG).eval()


@pytest.fixture(scope="module")
def library_model(model) -> GPT2LMHeadModel:
    config = LibraryConfig(
        vocab_size=CONFIG.vocab_size,
        n_positions=CONFIG.block_size,
        n_layer=CONFIG.n_layer,
        n_head=CONFIG.n_head,
        n_embd=CONFIG.n_embd,
        bos_token_id=0,
        eos_token_id=None,
    )
    library = GPT2LMHeadModel(config).eval()
    library.load_state_dict(model.state_dict(), strict=True)
    return library


def test_state_dict_loads_into_transformers_and_gives_equal_logits(model, library_model):
    ids = torch.randint(0, CONFIG.vocab_size, (2, 32))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), library_model(ids).logits, rtol=1e-4, atol=1e-5)


def test_greedy_text_is_that_of_transformers(model, library_model):
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    theirs = library_model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert model.generate(ids, 20).tolist() == theirs.tolist()


def test_the_cache_changes_nothing_but_the_time(model):
    """Token by token with a cache, the logits are those of the whole text; past the context the window slides."""
    ids = torch.randint(0, CONFIG.vocab_size, (1, 32))
    caches: list[dict] = [{} for _ in range(CONFIG.n_layer)]
    with torch.no_grad():
        whole = model(ids)[0]
        parts = torch.cat([model(piece, caches)[0] for piece in ids.split([5, 1, 1, 25], dim=1)])
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    text, plain = model.generate(ids[:, :3], 40), ids[:, :3]
    with torch.no_grad():
        for _ in range(40):
            plain = torch.cat([plain, model(plain[:, -32:])[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(text, plain)


def test_top_k_draws_from_the_likeliest_tokens(model):
    ids = torch.tensor([[7]])
    assert torch.equal(model.generate(ids, 15, 1.0, top_k=1, seed=3), model.generate(ids, 15))
    with torch.no_grad():
        likely = set(model(ids)[0, -1].topk(3).indices.tolist())
    assert {model.generate(ids, 1, 5.0, top_k=3, seed=seed)[0, -1].item() for seed in range(40)} == likely


def test_a_later_token_never_changes_an_earlier_logit(model):
    ids = torch.randint(0, CONFIG.vocab_size, (1, 20))
    changed = ids.clone()
    changed[0, 12] = (ids[0, 12] + 1) % CONFIG.vocab_size
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


def test_first_loss_is_that_of_even_belief(model):
    ids = torch.randint(0, CONFIG.vocab_size, (16, 33))
    with torch.no_grad():
        logits = model(ids[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
    assert loss == pytest.approx(math.log(CONFIG.vocab_size), rel=0.05)


def test_attention_by_hand_is_that_of_the_fused_kernel(model):
    """A GPU takes the kernel, so a run there computes what this machine's tests have checked."""
    q, k, v = torch.randn(3, 2, 4, 10, 12).unbind()
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(model.transformer.h[0].attn.mix(q, k, v), fused)


def test_mask_shows_each_token_itself_and_the_past():
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


def test_anatomy_lists_every_part_with_its_shape():
    parts = anatomy(CONFIG, 7)
    names = [name for name, _, _ in parts]
    assert names[0] == "token embedding"
    assert names[-1].startswith("head")
    assert len(names) == 2 + 2 + CONFIG.n_layer + 2
    assert dict((name, shape) for name, shape, _ in parts)["block 3"] == (1, 7, 48)
    assert parts[-1][1] == (1, 7, CONFIG.vocab_size)


def test_sampling_repeats_with_its_seed(model):
    ids = torch.tensor([[7]])
    assert torch.equal(model.generate(ids, 15, 1.0, seed=1), model.generate(ids, 15, 1.0, seed=1))
    assert not torch.equal(model.generate(ids, 15, 1.0, seed=1), model.generate(ids, 15, 1.0, seed=2))
