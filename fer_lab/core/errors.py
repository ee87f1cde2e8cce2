"""The exceptions of fer_lab and the exit code of each.

    FerLabError            1  something failed that is nobody's input
    ├── InputError         2  bad input, data or usage
    │   ├── NotFound       2  a thing that was named does not exist
    │   └── MissingPart    2  a library of an extra is not installed
    ├── Refused            3  a gate or a tolerance said no
    ├── IntegrityError     4  a manifest does not match, a file was tampered with
    ├── Conflict           5  somebody else won; nothing was changed
    └── Interrupted  130/143  Ctrl-C or SIGTERM; progress was saved

A message is one line for a person: what was got, what was expected, what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class FerLabError(Exception):
    """Base of every error that fer_lab raises on purpose.

    `exit_code` is what the verb returns; `result`, if given, is still printed as the verb's last line of JSON (a
    refusal reports what it measured).
    """

    exit_code = 1

    def __init__(self, message: str, *, result: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.result = result


class InputError(FerLabError):
    """Bad input, data or usage."""

    exit_code = 2


class NotFound(InputError):
    """A file, model, alias, dataset or run that was named does not exist."""


class Unreachable(InputError):
    """The tracking server does not answer."""


class MissingPart(InputError):
    """A library is not installed; the message names the extra that brings it."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {library}, which is not installed. Install it with: uv sync --extra {extra}")


class Refused(FerLabError):
    """A gate or a tolerance refused; what was measured stays recorded."""

    exit_code = 3


class IntegrityError(FerLabError):
    """A file is missing, extra or altered with respect to its manifest."""

    exit_code = 4


class Conflict(FerLabError):
    """Somebody else changed the state first, or an existing object does not fit; nothing was changed."""

    exit_code = 5


class Interrupted(FerLabError):
    """Ctrl-C (signal 2) or SIGTERM (signal 15); the exit code is 128 + signal."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def heed(should_stop: Callable[[], int | None] | None, message: str) -> None:
    """Raise Interrupted with `message` when `should_stop` gives the number of a signal; without one nothing stops."""
    signal_number = should_stop() if should_stop is not None else None
    if signal_number is not None:
        raise Interrupted(signal_number, message)


def refuse_newer(where: object, schema: int, known: int) -> None:
    """Raise InputError for a file (`where`) of a later schema than the one that this fer_lab writes, TypeError for no number."""
    if schema > known:
        raise InputError(f"{where}: schema {schema} is newer than this fer_lab understands (≤ {known}); update fer_lab")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest known name, else an empty string.

    >>> nearest("learning_rat", ["learning_rate", "epochs"])
    "; did you mean 'learning_rate'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
