"""A run that was killed goes on with the losses it would have had, and a run of something else is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from labkit.errors import LabError
from labkit.evidence import read_csv, read_json
from labkit.gpt2 import GPT2
from labkit.layout import ROOT
from labkit.training import loop, mini_gpt2, resume
from labkit.training.loop import Trainer
from labkit.training.mini_gpt2 import SNAPSHOT, train_mini_gpt2
from labkit.training.plan import EVALUATION_STEPS, MiniRun, prepare
from labkit.training.precision import Precision
from labkit.training.run_files import RUN_FOLDER, load_mini_gpt2
from labkit.workbook.kill_drill import kill_drill

RUN = MiniRun(
    text=ROOT / "LICENSE", steps=20, batch_size=4, vocab_size=400, block_size=32, n_layer=2, n_head=2, n_embd=32
)
LOSSES = ("step", "train_loss", "val_loss", "learning_rate", "grad_norm")


class Killed(Exception):
    """What stands for a power cut in this process."""


def interrupted(out: Path, at: int, run: MiniRun = RUN) -> None:
    """Start `run` with a snapshot after every step, and die in the middle of step `at`."""
    honest = Trainer.step

    def dying(trainer):
        if trainer.done == at and trainer.settings.steps == run.steps:
            raise Killed
        honest(trainer)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "step", dying)
        with pytest.raises(Killed):
            train_mini_gpt2(out, run, "cpu", snapshot_seconds=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run without an interruption: its folder and result."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train_mini_gpt2(folder, RUN, "cpu")


@pytest.mark.parametrize("at", [1, 7, 10, 19])
def test_a_resumed_run_has_the_losses_and_weights_of_one_that_never_stopped(tmp_path, whole, at):
    interrupted(tmp_path, at)
    assert not (tmp_path / RUN_FOLDER).exists()
    seen = []
    again = train_mini_gpt2(tmp_path, RUN, "cpu", on_row=seen.append, resume=True)
    for mine, theirs in zip(again.rows, whole[1].rows, strict=True):
        assert [getattr(mine, name) for name in LOSSES] == [getattr(theirs, name) for name in LOSSES]
    assert [row.step for row in seen] == [row.step for row in again.rows]
    weights = again.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole[1].model.state_dict().items())
    assert not (tmp_path / SNAPSHOT).exists()
    assert again.rows[-1].elapsed_seconds >= again.rows[-2].elapsed_seconds


def test_resume_without_a_snapshot_starts_at_the_beginning(tmp_path, whole):
    assert train_mini_gpt2(tmp_path, RUN, "cpu", resume=True).rows[-1].val_loss == whole[1].rows[-1].val_loss


def test_another_run_is_refused_and_the_difference_is_named(tmp_path):
    interrupted(tmp_path, 4)
    for change, said in (
        ({"steps": 30}, "steps was 20 and is 30"),
        ({"learning_rate": 1e-4}, "learning_rate was 0.004 and is 0.0001"),
        ({"n_embd": 64}, "n_embd was 32 and is 64"),
        ({"vocab_size": 300}, "tokens was"),
    ):
        with pytest.raises(LabError, match=said):
            train_mini_gpt2(tmp_path, replace(RUN, **change), "cpu", resume=True)
    text = tmp_path / "other.txt"
    text.write_text(RUN.text.read_text(encoding="utf-8") + "one more line\n", encoding="utf-8")
    with pytest.raises(LabError, match="text was"):
        train_mini_gpt2(tmp_path, replace(RUN, text=text), "cpu", resume=True)
    assert (tmp_path / SNAPSHOT).exists()


def test_a_broken_snapshot_is_named(tmp_path):
    (tmp_path / SNAPSHOT).write_bytes(b"half a file")
    with pytest.raises(LabError, match="is not a snapshot"):
        train_mini_gpt2(tmp_path, RUN, "cpu", resume=True)


def test_measured_numbers_belong_to_the_interrupted_run(tmp_path, monkeypatch):
    """--minutes measures the speed once; a second measurement would make another schedule."""
    speeds = iter([(20 + EVALUATION_STEPS) * 4 * 32 / 0.6])
    monkeypatch.setattr(mini_gpt2, "tokens_per_second", lambda *_: next(speeds))
    run = replace(RUN, minutes=0.01)
    interrupted(tmp_path, 5, replace(run, steps=20))
    assert train_mini_gpt2(tmp_path, run, "cpu", resume=True).run.steps == 20


def test_a_full_disk_leaves_the_snapshot_before(tmp_path, monkeypatch):
    interrupted(tmp_path, 5)
    before = (tmp_path / SNAPSHOT).read_bytes()

    def full(path, content):
        raise LabError("could not write: no space left", "free some space")

    monkeypatch.setattr(resume, "write_atomically", full)
    with pytest.raises(LabError, match="no space left"):
        train_mini_gpt2(tmp_path, RUN, "cpu", resume=True, snapshot_seconds=0)
    assert (tmp_path / SNAPSHOT).read_bytes() == before


def test_a_loss_that_explodes_keeps_the_last_good_snapshot(tmp_path):
    wild = replace(RUN, learning_rate=50.0, steps=60)
    with pytest.raises(LabError, match=r"the loss rose to|no longer a number"):
        train_mini_gpt2(tmp_path, wild, "cpu", snapshot_seconds=0)
    held = torch.load(tmp_path / SNAPSHOT, weights_only=True)["state"]
    assert all(torch.isfinite(tensor).all() for tensor in held["model"].values())
    assert held["step"] < 60


def test_an_update_that_ruins_the_weights_is_never_saved(tmp_path):
    """Its loss was still a number; the norm of its gradients shows it."""
    prepared = prepare(RUN)
    trainer = prepared.trainer(GPT2(prepared.config), RUN, "cpu")
    snapshots = resume.Snapshots(tmp_path / SNAPSHOT, 0)
    trainer.held_out_loss = lambda: 6.0
    trainer._first_row(lambda row: None)
    trainer.step()
    snapshots.save(trainer)
    trainer.plain.lm_head.weight.register_hook(lambda gradient: gradient * torch.inf)
    trainer.step()
    trainer.close()
    with pytest.raises(LabError, match="no longer a number at step 2"):
        snapshots.save(trainer)
    held = torch.load(tmp_path / SNAPSHOT, weights_only=True)["state"]
    assert held["step"] == 1


def test_a_new_run_does_not_leave_the_old_snapshot_to_be_resumed(tmp_path, whole):
    interrupted(tmp_path, 7, replace(RUN, seed=99))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "run", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train_mini_gpt2(tmp_path, RUN, "cpu")
    assert train_mini_gpt2(tmp_path, RUN, "cpu", resume=True).rows[-1].val_loss == whole[1].rows[-1].val_loss


def test_another_precision_is_another_run(tmp_path, monkeypatch):
    """What "auto" chooses may differ on the machine that a cloud lends next time."""
    monkeypatch.setattr(loop, "choose_precision", lambda *_: Precision("fp32", "it has no others"))
    interrupted(tmp_path, 4)
    monkeypatch.setattr(loop, "choose_precision", lambda *_: Precision("bf16", "it has them"))
    with pytest.raises(LabError, match="precision was fp32 and is bf16"):
        train_mini_gpt2(tmp_path, RUN, "cpu", resume=True)


def test_kill_9_and_the_same_command_with_resume(tmp_path):
    """The real thing, as 13.2 does it: a process that gets no chance to tidy up."""
    rows = kill_drill(tmp_path)
    assert [row["step"] for row in rows] == [str(step) for step in range(0, 151, 15)]
    assert {row["same"] for row in rows} == {"yes"}
    assert {row["computed"] for row in rows} == {"before the kill", "after the kill"}
    logs = [read_csv(tmp_path / name / RUN_FOLDER / "training_log.csv") for name in ("killed", "alone")]
    assert [[row[name] for name in LOSSES] for row in logs[0]] == [[row[name] for name in LOSSES] for row in logs[1]]
    assert read_json(tmp_path / "killed" / RUN_FOLDER / "environment_report.json")["steps"] == 150
    load_mini_gpt2(tmp_path / "killed" / RUN_FOLDER / "mini_gpt2_checkpoint.pt")


def test_a_drill_whose_run_fails_says_why(tmp_path):
    (tmp_path / "killed").write_text("a file where a folder must be")
    with pytest.raises(LabError, match="ended before it could be killed"):
        kill_drill(tmp_path)


def test_a_compiled_run_leaves_a_snapshot_with_plain_names(tmp_path):
    """torch.compile puts a prefix before every name, and a resumed run is not compiled yet."""
    prepared = prepare(RUN)
    trainer = prepared.trainer(GPT2(prepared.config), RUN, "cpu")
    trainer.model = torch.compile(trainer.plain)  # compiles nothing before it is called
    assert set(trainer.state()["model"]) == set(GPT2(prepared.config).state_dict())
    trainer.close()
