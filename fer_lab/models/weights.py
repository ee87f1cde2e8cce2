"""Network weights as safetensors files, written so that a reader never meets half a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from fer_lab.core.files import write_whole

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
    write_whole(path, data)
