"""Fixtures that every test may use: a private store root, a small drawn dataset, one bundle trained once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

# Before anything imports the libraries: no telemetry, no progress bars, no hub, two threads at most.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "2",
}
for name in ("FER_LAB_HOME", "FER_LAB_STORAGE", "FER_LAB_MODEL", "MLFLOW_TRACKING_URI"):
    os.environ.pop(name, None)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store root: FER_LAB_HOME and the current directory."""
    monkeypatch.setenv("FER_LAB_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def drawn():  # type: ignore[no-untyped-def]  # the annotation would import numpy before the environment is set
    """800 drawn faces with simulated votes."""
    from fer_lab.data.synthetic import draw

    return draw(800, seed=7)


@pytest.fixture(scope="session")
def trained_bundle(drawn, tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[no-untyped-def]
    """A bundle of a briefly but really trained B0 (torch only). Read it, never change it: copy first."""
    from fer_lab.core.config import load_run_config
    from fer_lab.training.bundle import write_run_bundle
    from fer_lab.training.fit import fit

    folder = tmp_path_factory.mktemp("trained")
    config = load_run_config(
        None,
        [
            "data.dataset=synthetic", "train.epochs=3", "train.image_size=32", "train.batch_size=32", "train.device=cpu",
            "train.lr=2e-3", "train.ema_decay=null", "train.warmup_epochs=0.5", "augment.erasing=0", "model.drop_path_rate=0",
        ],
    )  # fmt: skip
    result = fit(config, drawn, folder / "fit")
    return write_run_bundle(result, config, drawn, folder / "bundle").folder


@pytest.fixture
def bundle_copy(trained_bundle: Path, tmp_path: Path) -> Path:
    """A private copy of the trained bundle, to be altered."""
    return Path(shutil.copytree(trained_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def ferplus_folder() -> Path:
    """The folder with the real FERPlus files, named by FER_LAB_FERPLUS."""
    where = os.environ.get("FER_LAB_FERPLUS")
    if not where or not Path(where).is_dir():
        pytest.skip("FER_LAB_FERPLUS does not name the folder with the real FERPlus files")
    return Path(where)


@pytest.fixture(scope="session")
def ferplus_zip(ferplus_folder: Path) -> Path:
    """Microsoft's folder layout of FERPlus as one zip."""
    return ferplus_folder / "FER2013-png.zip"
