"""A hand-made record of a comparison in which a challenger passes every gate; tests spoil it one figure at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fer_lab.core.types import Host, LatencyProfile, LatencySpec, Verdict
from fer_lab.measure.comparison import Audit, ClassFigures, Comparison, Profile, Row, Share

LABELS = ("neutral", "happiness", "surprise")
HOST = Host("box-2c-0123abcd", "Linux", "A Processor", 2, ("avx2",))
SIGNER = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="  # the public key of RFC 8032, 7.1, test 1
CHAMPION, CHALLENGER = "models:/fer-synthetic-8/1", "models:/fer-synthetic-8/2"


def good_row(model: str = CHALLENGER, runtime: str = "openvino", digest: str = "d2", **changes: Any) -> Row:
    """A row of 1 000 faces that passes."""
    row = Row(
        model=model, runtime=runtime, digest=digest, bundle_digest="b2", n=1000,
        accuracy=0.86, accuracy_low=0.837, accuracy_high=0.880, macro_recall=0.8, balanced_accuracy=0.8, macro_precision=0.8,
        macro_f1=0.8, f1_of_macro_pr=0.8, weighted_f1=0.86, nll=0.5, brier=0.22, ece=0.02, kl_to_votes=0.2, js_to_votes=0.05,
        annotator_agreement=0.75, human_agreement=0.82,
        per_class={label: ClassFigures(300, 0.8, 0.8, 0.8) for label in LABELS},
        confusion=((240, 30, 30), (30, 240, 30), (30, 30, 240)),
        slices={"occlusion": Share(200, 0.8, 0.74, 0.85)},
        clean_n=900, clean_accuracy=0.85, clean_low=0.825, clean_high=0.872,
        precision="f32", size_mb=23.7, name="fer-synthetic-8", version=2, run_id="r2",
        audit=Audit(True, 512, 0, 0.0, True, 0), batch_invariant=True,
        host=HOST.name, threads=1, batch=1, p50_ms=4.0, p90_ms=4.4, p95_ms=4.5, samples=100,
        parity=parity(0, 0.0, digest=digest), signed_by=SIGNER,
        card={
            "name": "b0", "protocol": "ferplus8", "label_source": "synthetic", "dataset": "synthetic", "fingerprint": "f",
            "backbone": "tf_efficientnetv2_b0", "licence": "MIT", "versions": {"torch": "2"}, "parameters": 5_868_376,
            "commit": "c0ffee", "run_id": "r2", "config": {"seed": 1}, "labels": LABELS,
        },
    )  # fmt: skip
    return replace(row, **changes)


def parity(flips: int, change: float, state: str = "verified", digest: str = "d2") -> dict[str, Any]:
    """An entry of parity.json."""
    named = [{"name": f"face{i}"} for i in range(flips)]
    return {"state": state, "digest": digest, "n": 1000, "max_dp": 1e-6, "flips": named, "change": change}


def verdict(aspect: str, low: float, high: float, n: int = 300, word: str = "undecided") -> Verdict:
    """What a comparison said about the challenger against the champion."""
    return Verdict(CHALLENGER, "openvino", aspect, word, "by hand", n, (low + high) / 2, low, high)  # type: ignore[arg-type]


def profile(
    digest: str = "d2", runtime: str = "openvino", host: Host = HOST, threads: int = 1, ms: float = 4.0, end_to_end: bool = False
) -> Profile:
    """100 samples from `ms` to half a millisecond more."""
    rounds = (tuple(ms + i / 100 for i in range(50)),) * 2
    spec = LatencySpec(runtime, threads, 1, end_to_end)
    return Profile(host, runtime, 0.01, LatencyProfile(CHALLENGER, digest, spec, rounds, 90.0, 12.0, 150.0, 23.7))


def good_comparison(row: Row | None = None, **changes: Any) -> Comparison:
    """Champion version 1 against challenger version 2, in openvino, on 1 000 test faces."""
    row = row or good_row()
    champion = good_row(CHAMPION, digest="d1", bundle_digest="b1", version=1, run_id="r1")
    record = Comparison(
        id="c1", created="2026-01-02T03:04:05Z", host=HOST, dataset="synthetic", fingerprint="f", label_source="synthetic",
        protocol="ferplus8", split="test", n=1000, labels=LABELS, margin=0.015,
        reference_model=CHAMPION, reference_runtime="openvino", rows=(champion, row),
        verdicts=(
            verdict("accuracy", -0.005, 0.015, 1000, "non-inferior"),
            verdict("brier", -0.01, 0.004, 1000),
            verdict("class:neutral", -0.03, 0.02),
            verdict("class:happiness", -0.02, 0.05),
            verdict("class:surprise", -0.04, 0.01),
            verdict("slice:occlusion", -0.05, 0.03, 200),
        ),
        profiles=(profile("d1"), profile()), looks=1, noise_floor=0.01,
    )  # fmt: skip
    return replace(record, **changes)
