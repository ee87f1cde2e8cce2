"""Stopped by a signal, resumed by run id: the same weights as a run that was never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_backbone
from test_train import SMALL, lab, no_pictures, run

from fer_lab.training.progress import Progress

__all__ = ["lab", "no_pictures"]  # the fixtures

pytestmark = pytest.mark.usefixtures("no_pictures")


STOPPED = """
import os, sys
import pytest
from tiny_backbone import register_tiny
from fer_lab import train
from fer_lab.training.progress import Progress

register_tiny(pytest.MonkeyPatch())
number, epoch, step = map(int, sys.argv[1:4])
real = Progress.on_step

def on_step(self, now, done, steps):
    real(self, now, done, steps)
    if (now, done) == (epoch, step):
        os.kill(os.getpid(), number)

Progress.on_step = on_step
sys.exit(train.main(sys.argv[4:]))
"""


def run_until(number: int, epoch: int, step: int, *arguments: str) -> tuple[int, str]:
    """Run the verb in a process of its own that gets a real signal after that step; returns exit code and stderr."""
    if os.name != "posix":
        pytest.skip("os.kill delivers no signal handler on Windows")
    environment = {**os.environ, "PYTHONPATH": str(Path(tiny_backbone.__file__).parent)}
    command = [sys.executable, "-c", STOPPED, str(int(number)), str(epoch), str(step), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


@contextmanager
def signal_after(epoch: int, step: int) -> Iterator[None]:
    """SIGTERM to this process after that step of a run."""
    if os.name != "posix":
        pytest.skip("os.kill delivers no signal handler on Windows")
    real = Progress.on_step

    def signalled(self: Progress, now: int, done: int, steps: int) -> None:
        real(self, now, done, steps)
        if (now, done) == (epoch, step):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Progress, "on_step", signalled)
        yield


def test_a_stopped_run_is_killed_in_the_store_and_resumes_to_the_same_weights(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM gives 143, Ctrl-C 130; each epoch is logged once; a finished run is not resumed."""
    from fer_lab.tracking.registry import resolve
    from fer_lab.tracking.store import open_store

    arguments = [*SMALL, "train.epochs=3", "augment.mixup=0.2"]
    _, whole, _ = run(capsys, *arguments)
    code, err = run_until(signal.SIGTERM, 1, 3, *arguments)
    assert code == 143
    run_id = err.strip().split()[-1]
    assert f"--resume {run_id}" in err
    store = open_store()
    assert store.run_info(run_id)["status"] == "KILLED"
    code, _ = run_until(signal.SIGINT, 2, 1, "--resume", run_id)
    assert code == 130
    code, resumed, err = run(capsys, "--resume", run_id)
    assert code == 0, err
    assert resumed["run_id"] == run_id
    assert store.run_info(run_id)["status"] == "FINISHED"
    a, b = (resolve(f"runs:/{r['run_id']}", store).bundle for r in (whole, resumed))
    assert a.files["weights.safetensors"] == b.files["weights.safetensors"]
    assert a.card.temperature == b.card.temperature
    steps = [m.step for m in store.client.get_metric_history(run_id, "val/accuracy")]
    assert steps == [0, 1, 2]
    code, _, err = run(capsys, "--resume", run_id)
    assert code == 2
    assert "nothing to resume" in err


