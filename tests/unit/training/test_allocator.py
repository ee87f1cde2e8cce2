"""The allocator's setting for training, in a process of its own: it cannot be taken back."""

import platform
import subprocess
import sys

import pytest

STEP = """
import resource, sys
import numpy as np
from fer_lab.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(50_000_000, np.uint8)
before = faults()
for _ in range(20):
    np.ones(50_000_000, np.uint8)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_freed_memory_comes_back_without_new_pages() -> None:
    """Twenty times 50 MB cost new pages each time without the setting, and next to none with it."""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", STEP, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "plain")
    }
    assert 10 * faults["keep"] < faults["plain"], faults
