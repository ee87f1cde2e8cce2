"""`python -m fer_lab` lists the verbs; `fer-lab VERB …` runs one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from fer_lab.core.console import note, say, write_utf8
from fer_lab.core.errors import nearest

VERBS = {
    "prepare": "read FERPlus or draw the synthetic sample, and audit it",
    "train": "train one configuration, or one over several seeds",
    "sweep": "the main job: search, confirm, register a challenger",
    "register": "a run or a bundle folder → a registry version",
    "export": "one model → every runtime, each verified on the validation split",
    "compare": "models × runtimes: accuracy, calibration, latency, verdicts, report",
    "promote": "run the gates, move @champion, or refuse; rollback; history",
    "demo": "camera, video or images → faces → expressions",
    "ui": "the MLflow UI on the right store",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fer-lab VERB ARGUMENTS…`; returns the verb's exit code."""
    write_utf8()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help"}:
        say("usage: fer-lab VERB …    (or python -m fer_lab.VERB …)\n")
        for verb, what in VERBS.items():
            say(f"  {verb:<10} {what}")
        say("\n`fer-lab VERB --help` explains one. Start with: fer-lab sweep")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        note(f"error: unknown verb {verb!r}; known: {', '.join(VERBS)}{nearest(verb, VERBS)}")
        return 2
    code: int = importlib.import_module(f"fer_lab.{verb}").main(rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
