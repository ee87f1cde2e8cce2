"""parity.json: how each runtime of a bundle was verified, and sixteen drawn faces to verify it again anywhere.

No face of a dataset is stored: the probes are drawn (`data.synthetic`), so a bundle can be passed on.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fer_lab.backends.bundle import Bundle, Card, open_bundle, read_verified
from fer_lab.backends.session import Predictor, backends
from fer_lab.convert import parity
from fer_lab.core.errors import InputError, NotFound, refuse_newer

FILE = "parity.json"
SCHEMA = 1
PROBES = 16
# How far a runtime may be from its own stored answers on another machine: float kernels differ by rounding, INT8
# kernels by one step of the last layers (with VNNI and without).
SAME_RUNTIME_DP = {"f32": 1e-4, "int8": 0.1, "bf16": 0.1, "f16": 0.02}


def probes(card: Card) -> npt.NDArray[np.uint8]:
    """Return the drawn faces, uint8 [16, C, H, W] of the card's input contract."""
    from fer_lab.data import synthetic

    contract = card.input
    drawn = synthetic.draw(100, seed=48).pixels[:PROBES]
    if drawn.shape[1:] != (contract.height, contract.width):
        rng = np.random.default_rng(48)
        return rng.integers(0, 256, (PROBES, contract.channels, contract.height, contract.width), dtype=np.uint8)
    return np.repeat(drawn[:, None], contract.channels, axis=1)


def encode_probes(faces: npt.NDArray[np.uint8], expected: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, Any]:
    """Return the probes and each runtime's probabilities as JSON; floats keep their float32 digits."""
    return {
        "shape": list(faces.shape),
        "faces": base64.b64encode(faces.tobytes()).decode("ascii"),
        "expected": {name: [[float(p) for p in row] for row in probs] for name, probs in expected.items()},
    }


def write(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write parity.json, the same bytes for the same content."""
    path = folder / FILE
    path.write_text(
        json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8", newline="\n"
    )
    return path


def read(bundle: Bundle) -> dict[str, Any]:
    """Return parity.json of a verified bundle. Raises NotFound when it has none, InputError for a newer schema or a broken one."""
    if FILE not in bundle.files:
        raise NotFound(f"{bundle.folder} has no {FILE}: it was never exported. Run: python -m fer_lab.export {bundle.folder}")
    try:
        content = json.loads(read_verified(bundle, FILE))
        refuse_newer(bundle.folder / FILE, content["schema"], SCHEMA)
        content["runtimes"], content["probes"]["expected"]  # both must be there
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{bundle.folder / FILE}: not a parity record. Export the model again") from None
    return dict(content)


def check(folder: Path | Bundle, *, threads: int = 1) -> dict[str, dict[str, Any]]:
    """Run every runtime of a bundle on its stored probes and compare with the stored answers.

    Returns `{runtime: {state, max_dp, flips, reason}}`; state is verified, refused or unavailable. A runtime that was
    never measured where it was exported (bf16) is held against torch's answers with its own tolerance. Raises
    IntegrityError when the bundle is altered, NotFound without parity.json.
    """
    bundle = folder if isinstance(folder, Bundle) else open_bundle(folder)
    content = read(bundle)
    stored = content["probes"]
    raw = bytearray(base64.b64decode(stored["faces"]))  # writable: torch warns about arrays that are not
    faces = np.frombuffer(raw, np.uint8).reshape(stored["shape"])
    expected = {name: np.array(rows, np.float32) for name, rows in stored["expected"].items()}
    found: dict[str, dict[str, Any]] = {}
    for name in bundle.runtimes:
        backend = backends()[name]
        entry = content["runtimes"].get(name, {})
        if entry.get("state") == "refused":  # bf16 runs the files of another runtime, which stayed
            found[name] = {"state": "refused", "max_dp": None, "flips": None, "reason": f"export refused it: {entry.get('reason')}"}
            continue
        why = backend.unavailable("CPU")
        if why:
            found[name] = {"state": "unavailable", "max_dp": None, "flips": None, "reason": why}
            continue
        own = name in expected
        with Predictor.open(bundle, name, threads=threads) as predictor:
            probs = predictor.predict(faces)
            limit = SAME_RUNTIME_DP.get(predictor.precision, 1e-4) if own else backend.tolerance.max_dp
        answer = expected[name if own else "torch"]
        distance = float(np.abs(probs - answer).max()) if np.isfinite(probs).all() else None  # JSON knows no NaN
        clear = np.array([parity.margin(row) > 2 * limit for row in answer])  # a closer margin may flip within the limit
        flips = int(((probs.argmax(axis=1) != answer.argmax(axis=1)) & clear).sum())
        reason = None
        if distance is None:
            reason = "it answers with NaN or infinity"
        elif flips:
            reason = f"{flips} of {len(faces)} stored faces get another label"
        elif distance > limit:
            reason = f"max |Δp| {distance:.2g} on the stored faces > {limit:g}"
        found[name] = {"state": "refused" if reason else "verified", "max_dp": distance, "flips": flips, "reason": reason}
    return found


def as_markdown(content: Mapping[str, Any]) -> str:
    """Return the record as a table for people, with each flip below it."""
    dataset = content["dataset"]
    lines = [
        f"Every runtime against torch float32, {dataset['name']}, {dataset['protocol']}, {dataset['split']}, n={dataset['n']}.",
        "",
        "| runtime | state | precision | flips | max \\|Δp\\| | mean \\|Δp\\| | accuracy | change, points (95 %) | MB | note |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in content["runtimes"].items():
        note = entry.get("reason") or entry.get("method") or ""
        if "max_dp" not in entry:
            lines.append(f"| {name} | {entry['state']} | | unmeasured | | | | | | {note} |")
            continue
        interval = f"{100 * entry['change']:+.2f} ({100 * entry['change_low']:+.2f} to {100 * entry['change_high']:+.2f})"
        lines.append(
            f"| {name} | {entry['state']} | {entry['precision']} | {len(entry['flips'])} | {entry['max_dp']:.1e} | "
            f"{entry['mean_dp']:.1e} | {100 * entry['accuracy']:.2f} % | {interval} | {entry['size_mb']:.1f} | {note} |"
        )
    for name, entry in content["runtimes"].items():
        for flip in entry.get("flips", ()):
            lines.append(
                f"- {name}: {flip['name']} {flip['reference']} (margin {flip['margin_reference']:.3f}) → {flip['runtime']} "
                f"(margin {flip['margin_runtime']:.3f}), target {flip['target']}"
            )
    return "\n".join(lines) + "\n"
