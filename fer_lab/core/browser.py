"""Opens a page in the user's browser, where there is one that does not take the terminal."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser


def has_display() -> bool:
    """Whether a window can be shown; elsewhere Python would start a browser of the terminal, and wait for its end."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_page(address: str, *, wait_s: float = 0.0) -> None:
    """Show the address and go on after `wait_s` at most: a browser that starts slowly holds nobody up.

    Nothing happens without a display, unless BROWSER names a program that shows pages somewhere else.
    """
    if has_display() or os.environ.get("BROWSER"):
        opening = threading.Thread(target=webbrowser.open, args=(address,), name="browser", daemon=True)
        opening.start()
        opening.join(wait_s)
