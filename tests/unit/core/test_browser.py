"""A page is shown without holding anybody up, and only where it does not take the terminal."""

from __future__ import annotations

import sys
import threading
import time
import webbrowser

import pytest

from fer_lab.core import browser


def test_a_browser_that_starts_slowly_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started beside."""
    opened = threading.Event()

    def slow(address: str) -> bool:
        time.sleep(1)
        opened.set()
        return True

    monkeypatch.setattr(webbrowser, "open", slow)
    monkeypatch.setenv("DISPLAY", ":7")
    began = time.monotonic()
    browser.open_page("http://localhost:1/")
    assert time.monotonic() - began < 0.5
    assert opened.wait(10)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")
def test_without_a_display_no_browser_of_the_terminal_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """w3m would take it over."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(webbrowser, "open", lambda address: pytest.fail("started"))
    browser.open_page("http://localhost:1/")
    assert not [thread for thread in threading.enumerate() if thread.name == "browser"]
