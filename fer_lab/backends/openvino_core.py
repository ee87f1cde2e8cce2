"""The one OpenVINO core of this process."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

from fer_lab.core.errors import MissingPart

_once = threading.Lock()


def core() -> Any:
    """Return the `openvino.Core` that everything here shares; it is never closed. Raises MissingPart without OpenVINO.

    On Linux a core gives the thread that first uses its CPU a stack for signals, and unmaps it when the core ends, maybe in
    another thread (OpenVINO's SigAltStackSetup): the next Ctrl-C would then end the process without a word.
    """
    with _once:  # two cores of two threads would be one too many
        return _made()


@cache
def _made() -> Any:
    try:
        import openvino
    except ModuleNotFoundError:
        raise MissingPart("openvino", "lab", "the runtime openvino") from None
    return openvino.Core()
