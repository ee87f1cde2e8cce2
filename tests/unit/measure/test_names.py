"""Short names of models: no two alike, and no longer than that takes."""

from __future__ import annotations

import pytest

from fer_lab.core.config import RunConfig
from fer_lab.measure.comparison import UNNAMED, Seeds
from fer_lab.measure.names import short_names
from tests.gate_records import good_comparison, good_row

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
    names = short_names(dict.fromkeys(models, ""))
    assert len(set(names.values())) == len(models)
    assert list(names.values()) == expected


def test_a_run_goes_by_its_own_name():
    """Two of one name by their ids too, and by whole ids when those begin alike; a path of that name stays apart."""
    twins = {
        f"runs:/{RUN}": "b0-s0",
        "runs:/fedcba9876543210": "b0-s0",
        "x/b1-s0": "",
        "runs:/aaaa": "b1-s0",
        "models:/fer/3": "b2-s0",
    }
    assert list(short_names(twins).values()) == [
        "b0-s0 (run 01234567)",
        "b0-s0 (run fedcba98)",
        "x/b1-s0",
        "b1-s0 (run aaaa)",
        "fer/3",
    ]
    alike = {f"runs:/{RUN}": "b0-s0", f"runs:/{RUN[:8]}ffffffff": "b0-s0"}
    assert list(short_names(alike).values()) == [f"b0-s0 (run {RUN})", f"b0-s0 (run {RUN[:8]}ffffffff)"]


def test_a_comparison_calls_runs_as_the_tracking_does():
    """Name and seed of the configuration; of several seeds the name alone; a run that nobody named goes by its id."""
    assert RunConfig.model_fields["name"].default == UNNAMED
    card, seeds = good_row().card, Seeds(("r1", "r2"), (0.8, 0.9), 0.85, 0.07, 0.2, 1.0)
    rows = tuple(
        good_row(f"runs:/{i}{RUN}", card=dict(card) | {"config": {"name": name, "seed": seed}}, seeds=several)
        for i, (name, seed, several) in enumerate([("b0", 1, None), ("b0", 2, None), ("b0", 1, seeds), (UNNAMED, 1, None)])
    )
    names = good_comparison(rows=rows, reference_model=rows[0].model).names
    assert list(names.values()) == ["b0-s1", "b0-s2", "b0", "run 30123456"]
