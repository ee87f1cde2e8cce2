"""What this process and machine are, in the units that the records name."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fer_lab.measure.host import peak_memory_mb


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_peak_memory_is_that_of_the_process_itself() -> None:
    """Not of the one that started it, and in millions of bytes."""
    program = (
        "import sys; from fer_lab.measure.host import peak_memory_mb as mb; a = mb(); b = bytearray(200_000_000); print(a, mb())"
    )
    large = np.ones(500_000_000, np.uint8)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert before < 300 < 500 < (peak_memory_mb() or 0)
    assert 190 < after - before < 210
    assert large[0] == 1
