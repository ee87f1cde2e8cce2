"""The bundle that a training run leaves behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.backends.bundle import CARD, WEIGHTS, Bundle, Card, open_bundle, sha256_of, write_manifest
from fer_lab.core.config import RunConfig
from fer_lab.core.labels import protocol
from fer_lab.training.fit import FitResult

if TYPE_CHECKING:
    from fer_lab.data.faces import FaceDataset


def write_run_bundle(
    result: FitResult,
    config: RunConfig,
    dataset: FaceDataset,
    folder: Path,
    *,
    run_id: str | None = None,
    parent_run_id: str | None = None,
    name: str | None = None,
) -> Bundle:
    """Write card.json, weights.safetensors and the manifest into `folder` (emptied first) and return the bundle."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    shutil.copyfile(result.weights, folder / WEIGHTS)
    rule = protocol(config.data.protocol)
    card = Card(
        schema=1,
        name=name or config.name,
        labels=result.labels,
        protocol=rule.name,
        protocol_version=rule.version,
        label_source=dataset.label_source,
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        backbone=config.model.backbone,
        image_size=result.image_size,
        mean=result.mean,
        std=result.std,
        temperature=result.temperature,
        parameters=result.parameters,
        config=_recorded(config, result.teacher_digests),
        validation={name.removeprefix("val/"): value for name, value in result.validation.items()},
        commit=commit(),
        versions=versions(),
        run_id=run_id,
        parent_run_id=parent_run_id,
    )
    (folder / CARD).write_text(card.to_json(), encoding="utf-8", newline="\n")
    write_manifest(folder)
    return open_bundle(folder)


def _recorded(config: RunConfig, teacher_digests: Sequence[str]) -> dict[str, Any]:
    """The configuration for the card. Weights that were started from and teachers by their content.

    The place of a file says nothing elsewhere, and a teacher's reference may mean another model tomorrow.
    """
    recorded = config.model_dump(mode="json")
    if config.model.weights_file is not None:
        recorded["model"]["weights_file"] = f"sha256:{sha256_of(config.model.weights_file)}"
    if teacher_digests:
        taught = zip(config.train.teachers, teacher_digests, strict=True)
        recorded["train"]["teachers"] = [f"{ref} sha256:{digest}" for ref, digest in taught]
    return recorded


@cache
def commit() -> str:
    """Return the commit of the running code, with `+changes` when files differ from it; `unknown` outside a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", "."],
            cwd=here.parent, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


@cache
def versions() -> dict[str, str]:
    """Return the versions that decide what a run computes."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("fer-lab", "torch", "timm", "numpy", "optuna", "mlflow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
