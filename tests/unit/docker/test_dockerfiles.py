"""The Dockerfiles and scripts below docker/: linted, and true to the project."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from compose_file import ROOT, SERVICES_BUILT

DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
each_file = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)


@each_file
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    """Every rule, none ignored."""
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint has wheels for Linux only")
    done = subprocess.run([hadolint, "--failure-threshold", "style", path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@each_file
def test_what_is_copied_exists_and_is_not_ignored(path: Path) -> None:
    """A COPY of a file that .dockerignore hides fails only in the build."""
    shown = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    sources = {source for copy in copies for source in copy.split()[:-1]}
    assert sources
    assert {source for source in sources if not (ROOT / source).exists() or source not in shown} == set()


@pytest.mark.parametrize("script", sorted((ROOT / "docker").glob("*.sh")), ids=lambda p: p.name)
def test_a_script_parses(script: Path) -> None:
    """In the smallest shell at hand."""
    shell = shutil.which("dash") or shutil.which("sh")
    if shell is None:
        pytest.skip("no shell here")
    assert subprocess.run([shell, "-n", script], capture_output=True).returncode == 0


def test_images_carry_the_version_of_the_project() -> None:
    """So that a pull of an older tag is not taken for this one."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert {image.rpartition(":")[2] for image in SERVICES_BUILT.values()} == {version}


def test_the_servers_libraries_have_hashes() -> None:
    """They are outside uv.lock, so their file must say what may be installed."""
    lines = (ROOT / "docker" / "server-requirements.txt").read_text(encoding="utf-8")
    pinned = re.findall(r"^([\w-]+)==", lines, re.MULTILINE)
    hashed = re.findall(r"^([\w-]+)==\S+ \\\n +--hash=sha256:[0-9a-f]{64}", lines, re.MULTILINE)
    assert pinned == hashed
    assert "boto3" in pinned
