"""The table's dimensions rebuilt by transformers on the meta device, and the tour of small architectures."""

import pytest
import torch
from PIL import Image

from labkit.errors import LabError
from labkit.generation.architectures import build, config_of, parameter_counts
from labkit.generation.family_tour import (
    LONG,
    SHORT,
    STOPS,
    active_parameters,
    dense_and_mixture,
    mixtral_routers,
    router_use,
    tour,
    visit,
)
from labkit.landscape.models import EMBEDDED, find_model, load_models
from labkit.landscape.weights import expert_parameters

KNOWN = [row for row in load_models() if row.dimensions_known and row.repo_id != EMBEDDED]


def test_most_of_the_table_can_be_rebuilt():
    assert len(KNOWN) >= 65
    assert len({row.model_type for row in KNOWN}) >= 25


@pytest.mark.pinned
def test_every_model_with_known_dimensions_has_the_parameters_that_the_table_says():
    off = {}
    for row in KNOWN:
        counts = parameter_counts(row)
        if abs(counts["total"] / 1e9 / row.params_total_b - 1) > 0.01:
            off[row.repo_id] = (counts["total"] / 1e9, row.params_total_b)
        if abs(counts["encoder"] / 1e9 - (row.encoder_params_b or 0)) > 0.01:
            off[f"{row.repo_id}, encoder"] = (counts["encoder"] / 1e9, row.encoder_params_b)
    assert not off


@pytest.mark.parametrize("name", ["Mixtral-8x22B-Instruct-v0.1", "Qwen3-30B-A3B", "gpt-oss-120b", "MiniMax-M2"])
def test_the_experts_of_a_mixture_are_counted_as_transformers_counts_them(name):
    row = find_model(name)
    assert parameter_counts(row)["experts"] == pytest.approx(expert_parameters(row), rel=0.002)


@pytest.mark.parametrize(
    ("name", "active"), [("Mixtral-8x7B-Instruct-v0.1", 12.9), ("Mixtral-8x22B-Instruct-v0.1", 39.1)]
)
def test_the_active_part_of_mixtral_is_the_published_one(name, active):
    assert active_parameters(build(config_of(find_model(name)))) / 1e9 == pytest.approx(active, rel=0.01)


def test_unknown_dimensions_are_an_error_and_not_a_guess():
    with pytest.raises(LabError, match="not all dimensions of google/gemma-4-31B-it are known"):
        config_of(find_model("gemma-4-31B-it"))


def test_total_is_at_least_active_and_blank_is_never_zero():
    for row in load_models():
        assert row.params_active_b is None or row.params_active_b <= row.params_total_b
        assert 0 not in [
            value for value in vars(row).values() if isinstance(value, (int, float)) and value is not False
        ]


@pytest.fixture(scope="module")
def rows():
    return {row["family"]: row for row in tour()}


def test_the_tour_builds_every_architecture_without_a_network(rows):
    assert list(rows) == [stop.family for stop in STOPS]
    assert {row["weights"] for row in rows.values()} == {"random, small"}
    assert rows["Qwen2.5-VL"]["image"] == "6 tokens"
    assert all(row["next token"].isdigit() for row in rows.values())


def test_the_cache_shows_each_kind_of_attention(rows):
    def kept(family):
        return [int(rows[family][f"cache, {n} tokens"].removesuffix(" B").replace(",", "")) for n in (SHORT, LONG)]

    assert kept("Llama") == [
        2 * 4 * 2 * 16 * 4 * n for n in (SHORT, LONG)
    ]  # keys and values, layers, heads, width, fp32
    assert kept("Qwen3") == [2 * 4 * 2 * 32 * 4 * n for n in (SHORT, LONG)]  # head_dim is not hidden_size / heads
    assert kept("DeepSeek") == [4 * (16 + 8) * 4 * n for n in (SHORT, LONG)]  # the latent and the rotary part
    for family in ("Gemma", "gpt-oss"):  # every other layer stops at its window of 8 tokens
        assert kept(family) == [2 * 2 * 2 * 16 * 4 * (n + 7) for n in (SHORT, LONG)]


def test_an_image_takes_more_tokens_when_it_is_larger():
    stop = next(stop for stop in STOPS if stop.image)
    assert visit(stop, image=Image.new("RGB", (112, 112)))["image"] == "16 tokens"


def test_without_a_card_the_small_model_stands_in_and_says_so():
    assert torch.cuda.is_available() or visit(STOPS[0], real=True)["weights"] == "random, small: no CUDA card"


def test_a_token_meets_two_experts_and_many_tokens_meet_all():
    found = {row["family"]: row for row in dense_and_mixture()}
    assert found["Mixtral"]["experts used by 1 token, first layer"] == "2 of 8"
    assert found["Mixtral"]["experts used by 64 tokens, first layer"] == "8 of 8"
    assert found["Qwen3"]["share"] == "100%"
    assert int(found["Mixtral"]["share"].rstrip("%")) < 50


def test_router_counts_add_up_and_a_dense_model_has_none():
    rows = mixtral_routers(20)
    assert [sum(row[f"expert {n}"] for n in range(8)) for row in rows] == [40] * 4
    with pytest.raises(LabError, match="has no routers"):
        router_use(build(STOPS[0].config, "cpu"), torch.tensor([[1, 2]]))
