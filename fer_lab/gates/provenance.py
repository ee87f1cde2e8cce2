"""Gates on where the model comes from: the card's fields, its licence, its signature, test faces in its training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from fer_lab.backends.signature import public_key
from fer_lab.core.config import Section
from fer_lab.core.errors import InputError
from fer_lab.core.types import GateVerdict
from fer_lab.gates.gate import Gate

if TYPE_CHECKING:
    from fer_lab.measure.comparison import Comparison, Row

EMPTY: tuple[Any, ...] = (None, "", "unknown", {}, [], ())


class ProvenanceParams(Section):
    """What a card must say."""

    fields: tuple[str, ...] = Field(
        ("name", "protocol", "label_source", "dataset", "fingerprint", "backbone", "licence", "versions"),
        min_length=1,
        description="fields of card.json that must be filled in; `unknown` counts as empty",
    )


def _provenance(comparison: Comparison, row: Row, params: ProvenanceParams) -> GateVerdict:
    missing = [name for name in params.fields if row.card.get(name) in EMPTY]
    observed = f"the card does not say: {', '.join(missing)}" if missing else f"all {len(params.fields)} fields are filled in"
    return GateVerdict("provenance", not missing, observed, f"the card names {', '.join(params.fields)}")


class LicenceParams(Section):
    """Which licences may be shipped."""

    allowed: tuple[str, ...] = Field(("MIT", "Apache-2.0", "BSD-3-Clause"), min_length=1, description="SPDX names")


def _licence(comparison: Comparison, row: Row, params: LicenceParams) -> GateVerdict:
    licence = row.card.get("licence")
    observed = f"licence {licence}" if licence else "the card names no licence"
    return GateVerdict("licence", licence in params.allowed, observed, f"licence {' or '.join(params.allowed)}")


class SignedByParams(Section):
    """Whose signature a bundle must carry."""

    keys: tuple[str, ...] = Field(min_length=1, description="public keys, as `register --sign` prints them")

    @field_validator("keys")
    @classmethod
    def _are_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(public_key(key) for key in keys)
        except InputError as error:
            raise ValueError(str(error)) from None


def _signed_by(comparison: Comparison, row: Row, params: SignedByParams) -> GateVerdict:
    observed = f"signed by {row.signed_by}" if row.signed_by else "the bundle is not signed"
    return GateVerdict("signed_by", row.signed_by in params.keys, observed, f"signed by {' or '.join(params.keys)}")


class LeakageParams(Section):
    """How many test faces may also have been trained on."""

    max_faces: int = Field(0, ge=0, description="test faces with an exact pixel twin among the training faces")


def _leakage(comparison: Comparison, row: Row, params: LeakageParams) -> GateVerdict:
    required = f"at most {params.max_faces} test faces with an exact twin among the training faces"
    leaked = row.audit.test_faces_in_training
    if leaked is None:
        return GateVerdict("leakage", False, f"unknown: {row.audit.note}", required)
    return GateVerdict("leakage", leaked <= params.max_faces, f"{leaked} of {row.n} test faces: {row.audit.note}", required)


GATE = (
    Gate("provenance", "the card says where the model comes from", ProvenanceParams, _provenance),
    Gate("leakage", "the model was not trained on the test faces", LeakageParams, _leakage),
    Gate("licence", "the licence allows shipping", LicenceParams, _licence),
    Gate("signed_by", "the bundle carries a trusted signature", SignedByParams, _signed_by),
)
