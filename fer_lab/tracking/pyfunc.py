"""The folder that is registered: MLflow's record, the shim, the requirements, and the bundle untouched.

    MLmodel  shim.py  requirements.txt  python_env.yaml  artifacts/bundle/…

Written by hand: `mlflow.pyfunc.save_model` imports some hundred modules, guesses requirements from the environment and
stores the author's paths. A test loads the result with `mlflow.pyfunc.load_model`.
"""

from __future__ import annotations

import platform
import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from fer_lab import __version__
from fer_lab.backends.bundle import Bundle

BUNDLE_PATH = "artifacts/bundle"
SHIM = "shim.py"


def write_model_folder(bundle: Bundle, folder: Path, *, run_id: str | None, model_id: str) -> None:
    """Write the model folder of `bundle` into `folder`, which must not exist."""
    folder.mkdir(parents=True)
    shutil.copytree(bundle.folder, folder / BUNDLE_PATH)
    shutil.copyfile(Path(__file__).with_name(SHIM), folder / SHIM)
    mlflow_version = _mlflow_version()
    _write(folder / "requirements.txt", f"fer-lab[train]=={__version__}\nmlflow=={mlflow_version}\n")
    environment = {"python": platform.python_version(), "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
    _write(folder / "python_env.yaml", yaml.safe_dump(environment, sort_keys=False))
    record = {
        "flavors": {
            "python_function": {
                "artifacts": {"bundle": {"path": BUNDLE_PATH, "uri": BUNDLE_PATH}},
                "code": None,
                "config": {"runtime": None, "threads": 1},
                "env": {"virtualenv": "python_env.yaml"},
                "loader_module": "mlflow.pyfunc.loaders.code_model",
                "model_code_path": SHIM,
                "python_version": platform.python_version(),
                "streamable": False,
            }
        },
        "metadata": {"bundle_digest": bundle.digest, "labels": list(bundle.card.labels)},
        "mlflow_version": mlflow_version,
        "model_id": model_id,
        "model_size_bytes": sum(path.stat().st_size for path in (folder / BUNDLE_PATH).rglob("*") if path.is_file()),
        "run_id": run_id,
        "utc_time_created": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    }
    _write(folder / "MLmodel", yaml.safe_dump(record, sort_keys=True))


def _mlflow_version() -> str:
    for name in ("mlflow", "mlflow-skinny"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise RuntimeError("mlflow is imported but not installed")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
