"""Opens a page in the user's browser, where there is one that does not take the terminal."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser


def has_display() -> bool:
    """Whether a window can be shown; elsewhere Python would start a browser of the terminal, and wait for its end."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_page(address: str) -> None:
    """Show the address and go on: a browser that starts slowly holds nobody up. Nothing happens without a display."""
    if has_display():
        threading.Thread(target=webbrowser.open, args=(address,), name="browser", daemon=True).start()
