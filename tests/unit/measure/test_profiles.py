"""Latency in a file of its own: which group stands for a host, and in which order a record keeps what it was given."""

from __future__ import annotations

from pathlib import Path

from fer_lab.core.types import Host, LatencyProfile, LatencySpec
from fer_lab.measure import profiles
from fer_lab.measure.stats import Interval


def taken(host: str, *kinds: tuple[int, bool]) -> profiles.Profiles:
    """One model, timed in groups of these batches, end to end or not."""
    groups = tuple(
        profiles.Group(
            1, batch, end_to_end, 0.01, Interval(1.0, 0.99, 1.01), ((1.0,),), None, None,
            (LatencyProfile("m", "d", LatencySpec("onnx", 1, batch, end_to_end), ((1.0,),), 1.0, 1.0, None, 1.0),),
        )
        for batch, end_to_end in kinds
    )  # fmt: skip
    return profiles.Profiles(Host(host, "Linux", "A Processor", 4, ()), "2026-01-01T00:00:00Z", groups)


def test_batch_one_stands_for_the_host_else_the_first() -> None:
    """From face to answer, and from crop to label apart."""
    one = taken("h", (8, False), (1, False), (1, True))
    assert (one.group(), one.group(end_to_end=True)) == (one.groups[1], one.groups[2])
    first = taken("h", (64, False), (8, False))
    assert first.group() is first.groups[0]
    assert first.group(end_to_end=True) is None
    assert taken("h", (1, True)).artifacts == frozenset()


def test_what_was_given_last_comes_first_and_nothing_is_kept_twice(tmp_path: Path) -> None:
    """So that its figures are shown."""
    a, b, c = (taken(host, (1, False)) for host in "abc")
    for given in ([a, b], [c], [b], []):
        profiles.keep(given, tmp_path)
    assert [one.host.name for one in profiles.kept(tmp_path)] == ["b", "c", "a"]
