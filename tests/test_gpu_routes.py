"""The routes that want a GPU: what they leave where there is one, and where there is none."""

from dataclasses import replace

import pytest

from labkit.environment import choose_device
from labkit.evidence import read_csv, read_manifest
from labkit.routes import load_route
from labkit.training.run_files import RUN_FOLDER
from labkit.verification import Verdict, verify
from labkit.workbook import run_workbook, runner

ON_GPU = choose_device("auto").name == "cuda"
FEW_STEPS = 60


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """Each GPU route's pack. Without a GPU one of the two runs all that it requires, and the other 13.1, its own.

    The training of the fallback is local_cpu's, which test_end_to_end.py runs at its size; a few steps of it do here.
    """
    folders = {route: tmp_path_factory.mktemp(route) / "pack" for route in ("free_colab", "rented_gpu")}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runner, "load_route", lambda name: replace(load_route(name), fallback_train_steps=FEW_STEPS))
        run_workbook("free_colab", folders["free_colab"], required=not ON_GPU)
        run_workbook("rented_gpu", folders["rented_gpu"], lesson=None if ON_GPU else "13.1")
    return folders


@pytest.mark.parametrize("route", ["free_colab", *(["rented_gpu"] if ON_GPU else [])])
def test_a_gpu_route_runs_and_claims_only_what_it_saw(packs, route):
    """Without a GPU the route records that, falls back, and the pack says smoke test."""
    found = verify(packs[route])
    assert found.exit_code == 0, [f for f in found.artifacts if f.verdict is not Verdict.SUPPORTED]
    claims = {claim.name: claim.verdict for claim in found.claims}
    assert claims["Training: CUDA acceptance (GPU)"] is (Verdict.SUPPORTED if ON_GPU else Verdict.NOT_YET)
    steps = load_route(route).train_steps if ON_GPU else FEW_STEPS
    assert int(read_csv(packs[route] / RUN_FOLDER / "training_log.csv")[-1]["step"]) == steps


@pytest.mark.parametrize(("route", "plan"), [("free_colab", "colab_notes.md"), ("rented_gpu", "gpu_plan.md")])
def test_a_gpu_route_begins_with_its_plan(packs, route, plan):
    folder = packs[route]
    assert (folder / plan).exists()
    if not ON_GPU:
        assert "Missing GPU" in (folder / "compute_route.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("route", ["free_colab", "rented_gpu"])
def test_lesson_13_1_is_supported_on_a_gpu_route(packs, route):
    found = verify(packs[route], lesson="13.1")
    assert [item.name for item in found.artifacts if item.verdict is not Verdict.SUPPORTED] == []
    assert "notebooks/13_1_compute_route.ipynb" in read_manifest(packs[route])["files"]
