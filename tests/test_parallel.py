"""Several processes for one run: the same command under torchrun, with DDP and with FSDP."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch.distributed import run as launcher
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from labkit.cli import main
from labkit.errors import LabError
from labkit.evidence import read_csv, read_json
from labkit.training.data import IGNORED, Batches, TokenData
from labkit.training.parallel import WAYS, World, join_world
from labkit.training.run_files import RUN_FOLDER, load_mini_gpt2
from labkit.training.sizes import SIZES

# fp32, because the rounding of bf16 shows where two ways compute the same in another order.
TRAIN = ("train", "--device", "cpu", "--size", "tiny", "--steps", "12", "--precision", "fp32")


TORCHRUN = ("--standalone", "--nproc-per-node", "2")


def torchrun(folder: Path, *words: object) -> str:
    """What torchrun's processes printed; the launcher is this process, which has loaded torch already.

    Raises ChildFailedError as torchrun does.
    """
    logs = ("--log-dir", folder, "--redirects", "3")
    launcher.main(list(map(str, (*TORCHRUN, *logs, *words))))
    return "".join(path.read_text() for path in sorted(folder.rglob("stdout.log")))


def torchrun_command(*words: object) -> str:
    """The same as a command in a process of its own, as learners type it."""
    command = [sys.executable, "-m", "torch.distributed.run", *TORCHRUN, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Runs that nobody interrupts: for each way its folder and what it printed."""
    runs, run = {}, torchrun_command
    for way in WAYS:
        out = tmp_path_factory.mktemp(way)
        runs[way] = out, run("-m", "labkit.cli", *TRAIN, "--parallel", way, "--out", out)
        run = partial(torchrun, tmp_path_factory.mktemp("logs"))
    return runs


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_one_model_and_one_of_them_writes(straight, way):
    out, printed = straight[way]
    rows = read_csv(out / RUN_FOLDER / "training_log.csv")
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"])
    report = read_json(out / RUN_FOLDER / "environment_report.json")
    assert (report["processes"], report["parallel"]) == (2, way)
    assert printed.count("smoke test: held-out loss") == 1
    again = (
        f"torchrun --nproc-per-node 2 -m labkit.cli train --out DIR --device cpu --steps 12 --seed 13 --parallel {way}"
    )
    assert again in (out / RUN_FOLDER / "README.md").read_text(encoding="utf-8")


def test_shares_of_a_model_learn_what_copies_of_it_learn(straight):
    """FSDP and DDP compute the same step in another order; the checkpoint of shares is whole again."""
    folders = [straight[way][0] / RUN_FOLDER for way in WAYS]
    for one, other in zip(*(read_csv(folder / "training_log.csv") for folder in folders), strict=True):
        assert float(one["val_loss"]) == pytest.approx(float(other["val_loss"]), abs=2e-3)
    weights = [load_mini_gpt2(folder / "mini_gpt2_checkpoint.pt")[0] for folder in folders]
    for one, other in zip(*(model.parameters() for model in weights), strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=5e-3)


KILLED = """
import os, signal
from labkit.training.loop import Trainer
honest = Trainer.step
def dying(trainer):
    if trainer.done == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    honest(trainer)
Trainer.step = dying
from labkit.cli import main
main()
"""


@pytest.mark.parametrize("way", WAYS)
def test_killed_processes_go_on_together(straight, tmp_path, way):
    (tmp_path / "killed.py").write_text(KILLED)
    out = tmp_path / "run"
    train = (*TRAIN, "--parallel", way, "--out", out)
    with pytest.raises(ChildFailedError, match="Signal 9"):
        torchrun(tmp_path / "killed", tmp_path / "killed.py", *train)
    assert not (out / RUN_FOLDER).exists()
    torchrun(tmp_path / "resumed", "-m", "labkit.cli", *train, "--resume")
    logs = [read_csv(folder / RUN_FOLDER / "training_log.csv") for folder in (out, straight[way][0])]
    names = ("step", "train_loss", "val_loss", "grad_norm")
    assert [[row[name] for name in names] for row in logs[0]] == [[row[name] for name in names] for row in logs[1]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process whose batch is as large as the two batches together."""
    out = tmp_path_factory.mktemp("alone")
    batch = SIZES["tiny"].batch_size * 2
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["labkit", *TRAIN, "--batch-size", str(batch), "--out", str(out)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return read_csv(out / RUN_FOLDER / "training_log.csv")


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_have_the_losses_of_one_with_twice_the_batch(straight, alone, way):
    """The log has four decimals, so that 1e-4 is one step of its last digit."""
    rows = read_csv(straight[way][0] / RUN_FOLDER / "training_log.csv")
    assert [row["step"] for row in rows] == [row["step"] for row in alone]
    for one, two in zip(alone, rows, strict=True):
        for name in ("train_loss", "val_loss"):
            assert float(two[name]) == pytest.approx(float(one[name]), abs=1.001e-4), (name, one["step"])


def test_accelerate_starts_the_same_run(straight, tmp_path):
    """`accelerate launch --multi_gpu` gives its processes torchrun's variables. They run on the CPU here."""
    from accelerate.commands import launch

    how = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    words = ["--dynamo_backend", "no", "-m", "labkit.cli", *TRAIN, "--parallel", "ddp", "--out", str(tmp_path)]
    with mock.patch.dict(os.environ):
        launch.launch_command(launch.launch_command_parser().parse_args([*how, *words]))
    losses = [
        [(row["step"], row["train_loss"], row["val_loss"]) for row in read_csv(out / RUN_FOLDER / "training_log.csv")]
        for out in (tmp_path, straight["ddp"][0])
    ]
    assert losses[0] == losses[1]


def test_each_process_draws_its_share_of_one_batch():
    data = TokenData(np.arange(500, dtype=np.uint16))
    whole, _ = data.batch(np.random.default_rng(13), 6, 8)
    shares = []
    for rank in range(3):
        batches = Batches(data, np.random.default_rng(13), 2, 8, "cpu", World(rank, 3))
        shares.append(batches.next()[0])
        batches.close()
    assert torch.equal(torch.cat(shares), whole)


def test_no_process_is_left_without_a_scored_token():
    scored = np.zeros(200, dtype=bool)
    scored[::40] = True
    data = TokenData(np.arange(200, dtype=np.uint16), scored)
    rng = np.random.default_rng(1)
    for _ in range(30):
        _, targets = data.batch(rng, 4, 16, shares=2)
        assert all((part != IGNORED).any() for part in targets.chunk(2))


def test_an_unknown_way_and_too_many_processes_are_refused(monkeypatch):
    with pytest.raises(LabError, match="no parallel way called 'magic'"):
        join_world("cpu", "magic")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(LabError, match="process 1 has no GPU of its own"):
        join_world("cuda")
