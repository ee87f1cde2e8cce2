"""Which record a promotion may stand on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from gate_records import LABELS, SIGNER, good_comparison, good_row

from fer_lab.backends.bundle import Bundle, Card
from fer_lab.core.errors import NotFound
from fer_lab.gates import evidence
from fer_lab.gates.evidence import Champion
from fer_lab.measure.comparison import Seeds

CARD = Card(
    name="b0", labels=LABELS, protocol="ferplus8", label_source="synthetic", dataset="synthetic", fingerprint="f",
    backbone="tf_efficientnetv2_b0", image_size=48, mean=0.5, std=0.25,
)  # fmt: skip
BUNDLE = Bundle(Path("somewhere"), CARD, "b2", {"openvino/model.xml": "0" * 64}, SIGNER)
DIGEST = BUNDLE.runtime_digest("openvino")
ROW = good_row(digest=DIGEST, card=CARD.model_dump(mode="json", by_alias=True))


def test_the_row_of_the_very_bundle_comes_first() -> None:
    """Two versions with the same runtime files: the champion's row is not the challenger's."""
    card = dict(ROW.card) | {"exported_from": "models:/fer-synthetic-8/9"}
    twin = replace(ROW, model="models:/fer-synthetic-8/1", bundle_digest="b1", version=1, card=card)
    assert evidence.row_of(good_comparison(rows=(twin, ROW)), BUNDLE, "openvino") is ROW
    assert evidence.row_of(good_comparison(rows=(twin,)), BUNDLE, "openvino") is twin


@pytest.mark.parametrize(
    "row",
    [
        replace(ROW, digest="another"),
        replace(ROW, runtime="openvino-int8"),
        replace(ROW, runtime="openvino:GPU"),
        replace(ROW, seeds=Seeds(("a", "b"), (0.8, 0.9), 0.85, 0.07, 0.2, 1.0)),
        replace(ROW, bundle_digest="b1", card=dict(ROW.card) | {"labels": LABELS[::-1]}),
        replace(ROW, bundle_digest="b1", card=dict(ROW.card) | {"protocol": "ferplus5"}),
        replace(ROW, bundle_digest="b1", card=dict(ROW.card) | {"licence": "GPL-3.0"}),
        replace(ROW, bundle_digest="b1", card=dict(ROW.card) | {"fingerprint": "unknown"}),
        replace(ROW, bundle_digest="b1", card={}),
        replace(ROW, signed_by=None),
        replace(ROW, signed_by="A" * 43 + "="),
    ],
)
def test_a_row_of_something_else_is_no_evidence(row: object) -> None:
    """Other files, another runtime or device, an aggregate over seeds, a card that says something else, another signer."""
    assert evidence.row_of(good_comparison(rows=(row,), reference_model="x"), BUNDLE, "openvino") is None


def test_a_comparison_with_the_champion_comes_before_a_newer_one_without(tmp_path: Path) -> None:
    """Among equals the newest counts; half a record is passed over."""
    champion = good_row("models:/fer-synthetic-8/1", digest="d1", bundle_digest="b1", version=1)
    for identity, rows, created in (("a", (champion, ROW), "2026-01-01"), ("b", (ROW,), "2026-02-01"), ("c", (ROW,), "2026-03-01")):
        record = good_comparison(id=identity, rows=rows, reference_model=rows[0].model, created=created)
        record.write(tmp_path / "comparisons" / identity)
    (tmp_path / "comparisons" / "d").mkdir()
    (tmp_path / "comparisons" / "d" / "comparison.json").write_text("{")

    def newest(champion: int | None, runtime: str | None = None) -> str | None:
        found = evidence.newest(
            tmp_path, BUNDLE, "openvino", None if champion is None else Champion("fer-synthetic-8", champion, runtime)
        )
        return found.id if found else None

    assert (newest(1), newest(None), newest(7)) == ("a", "c", "c")
    assert (newest(1, "openvino"), newest(1, "openvino-int8")) == ("a", "c")
    assert evidence.newest(tmp_path, BUNDLE, "torch", Champion("fer-synthetic-8", 1, None)) is None


def test_a_comparison_on_the_models_own_data_comes_before_a_newer_one_on_another(tmp_path: Path) -> None:
    """And only it counts."""
    own = good_comparison(id="a", rows=(ROW,), reference_model=ROW.model, created="2026-01-01")
    other = replace(own, id="b", label_source="other", fingerprint="g", created="2026-02-01")
    for record in (own, other):
        record.write(tmp_path / "comparisons" / record.id)
    found = evidence.newest(tmp_path, BUNDLE, "openvino", None)
    assert found is not None
    assert found.id == "a"
    assert [evidence.counts(record, BUNDLE, None) for record in (own, other)] == [True, False]


def test_a_comparison_is_named_by_path_or_id(tmp_path: Path) -> None:
    """A file, a folder, the name of a folder below comparisons/, or the id inside it."""
    record = good_comparison(id="20260102-abc", rows=(ROW,), reference_model=ROW.model)
    path = record.write(tmp_path / "comparisons" / "kept")
    for where in (str(path), str(path.parent), "kept", "20260102-abc"):
        assert evidence.read(where, tmp_path).id == record.id
    with pytest.raises(NotFound, match=r"no comparison '\.\./kept'"):
        evidence.read("../kept", tmp_path)
