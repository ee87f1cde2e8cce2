"""What a figure was measured on: processor, cores, vector extensions, versions. Needs the core install only."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

from fer_lab.core.types import Host

SPEED_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "bf16", "i8mm", "sve",
)  # fmt: skip
"""The vector extensions that change speed or the default arithmetic, as Linux spells them."""

PACKAGES = (
    "fer-lab", "numpy", "torch", "timm", "onnxruntime", "openvino", "onnx", "nncf", "opencv-python-headless", "mlflow",
    "mlflow-skinny", "optuna", "scipy",
)  # fmt: skip


@cache
def this_host() -> Host:
    """Describe this machine. `name` is stable and anonymous: the processor's model and count, not the network name."""
    cpu, flags = _processor()
    cores = usable_cores()
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    identity = hashlib.sha256("\n".join([platform.machine(), cpu, str(cores), *flags]).encode()).hexdigest()[:8]
    words = "-".join("".join(c if c.isalnum() else " " for c in cpu).lower().split()[:4]) or "unknown"
    return Host(f"{words}-{cores}c-{identity}", system, cpu, cores, flags, _versions())


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory_mb() -> float | None:
    """Largest resident size of this process so far in MB, or None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux; its ru_maxrss begins with the size of the process that started this one
        kib = next((int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        return None if kib is None else kib * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts bytes


def load_average() -> float | None:
    """Runnable processes over the last minute, or None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _processor() -> tuple[str, tuple[str, ...]]:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        fields: dict[str, str] = {}
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
        present = set((fields.get("flags") or fields.get("Features") or "").split())
        name = fields.get("model name") or platform.processor() or platform.machine()
        return name, tuple(flag for flag in SPEED_FLAGS if flag in present)
    if sys.platform == "darwin":
        try:
            name = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=5).stdout
            return name.strip() or platform.machine(), ()
        except (OSError, subprocess.SubprocessError):
            return platform.machine(), ()
    return platform.processor() or platform.machine(), ()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
