"""The console: exit codes, one-line errors, the last line of JSON."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fer_lab import __main__
from fer_lab.core import console, errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.FerLabError("x"), 1), (errors.InputError("x"), 2), (errors.NotFound("x"), 2), (errors.Refused("x"), 3),
        (errors.IntegrityError("x"), 4), (errors.Conflict("x"), 5), (errors.Interrupted(2, "x"), 130),
        (errors.Interrupted(15, "x"), 143), (KeyboardInterrupt(), 130), (RuntimeError("x"), 1), (OSError(28, "No space"), 2),
    ],
)  # fmt: skip
def test_each_error_has_its_exit_code(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """An error is one line on stderr and the right exit code, never a traceback."""

    def body(_: argparse.Namespace) -> dict[str, object]:
        raise error

    assert console.run(argparse.ArgumentParser(), body, []) == code
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert shown.out == ""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process there at once, and there is no SIGHUP")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_terminated_verb_cleans_up_and_says_so(name: str) -> None:
    """It unwinds as Ctrl-C does: what has to be removed is removed, and the exit code is 143."""
    script = (
        "import argparse, signal, time\n"
        "from fer_lab.core import console\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # the tests themselves may run under nohup
        "def body(_):\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        time.sleep(1)\n"
        "        print('cleaned', flush=True)\n"
        "raise SystemExit(console.run(argparse.ArgumentParser(), body, []))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(2):  # a launcher and its process group both pass it on
            process.send_signal(getattr(signal, name))
            time.sleep(0.2)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (143, "cleaned\n", "error: terminated\n")


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process there at once")
@pytest.mark.parametrize("hears", ["terminable", "Stop"])
def test_a_signal_passed_on_in_a_process_last_moment_is_not_its_exit_code(hears: str) -> None:
    """Python puts handlers back before it takes its modules apart, which a large one makes long; there the signal comes again."""
    script = (
        "import argparse, os, signal, sys, time\n"
        "from fer_lab.core import console\n"
        "from fer_lab.core.signals import Stop\n"
        "class Large:\n"
        "    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGTERM, out=os.write):\n"
        "        out(1, b'last')\n"
        "        kill(me, number)\n"
        "sys.modules['large'] = Large()\n"
        "def body(_):\n"
        "    if sys.argv[1] == 'terminable':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    with Stop() as stop:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        stop.check()\n"
        "code = console.run(argparse.ArgumentParser(), body, [])\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"  # between the verb's end and Python's
        "raise SystemExit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, hears], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (143, "last"), done.stderr


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there is no such terminal")
def test_a_closed_terminal_lets_a_verb_clean_up(tmp_path: Path) -> None:
    """What it still prints goes nowhere; nohup, which ignores the signal, lets it go on."""
    script = (
        "import argparse, pathlib, signal, sys, time\n"
        "from fer_lab.core import console\n"
        "signal.signal(signal.SIGHUP, getattr(signal, sys.argv.pop(1)))\n"
        "def body(_):\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(2)\n"
        "        return {}\n"
        "    finally:\n"
        "        try:\n"
        "            console.say('cleaning up')\n"
        "        except OSError as error:\n"
        "            pathlib.Path('ended').write_text(str(error))\n"
        "        else:\n"
        "            pathlib.Path('ended').write_text('said')\n"
        "raise SystemExit(console.run(argparse.ArgumentParser(), body, []))\n"
    )
    for disposition, code in (("SIG_DFL", 143), ("SIG_IGN", None)):
        mine, its = os.openpty()
        started = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-c", script, disposition], stdin=its, stdout=its, stderr=its, cwd=tmp_path, start_new_session=True
        ) as process:
            os.close(its)
            said = b""
            while b"\n" not in said:  # the word and the end of the line may come apart
                said += os.read(mine, 100)
            os.close(mine)
            process.send_signal(signal.SIGHUP)  # what the kernel sends to the session of a terminal that is gone
            process.wait(30)
        if code is not None:
            assert process.returncode == code
            assert (tmp_path / "ended").read_text() == "said"
        else:
            assert time.monotonic() - started > 2


def test_the_list_of_verbs_is_printed_whatever_the_locale() -> None:
    """A pipe of Windows is cp1252, which has no arrow."""
    done = subprocess.run(
        [sys.executable, "-m", "fer_lab"], env=os.environ | {"PYTHONIOENCODING": "cp1252"}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "a registry version" in done.stdout.decode("utf-8")


def test_the_last_line_is_json_even_when_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A refusal still reports what it measured."""

    def body(_: argparse.Namespace) -> dict[str, object]:
        console.table("rows", ["name", "value"], [["a", 1.5]])
        raise errors.Refused("too slow", result={"promoted": False})

    assert console.run(argparse.ArgumentParser(), body, []) == 3
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"promoted": False}


def test_an_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """fer-lab swep → did you mean sweep."""
    assert __main__.main(["swep"]) == 2
    assert "did you mean 'sweep'" in capsys.readouterr().err
    assert __main__.main([]) == 0


def test_debug_is_known_after_a_subcommand_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Every internal error tells the user to give it."""
    parser = argparse.ArgumentParser()
    parser.add_subparsers(dest="what").add_parser("synthetic").add_argument("--count", type=int)

    def body(args: argparse.Namespace) -> dict[str, object]:
        raise RuntimeError(f"{args.what} {args.count} {args.debug}")

    assert console.run(parser, body, ["synthetic", "--count", "5", "--debug"]) == 1
    shown = capsys.readouterr().err
    assert "synthetic 5 True" in shown
    assert "Traceback" in shown


def test_a_table_shows_its_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are no markup, a word between colons is no picture."""
    console.table("study [old]", ["slice [a]", "why"], [["n [cpu]", "x [/tmp/y] :smile:"]])
    shown = capsys.readouterr().out
    for text in ("study [old]", "slice [a]", "n [cpu]", "x [/tmp/y] :smile:"):
        assert text in shown
