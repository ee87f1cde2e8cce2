"""Network weights as safetensors files, written so that a reader never meets half a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

WEIGHTS = "weights.safetensors"


def save_weights(backbone: nn.Module, path: Path) -> None:
    """Write the backbone's parameters and buffers to `path` (safetensors), atomically and readable by other accounts."""
    write_tensors(backbone.state_dict(), path)


def shape_in(path: Path, tensor: str) -> tuple[int, ...] | None:
    """Return the shape of a tensor in a safetensors file; None where the file lacks it or is of another kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return tuple(file.get_slice(tensor).get_shape())
    except (SafetensorError, OSError):
        return None


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file: staged beside the target, flushed to disk, then renamed over it.

    The bytes go through Python's own file, not safetensors' `save_file`, which leaves mode 0600 and does not fsync.
    """
    from safetensors.torch import save

    data = save({name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()})
    write_bytes(data, path)


def write_bytes(data: bytes, path: Path) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part. Raises OSError on a full disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # a rename is durable once its folder is flushed; Windows has no such call
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
