"""Depthwise convolutions in float32 under autocast on a CPU, whose bf16 backward of them is several times slower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

GROUPS = 6  # the place of `groups` among conv2d's positional arguments


class DepthwiseInFloat32(TorchFunctionMode):
    """While it is entered, a grouped 2-d convolution computes in float32 and hands its answer on in the input's type.

    By torch's profiler, one look on a CPU with AMX: oneDNN took 28 ms for the bf16 backward of 1152 channels of 2 × 2 in a
    batch of 128, and V2B0 at 64 px has seven such layers, together a quarter of its step. experiments/bench/cpu_step.py
    compares the whole steps. The other convolutions stay in bf16.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.conv2d or kwargs.get("groups", args[GROUPS] if len(args) > GROUPS else 1) == 1:
            return func(*args, **kwargs)
        values: Tensor = args[0]
        with torch.autocast(values.device.type, enabled=False):
            return func(values.float(), *args[1:], **kwargs).to(values.dtype)


def depthwise_precision(device: torch.device, autocast: torch.dtype | None, compiled: bool) -> AbstractContextManager[Any]:
    """Return what to enter around a forward pass: `DepthwiseInFloat32` on a CPU in bf16, else nothing.

    A compiled graph is left as it is: the compiler makes kernels of its own.
    """
    wanted = device.type == "cpu" and autocast is not None and not compiled
    return DepthwiseInFloat32() if wanted else nullcontext()
