"""comparison.json goes out and comes back unchanged; a broken one is refused with the key named."""

from __future__ import annotations

import json

import pytest

from fer_lab.core.errors import InputError, NotFound
from fer_lab.core.types import Host, LatencyProfile, LatencySpec, Verdict
from fer_lab.measure import comparison as c


def small(**changes) -> c.Comparison:
    """A two-class comparison of one row against itself."""
    row = c.Row(
        model="models:/fer/1", runtime="openvino", digest="d1", bundle_digest="b1", n=2, accuracy=0.5, accuracy_low=0.1,
        accuracy_high=0.9, macro_recall=0.5, balanced_accuracy=0.5, macro_precision=0.5, macro_f1=0.5, f1_of_macro_pr=0.5,
        weighted_f1=0.5, nll=0.7, brier=0.5, ece=0.1, kl_to_votes=0.3, js_to_votes=0.1, annotator_agreement=0.6,
        human_agreement=0.8, per_class={"a": c.ClassFigures(1, 1.0, 1.0, 1.0)}, confusion=((1, 0), (1, 0)),
        slices={"clear": c.Share(1, 1.0, 0.2, 1.0)}, clean_n=2, clean_accuracy=0.5, clean_low=0.1, clean_high=0.9,
        precision="f32", size_mb=1.5, robustness={"blur": c.Curve((0.0, 1.0), "px", (0.5, 0.4), 0.45, 2)},
        card={"backbone": "b0"}, parity={"flips": 0},
    )  # fmt: skip
    host = Host("box", "Linux", "cpu", 2, ("avx2",), {"numpy": "2"})
    profile = LatencyProfile("models:/fer/1", "d1", LatencySpec("openvino", 1, 1), ((1.0, 1.1), (1.2,)), 5.0, 2.0, None, 1.5)
    fields = {
        "id": "x", "created": "2026-01-01T00:00:00Z", "host": host, "dataset": "synthetic", "fingerprint": "f",
        "label_source": "synthetic", "protocol": "ferplus8", "split": "test", "n": 2, "labels": ("a", "b"), "margin": 0.015,
        "reference_model": "models:/fer/1", "reference_runtime": "openvino", "rows": (row,),
        "verdicts": (Verdict("models:/fer/1", "openvino", "accuracy", "undecided", "same", 2, 0.0, -0.1, 0.1, 1.0, None),),
        "profiles": (c.Profile(host, "openvino", 0.01, profile),), "looks": 1,
    }  # fmt: skip
    return c.Comparison(**{**fields, **changes})


def test_round_trip(tmp_path):
    """What is written is what is read, raw samples and verdicts included."""
    original = small()
    original.write(tmp_path)
    assert original == c.read(tmp_path)
    assert original.reference == original.row("b1", "openvino")
    assert len(original.profiles_of(original.reference)) == 1
    assert original.verdicts_of(original.reference, "accuracy")[0].verdict == "undecided"


def test_the_file_follows_its_json_schema():
    """Every required key of the published schema is in the file, and no other."""
    tree, schema = json.loads(small().to_json()), c.json_schema()
    assert set(schema["properties"]) == set(tree)
    assert set(schema["$defs"]["Row"]["properties"]) == set(tree["rows"][0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("rows"), "rows"),
        (lambda t: t.update(schema=99), "newer"),
        (lambda t: t["rows"][0].update(accuracy="high"), "rows.0.accuracy"),
        (lambda t: t.pop("schema"), "not a comparison"),
    ],
)
def test_a_broken_file_is_refused_by_key(change, says):
    """A missing key, a newer schema, a wrong type and a foreign file each say what is wrong."""
    tree = json.loads(small().to_json())
    change(tree)
    with pytest.raises(InputError, match=says):
        c.parse(json.dumps(tree), "comparison.json")


def test_a_figure_is_a_number_or_absent():
    """NaN never reaches the file."""
    with pytest.raises(ValueError):
        small(margin=float("nan")).to_json()


def test_an_absent_comparison_and_row_are_named(tmp_path):
    """The message says where was looked and what is there."""
    with pytest.raises(NotFound, match=r"compare"):
        c.read(tmp_path)
    with pytest.raises(NotFound, match=r"models:/fer/1 · openvino"):
        small().row("models:/fer/2", "openvino")
