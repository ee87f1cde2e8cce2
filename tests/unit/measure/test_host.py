"""What this process and machine are, in the units that the records name."""

from __future__ import annotations

from pathlib import Path

import pytest

from fer_lab.measure.host import peak_memory_mb

STATUS = Path("/proc/self/status")


@pytest.mark.skipif(not STATUS.is_file(), reason="the kernel's own figure is Linux's")
def test_peak_memory_is_in_millions_of_bytes() -> None:
    """Beside the kernel's own high-water mark."""
    (kib,) = [int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    assert peak_memory_mb() == pytest.approx(kib * 1024 / 1e6, rel=0.02)
