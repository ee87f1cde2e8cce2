"""Which view is possible: a window needs tkinter and a display, the page needs neither."""

from __future__ import annotations

from fer_lab.core.browser import has_display


def why_no_window() -> str | None:
    """Return why a window cannot open here, or None when it can."""
    try:
        import tkinter
    except ImportError:
        return "tkinter is not installed (on Debian: apt install python3-tk)"
    try:
        from PIL import ImageTk  # noqa: F401  # asked for, not used
    except ImportError:
        return "Pillow's ImageTk is not installed (on Debian: apt install python3-pil.imagetk)"
    if not has_display():
        return "there is no display"
    try:
        root = tkinter.Tk()
        root.destroy()
    except tkinter.TclError as error:
        return f"no window opens ({error})"
    return None


def choose(view: str) -> tuple[str, str]:
    """Return the view to use (window, web, none) and, for `auto`, the reason of a second choice."""
    if view != "auto":
        return view, ""
    reason = why_no_window()
    return ("window", "") if reason is None else ("web", reason)
