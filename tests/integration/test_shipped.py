"""The shipped champion: whole after any checkout, registered by one command, run by the demo when the registry is empty."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fer_lab import demo, register
from fer_lab.backends.bundle import open_bundle
from fer_lab.backends.session import Predictor
from fer_lab.core.config import load_run_config
from fer_lab.core.errors import InputError, Interrupted
from fer_lab.live.lookup import shipped_bundle
from tests import linear_bundle

ROOT = Path(__file__).parents[2]
MAX_MB = 24


@pytest.fixture
def shipped() -> Path:
    """The bundle folder in this checkout."""
    folder = shipped_bundle()
    assert folder is not None
    return folder


def test_it_is_small_and_says_what_it_is(shipped: Path) -> None:
    """At most 24 MB, INT8 and FP16-compressed IR, each measured, and a model card."""
    bundle = open_bundle(shipped)
    assert sum(path.stat().st_size for path in shipped.rglob("*") if path.is_file()) <= MAX_MB * 1e6
    assert {"openvino-int8", "openvino-fp16"} <= set(bundle.runtimes)
    measured = json.loads((shipped / "parity.json").read_text(encoding="utf-8"))["runtimes"]
    assert {name: measured[name]["state"] for name in bundle.runtimes} == dict.fromkeys(bundle.runtimes, "verified")
    card = (shipped.parent / f"{shipped.name}.md").read_text(encoding="utf-8")
    for heading in ("Intended use", "Data", "Known failures", "Licence"):
        assert f"## {heading}" in card


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="needs the git checkout")
def test_it_survives_a_checkout_that_rewrites_line_ends(shipped: Path, tmp_path: Path) -> None:
    """`core.autocrlf=true`, as on Windows: the manifest still fits, because .gitattributes keeps these bytes."""
    clone = tmp_path / "clone"
    command = ["git", "-c", "core.autocrlf=true", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)]
    subprocess.run(command, check=True, capture_output=True)
    assert open_bundle(clone / shipped.relative_to(ROOT)).digest == open_bundle(shipped).digest


def test_one_command_registers_it(shipped: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert register.main([str(shipped), "--alias", "challenger"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (answer["name"], answer["version"]) == ("fer-ferplus-8", 1)


def test_the_demo_runs_it_when_the_registry_is_empty(home: Path, shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--source", "sample", "--view", "none", "--seconds", "2"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["digest"] == open_bundle(shipped).digest
    assert answer["frames"] > 0


@pytest.mark.parametrize(("protocol", "labels"), [("ferplus8", 8), ("ferplus5", 5)])
def test_it_teaches_without_its_torch_weights(
    protocol: str, labels: int, shipped: Path, drawn: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slim bundle answers for the training faces in a runtime that it has; a run with fewer labels hears it on those.

    Minutes for the real faces: how far it is and how long it will take is said.
    """
    from fer_lab.search import teachers
    from fer_lab.search.teachers import resolve_teachers, teacher_probs

    monkeypatch.setattr(teachers, "_heard", {})
    monkeypatch.setattr(teachers, "FACES_AT_ONCE", 300)
    monkeypatch.setattr(teachers, "SAY_S", 0)

    config = load_run_config(None, ["data.dataset=synthetic", f"data.protocol={protocol}", f"train.teachers=[{shipped}]"])
    probs = teacher_probs(resolve_teachers(config, None), config, drawn)
    assert probs is not None
    with Predictor.open(shipped, open_bundle(shipped).runtimes[0]) as predictor:
        expected = predictor.predict(drawn.pixels[drawn.indices("train")])[:, :labels]
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probs, expected, atol=1e-3)
    assert f": 300 of {len(expected)}, about 1 min left" in capsys.readouterr().err

    again = teacher_probs(resolve_teachers(config, None), config, drawn)  # the next trial of a study, the next seed
    assert again is not None
    assert (again == probs).all()
    assert "teacher" not in capsys.readouterr().err
    assert teacher_probs(resolve_teachers(config, None), config, drawn.take(np.arange(1, len(drawn)))) is not None
    assert "predicting" in capsys.readouterr().err  # other faces


def test_a_run_can_be_stopped_while_its_teachers_answer(shipped: Path, drawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes for the real faces: Ctrl-C is not kept waiting for the first step."""
    from fer_lab.search import teachers
    from fer_lab.search.teachers import resolve_teachers, teacher_probs

    monkeypatch.setattr(teachers, "_heard", {})
    monkeypatch.setattr(teachers, "FACES_AT_ONCE", 64)
    asked = iter([None, None, 2])
    config = load_run_config(None, ["data.dataset=synthetic", f"train.teachers=[{shipped}]"])
    with pytest.raises(Interrupted, match="teachers answered") as caught:
        teacher_probs(resolve_teachers(config, None), config, drawn, lambda: next(asked))
    assert caught.value.exit_code == 130


def test_a_teacher_that_lacks_a_label_is_refused(drawn: Any, tmp_path: Path) -> None:
    from fer_lab.search.teachers import resolve_teachers

    linear_bundle.write(tmp_path / "five", drawn, runtimes=("openvino",), protocol_name="ferplus5")
    config = load_run_config(None, ["data.dataset=synthetic", f"train.teachers=[{tmp_path / 'five'}]"])
    with pytest.raises(InputError, match=r"predicts neutral, .*, anger; this run needs neutral, .*, contempt"):
        resolve_teachers(config, None)


def test_its_training_weights_come_back_out_of_its_ir(shipped: Path, drawn: Any, home: Path) -> None:
    """`experiments/recover_weights.py` gives a network with the same answers, from which a run can go on."""
    import torch
    from safetensors.torch import load_file

    from fer_lab.models import backbones
    from fer_lab.models.deployable import Deployable

    drawn.save(home / "data" / "synthetic")
    script = [
        sys.executable,
        str(ROOT / "experiments" / "recover_weights.py"),
        str(shipped),
        "--dataset",
        "synthetic",
        "--out",
        "recovered/back",
    ]
    subprocess.run(script, check=True, capture_output=True)
    card = open_bundle(shipped).card
    network = backbones.build(card.backbone, classes=len(card.labels))
    network.load_state_dict(load_file(home / "recovered" / "back"))
    graph = Deployable(network, card.image_size, card.mean, card.std, card.temperature).eval()
    some = drawn.pixels[:32]
    with torch.no_grad():
        ours = graph(torch.from_numpy(some[:, None])).numpy()
    with Predictor.open(shipped, "openvino-fp16") as predictor:
        np.testing.assert_allclose(ours, predictor.predict(some), atol=2e-3)
