"""Three routes, one file each; the weakest one that can prove what is asked for is chosen."""

from dataclasses import replace

import pytest
import yaml

from labkit.errors import LabError
from labkit.layout import ROUTES
from labkit.routes import (
    ROUTE_NAMES,
    Constraints,
    choose_route,
    load_route,
    load_routes,
    loss_band_says,
    training_size,
)
from labkit.routes.route import parse_route


def test_a_loss_outside_its_band_says_so():
    route = replace(load_route("rented_gpu"), loss_band=(), fallback_loss_band=(2.0, 2.4))
    assert (
        loss_band_says(route, "cpu", 2.2) == "held-out loss 2.20 is inside the band 2.00 to 2.40 of runs of this size"
    )
    assert "outside the band 2.00 to 2.40" in loss_band_says(route, "cpu", 2.6)
    assert "look at the text" in loss_band_says(route, "cpu", 1.2)
    assert "verify" in loss_band_says(route, "cuda", 2.2)


def test_every_route_says_what_it_proves_and_when_to_stop():
    for route in load_routes():
        assert route.proves
        assert route.cannot_prove
        assert route.stop_rule
        assert route.fallback
        assert route.required_artifacts
        assert set(route.minutes) == {"13.0", "13.1", "13.2", "13.3", "13.4", "13.5", "13.6", "13.7"}


def test_each_gpu_route_asks_for_its_own_plan_and_the_rest_is_common():
    cpu, colab, rented = load_routes()
    assert set(colab.required_artifacts) - set(cpu.required_artifacts) == {"colab_notes.md"}
    assert set(rented.required_artifacts) - set(cpu.required_artifacts) == {"gpu_plan.md"}
    assert rented.hourly_usd > 0
    assert rented.budget_usd > 0


def test_the_route_files_are_flat_enough_for_papermill():
    for name in ROUTE_NAMES:
        values = yaml.safe_load((ROUTES / f"{name}.yaml").read_text(encoding="utf-8"))
        assert values["route"] == name
        assert all(key.isidentifier() for key in values)


def test_an_unknown_route_is_refused():
    with pytest.raises(LabError, match="no route called 'cloud'"):
        load_route("cloud")


def test_a_route_file_with_a_wrong_field_is_named(tmp_path):
    text = (ROUTES / "local_cpu.yaml").read_text(encoding="utf-8").replace("stop_rule:", "stop_rul:")
    (tmp_path / "odd.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(LabError, match=r"odd\.yaml has missing or unknown fields: stop_rul, stop_rule"):
        parse_route(tmp_path / "odd.yaml")


@pytest.mark.parametrize(
    ("constraints", "route", "reason"),
    [
        (Constraints(), "free_colab", "lends one"),
        (Constraints(private_data=True), "local_cpu", "private data"),
        (Constraints(can_use_google=False), "local_cpu", "Google account"),
        (Constraints(has_nvidia_gpu=True), "local_cpu", "already has an NVIDIA GPU"),
        (Constraints(needs_throughput=True, budget_usd=3), "rented_gpu", "budget of $3.00"),
        (Constraints(needs_stable_api=True, budget_usd=3, private_data=True), "rented_gpu", "end without notice"),
        (Constraints(needs_stable_api=True, private_data=True), "local_cpu", "no budget"),
        (Constraints(needs_throughput=True), "free_colab", "no budget"),
    ],
)
def test_the_weakest_sufficient_route_is_chosen_with_its_reasons(constraints, route, reason):
    decision = choose_route(constraints)
    assert decision.route == route
    assert any(reason in said for said in decision.reasons)
    assert decision.upgrade_signal


def test_a_gpu_route_without_its_gpu_takes_the_fallback():
    rented, planned, fallback = load_route("rented_gpu"), (2000, 64), (300, 12)
    assert training_size(rented, "cuda", planned, fallback)[:2] == planned
    steps, batch, why = training_size(rented, "cpu", planned, fallback)
    assert (steps, batch) == fallback
    assert "shows none" in why
    assert training_size(load_route("local_cpu"), "cpu", planned, fallback)[:2] == planned


@pytest.mark.parametrize(
    ("card", "gib", "batch"),
    [
        ("Tesla T4", 14.7, 32),  # as torch shows these cards, in GiB
        ("NVIDIA L4", 22.2, 32),
        ("NVIDIA A100-SXM4-40GB", 39.4, 64),
        ("NVIDIA A100-SXM4-80GB", 79.2, 128),
        ("Tesla K80", 11.2, 16),
        ("a very small card", 0.01, 1),
    ],
)
def test_the_batch_follows_the_memory_of_the_card_and_says_why(card, gib, batch):
    steps, found, why = training_size(load_route("free_colab"), "cuda", (1000, 32), (300, 12), (card, gib))
    assert (steps, found) == (1000, batch)
    assert why == f"free_colab plans batches of 32 for a card of 15 GiB, and this {card} has {gib:.1f}"


def test_a_card_changes_nothing_on_the_local_route_or_for_the_fallback():
    planned, fallback = (300, 12), (100, 6)
    assert training_size(load_route("local_cpu"), "cuda", planned, fallback, ("NVIDIA L4", 80.0))[:2] == planned
    assert training_size(load_route("free_colab"), "cpu", planned, fallback)[:2] == fallback


@pytest.mark.parametrize("name", ROUTE_NAMES)
def test_every_band_is_empty_or_two_losses_that_rise(name):
    route = load_route(name)
    for band in (route.loss_band, route.fallback_loss_band):
        assert not band or 0 < band[0] < band[1]
    assert route.fallback_loss_band  # the CPU sizes were measured
