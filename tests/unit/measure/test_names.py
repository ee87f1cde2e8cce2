"""Short names of models: no two alike, and no longer than that takes."""

from __future__ import annotations

import pytest

from fer_lab.measure.names import short_names

RUN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (["models:/fer/3", "some/where/net.onnx", f"runs:/{RUN}"], ["fer/3", "net.onnx", "run 01234567"]),
        (["a/best/bundle", "b/best/bundle", "c/net"], ["a/best/bundle", "b/best/bundle", "net"]),
        (["bundle", "/x/bundle"], ["bundle", "x/bundle"]),
        (["a/fer/3", "models:/fer/3", "3"], ["a/fer/3", "fer/3", "3"]),
        ([f"runs:/{RUN}", f"runs:/{RUN[:8]}ffffffff"], [f"run {RUN}", f"run {RUN[:8]}ffffffff"]),
        (["a", "a/"], ["a", "a/"]),
        (["..", "."], ["..", "."]),
        ([], []),
    ],
)
def test_a_name_is_the_last_part_and_what_tells_two_apart(models, expected):
    """Registry names and run ids lose their scheme; where nothing shorter tells two apart, the whole name does."""
    names = short_names(models)
    assert len(set(names.values())) == len(models)
    assert list(names.values()) == expected
