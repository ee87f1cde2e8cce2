"""A page is shown without holding anybody up, and only where it does not take the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import webbrowser
from pathlib import Path

import pytest

from fer_lab.core import browser


def test_a_browser_that_starts_slowly_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started beside."""
    go_on, opened = threading.Event(), threading.Event()

    def slow(address: str) -> bool:
        go_on.wait(30)
        opened.set()
        return True

    monkeypatch.setattr(webbrowser, "open", slow)
    monkeypatch.setenv("DISPLAY", ":7")
    browser.open_page("http://localhost:1/")
    assert not opened.is_set()
    go_on.set()
    assert opened.wait(10)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")
def test_without_a_display_no_browser_of_the_terminal_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """w3m would take it over."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(webbrowser, "open", lambda address: pytest.fail("started"))
    browser.open_page("http://localhost:1/")
    assert not [thread for thread in threading.enumerate() if thread.name == "browser"]


def test_a_process_that_ends_at_once_waits_until_the_browser_has_the_address(tmp_path: Path) -> None:
    """As `ui` does on a remote store; BROWSER serves without a display (an editor's remote terminal)."""
    if sys.platform == "win32":
        pytest.skip("a script is no program there")
    program = tmp_path / "browser"
    program.write_text(f"#!/bin/sh\nsleep 0.3\necho $1 > {tmp_path}/opened\n")
    program.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    code = "from fer_lab.core.browser import open_page; open_page('http://localhost:1/', wait_s=10)"
    subprocess.run([sys.executable, "-c", code], env=environment | {"BROWSER": str(program)}, check=True)
    assert (tmp_path / "opened").read_text() == "http://localhost:1/\n"
