"""Depthwise convolutions under autocast: float32 inside, the input's type outside, the other convolutions untouched."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from fer_lab.training.depthwise import DepthwiseInFloat32, depthwise_precision


def block() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 4, 1))


def gradients(inside: bool, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The depthwise weight's gradient and the answer; what the depthwise convolution hands on is bf16."""
    network = block()
    seen: list[torch.dtype] = []
    network[2].register_forward_pre_hook(lambda _module, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16), DepthwiseInFloat32() if inside else nullcontext():
        answer = network(values)
    assert answer.dtype == torch.bfloat16
    assert seen == [torch.bfloat16]
    answer.float().square().sum().backward()
    gradient = network[1].weight.grad
    assert gradient is not None
    return gradient, answer.detach().float()


def test_only_the_depthwise_convolution_computes_in_float32() -> None:
    torch.manual_seed(1)
    values = torch.rand(2, 3, 5, 5)
    network = block()
    with torch.autocast("cpu", torch.bfloat16), DepthwiseInFloat32():
        first = network[0](values)
        second = network[1](first)
    assert first.dtype == second.dtype == torch.bfloat16
    assert torch.equal(second, network[1](first.float()).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(first, network[0](values))


def test_gradients_are_those_of_bf16_within_its_rounding() -> None:
    values = torch.rand(2, 3, 5, 5)
    with_it, answer = gradients(True, values)
    without, plain = gradients(False, values)
    assert torch.allclose(answer, plain, atol=0.02)
    assert torch.allclose(with_it, without, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("autocast", "compiled", "wanted"),
    [(torch.bfloat16, False, True), (None, False, False), (torch.bfloat16, True, False)],
)
def test_it_is_entered_on_a_cpu_in_bf16_without_a_compiler(autocast: torch.dtype | None, compiled: bool, wanted: bool) -> None:
    entered = depthwise_precision(torch.device("cpu"), autocast, compiled)
    assert isinstance(entered, DepthwiseInFloat32) == wanted


def test_a_gpu_keeps_its_own_kernels() -> None:
    assert not isinstance(depthwise_precision(torch.device("cuda"), torch.bfloat16, False), DepthwiseInFloat32)
