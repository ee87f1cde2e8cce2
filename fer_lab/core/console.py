"""What a verb prints: tables and `next:` for people, progress on stderr, one JSON object as the last line of stdout."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from fer_lab.core.errors import FerLabError, InputError
from fer_lab.core.signals import Terminated, terminable

Result = Mapping[str, Any]


def run(parser: argparse.ArgumentParser, body: Callable[[argparse.Namespace], Result], argv: Sequence[str] | None) -> int:
    """Parse `argv`, run `body`, print its result as the last line of stdout and return the exit code.

    `body` returns the JSON object of the verb. An `exit_code` attribute of a raised FerLabError is the exit code; any
    other exception is an internal error (1). `--debug` shows the traceback.
    """
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words  # taken out by hand: a parser with subcommands would know it only before the subcommand
    words = [word for word in words if word != "--debug"]
    write_utf8()
    args = _parsed(parser, words)
    args.debug = debug
    try:
        with terminable():
            print_result(body(args))
    except Terminated:
        return _failed("terminated", 143, args.debug)
    except KeyboardInterrupt:
        return _failed("interrupted", 130, args.debug)
    except FerLabError as error:
        code = _failed(str(error), error.exit_code, args.debug)
        if error.result is not None:
            print_result(error.result)
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _failed(f"{error.strerror or error}{where}", InputError.exit_code, args.debug)
    except Exception as error:
        return _failed(f"internal error: {type(error).__name__}: {error}. Run again with --debug and report it", 1, args.debug)
    return 0


def write_utf8() -> None:
    """Make stdout and stderr UTF-8 whatever the locale says: tables and messages have signs that others lack."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")


def say(text: str = "") -> None:
    """Print a line for people on stdout."""
    print(text, flush=True)


def note(text: str) -> None:
    """Print a line of progress or a remark on stderr; nobody who listens there is no reason to stop (a closed terminal)."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def next_command(command: str) -> None:
    """Print the exact command to type next."""
    say(f"next: {command}")


def quoted(word: object) -> str:
    """Return a path or name as a shell of this system takes it for one word."""
    return subprocess.list2cmdline([str(word)]) if sys.platform == "win32" else shlex.quote(str(word))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table for people; numbers are right-aligned."""
    from rich.console import Console
    from rich.table import Table

    view = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        view.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        view.add_row(*(str(cell) for cell in row))
    width = None if sys.stdout.isatty() else 160
    Console(width=width, markup=False, emoji=False).print(view)  # a cell such as "[cpu]" is text


def print_result(result: Result) -> None:
    """Print the machine-readable last line."""
    say(json.dumps(result, ensure_ascii=False, allow_nan=False))


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse with options anywhere: `config.yaml --workers 2 key=value` would lose its override in parse_args."""
    try:
        return parser.parse_intermixed_args(argv)
    except TypeError:  # a parser with subcommands cannot be intermixed
        return parser.parse_args(argv)


def _is_number(cell: object) -> bool:
    text = str(cell).replace(" ", "").replace("%", "").replace(",", "")
    try:
        float(text)
    except ValueError:
        return text in {"", "–"}
    return True


def _failed(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    note(f"error: {' '.join(message.split())}")
    return code