def test_a_run_whose_process_was_killed_is_ended_by_the_next(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody could say so at the time: the next run does, and it goes on from its checkpoint."""
    from fer_lab.tracking.store import open_store

    code, _ = run_until(9, 1, 1, *SMALL, "train.epochs=2")
    assert code == -9
    (folder,) = (lab / "mlruns" / "work").iterdir()
    store = open_store()
    assert store.run_info(folder.name)["status"] == "RUNNING"
    code, other, err = run(capsys, *SMALL, "train.epochs=1")
    assert code == 0, err
    assert f"it can go on: python -m fer_lab.train --resume {folder.name}" in err
    assert (store.run_info(folder.name)["status"], store.run_info(other["run_id"])["status"]) == ("KILLED", "FINISHED")
    store.client.update_run(folder.name, status="RUNNING")
    store.client.delete_run(folder.name)  # in the UI, say: no later run may stumble over it
    code, _, err = run(capsys, *SMALL, "train.epochs=1")
    assert (code, folder.name in err) == (0, False), err
    store.client.restore_run(folder.name)
    code, result, err = run(capsys, "--resume", folder.name)
    assert (code, result["run_id"], result["epochs_run"]) == (0, folder.name, 2), err


def test_several_seeds_resume_where_they_stopped(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Finished children are kept, the stopped one continues."""
    code, err = run_until(signal.SIGTERM, 0, 2, *SMALL, "train.epochs=1", "--seeds", "0,1")
    assert code == 143
    parent = err.strip().split()[-1]
    code, result, err = run(capsys, "--resume", parent)
    assert code == 0, err
    assert result["run_id"] == parent
    assert len(set(result["runs"])) == 2


@pytest.mark.parametrize("seeds", [(), ("--seeds", "0,1")], ids=["one", "seeds"])
def test_a_run_does_not_go_on_on_other_data(lab: Path, capsys: pytest.CaptureFixture[str], seeds: tuple[str, ...]) -> None:
    """Redrawn meanwhile: refused before anything of the run is touched; drawn as before, it goes on."""
    from fer_lab.data import datasets
    from fer_lab.tracking.store import open_store

    before = datasets.resolve("synthetic", lab)
    code, err = run_until(signal.SIGTERM, 0, 2, *SMALL, "train.epochs=1", *seeds)
    assert code == 143
    run_id = err.strip().split()[-1]
    store = open_store()
    tags = store.run_info(run_id)["tags"]
    assert tags["fer.fingerprint"] == before.fingerprint
    replace(before, votes=before.votes[::-1].copy()).save(lab / "data" / "synthetic")
    code, _, err = run(capsys, "--resume", run_id)
    assert code == 2
    assert "was begun on synthetic" in err
    assert "other data are never one result" in err
    assert (store.run_info(run_id)["status"], store.run_info(run_id)["tags"]) == ("KILLED", tags)
    before.save(lab / "data" / "synthetic")
    code, _, err = run(capsys, "--resume", run_id)
    assert code == 0, err


def test_a_refused_change_leaves_the_run_as_it_was(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What decides the weights may not change, the number of threads may; either way the next plain --resume goes on."""
    from fer_lab.tracking.store import open_store

    with signal_after(1, 1):
        _, _, err = run(capsys, *SMALL)
    run_id = err.strip().split()[-1]
    code, _, err = run(capsys, "--resume", run_id, "train.lr=0.1")
    assert code == 2
    assert "must be the same run; changed: train.lr: " in err
    assert open_store().run_info(run_id)["status"] == "KILLED"
    with signal_after(1, 2):
        code, _, err = run(capsys, "--resume", run_id, "train.threads=2")
    assert code == 143, err
    code, result, err = run(capsys, "--resume", run_id)
    assert code == 0, err
    assert result["epochs_run"] == 2


def test_seeds_that_were_stopped_between_two_of_them_go_on_with_the_same_configuration(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the parent; a finished seed is of the old configuration, so another one is refused."""
    from fer_lab.tracking.store import open_store

    with signal_after(0, 6):  # the last step: the seed ends, the next one does not begin
        code, _, err = run(capsys, *SMALL, "train.epochs=1", "--seeds", "0,1")
    assert code == 143
    assert "stopped before seed 1. Go on with: python -m fer_lab.train --resume " in err
    parent = err.strip().split()[-1]
    code, _, err = run(capsys, "--resume", parent, "train.lr=0.1")
    assert code == 2
    assert "must be the same run; changed: train.lr: " in err
    store = open_store()
    assert store.run_info(parent)["status"] == "KILLED"
    [first] = store.children(parent)
    code, result, err = run(capsys, "--resume", parent)
    assert code == 0, err
    assert (result["run_id"], result["runs"][0]) == (parent, first["run_id"])


def test_a_run_that_still_trains_is_not_resumed(
    lab: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes in one folder of checkpoints would end each other's run; the second is told, the first ends well."""
    told: list[tuple[int, str]] = []
    real = Progress.on_step

    def on_step(self: Progress, epoch: int, done: int, steps: int) -> None:
        real(self, epoch, done, steps)
        if not told:
            (folder,) = (lab / "mlruns" / "work").iterdir()
            code, _, err = run(capsys, "--resume", folder.name)
            told.append((code, err))

    monkeypatch.setattr(Progress, "on_step", on_step)
    code, result, err = run(capsys, *SMALL)
    assert (code, told[0][0]) == (0, 5), err
    assert f"another process trains run {result['run_id']}; nothing was changed" in told[0][1]
    assert not list((lab / "mlruns" / "work").iterdir())


def test_a_run_that_is_not_here_cannot_be_resumed(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown id, and a configuration beside --resume."""
    code, _, err = run(capsys, "--resume", "0" * 32)
    assert code == 2
    assert "no run" in err
    code, _, err = run(capsys, "some.yaml", "--resume", "0" * 32)
    assert code == 2
    assert "give no file" in err
