"""The demo image, really built: on a debootstrap base, without a daemon or an image registry, and its program run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import live_bundle
import pytest
from compose_file import ROOT

pytestmark = pytest.mark.slow

LIMIT_MB = 700


def test_the_demo_image_is_small_and_labels_the_drawn_faces(tmp_path: Path) -> None:
    """The script ends with the image's size; before it stands the last line of the demo that ran inside."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("debootstrap and chroot need root")
    absent = [tool for tool in ("buildah", "debootstrap") if shutil.which(tool) is None]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}. Run: apt-get install buildah debootstrap")
    bundle = live_bundle.write(tmp_path / "bundle")
    work = tmp_path / "work"
    try:
        done = subprocess.run(
            ["sh", ROOT / "docker" / "build-demo.sh", bundle], env=os.environ | {"WORK": str(work)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        lines = done.stdout.splitlines()
        image, demo = json.loads(lines[-1]), json.loads(next(line for line in reversed(lines[:-1]) if line.startswith("{")))
        print(f"{image['image']}: {image['size_mb']} MB")
        assert 100 < image["size_mb"] < LIMIT_MB
        assert (demo["runtime"], demo["model"]) == ("openvino", "tiny")
        assert demo["frames_with_face"] == demo["frames"] > 0
        packages = {path.name for path in work.glob("storage/vfs/dir/*/opt/fer_lab/lib/python3*/site-packages/*")}
        assert "fer_lab" in packages
        assert packages & {"torch", "timm", "optuna", "onnxruntime", "pandas"} == set()
    finally:
        shutil.rmtree(work, ignore_errors=True)
