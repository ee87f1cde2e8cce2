"""A browser, a display, a running demo; each skipped with its reason when the machine lacks it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_bundle import write


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The tiny model: brightness decides."""
    return write(tmp_path / "tiny")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start `demo --view web` with these arguments; returns its address."""
    running: list[subprocess.Popen[str]] = []

    def starter(*arguments: object) -> str:
        command = [sys.executable, "-m", "fer_lab.demo", *map(str, arguments), "--view", "web", "--port", "0", "--no-browser"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8", cwd=tmp_path
        )
        running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("page: "), line
        return line.split()[1]

    yield starter
    for process in running:
        process.terminate()
        process.communicate(timeout=20)


@pytest.fixture
def browser() -> Iterator[Callable[..., Any]]:
    """Launch Debian's Chromium, headless, with these extra arguments."""
    playwright = pytest.importorskip("playwright.sync_api")
    binary = os.environ.get("FER_LAB_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if binary is None:
        pytest.skip("no chromium on this machine (apt install chromium, or FER_LAB_CHROMIUM)")
    with playwright.sync_playwright() as driver:
        opened = []

        def launch(*arguments: str) -> Any:
            opened.append(driver.chromium.launch(executable_path=binary, args=["--no-sandbox", *arguments]))
            return opened[-1]

        yield launch
        for one in opened:
            one.close()


@pytest.fixture(scope="session")
def display() -> Iterator[str]:
    """A private X display by Xvfb, one for all: Tk keeps its connection and ends the process when the display goes."""
    pytest.importorskip("tkinter")
    if shutil.which("Xvfb") is None:
        pytest.skip("no Xvfb on this machine (apt install xvfb)")
    reading, writing = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1280x800x24"], pass_fds=[writing], stderr=subprocess.DEVNULL
    )
    os.close(writing)
    with os.fdopen(reading) as answer:
        name = f":{answer.readline().strip()}"
    before = os.environ.get("DISPLAY")
    os.environ["DISPLAY"] = name
    yield name
    if before is None:
        del os.environ["DISPLAY"]
    else:
        os.environ["DISPLAY"] = before
    server.terminate()
    server.wait(timeout=10)
