"""A bundle is a folder that explains itself.

    card.json               what the model is (Card)
    weights.safetensors     the backbone's weights
    onnx/ onnx-int8/ openvino/ openvino-fp16/ openvino-int8/    one folder per exported runtime
    parity.json             how each runtime was verified
    MANIFEST.json           sha256 of every other file; checked before anything is parsed
    SIGNATURE.json          who signed the manifest, where somebody did; checked before the manifest is parsed

There is no pickle anywhere. `openvino-bf16` has no folder of its own: it is the float32 IR run in bf16.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from fer_lab.backends.signature import SIGNATURE, demanded, verify
from fer_lab.core.errors import InputError, IntegrityError, NotFound, refuse_newer
from fer_lab.core.files import is_staged, write_whole

MANIFEST = "MANIFEST.json"
CARD = "card.json"
WEIGHTS = "weights.safetensors"
SCHEMA = 1
MOST_SIDE = 4096  # pixels: what a card may ask for, before memory is taken for it


class InputContract(BaseModel):
    """What the graph takes: uint8 [N, channels, height, width]."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    height: int = Field(48, ge=1, le=MOST_SIDE)
    width: int = Field(48, ge=1, le=MOST_SIDE)
    channels: int = Field(1, ge=1, le=4)
    dtype: Literal["uint8"] = "uint8"


class Card(BaseModel):
    """What a model is; `labels` in the order of its outputs."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int = Field(SCHEMA, alias="schema")
    name: str
    labels: tuple[str, ...]
    protocol: str
    protocol_version: int = 1
    label_source: str
    dataset: str
    fingerprint: str
    backbone: str
    image_size: int = Field(ge=1, le=MOST_SIDE)  # the side to which the graph enlarges a face
    mean: float  # of gray values in 0–1
    std: PositiveFloat
    input: InputContract = InputContract()
    temperature: PositiveFloat = 1.0  # logits are divided by it before softmax
    parameters: int = 0
    config: dict[str, Any] = Field(default_factory=dict)  # the whole training configuration
    validation: dict[str, float] = Field(default_factory=dict)  # of the checkpoint, on validation; see `training.fit.FitResult`
    commit: str = "unknown"
    versions: dict[str, str] = Field(default_factory=dict)
    run_id: str | None = None
    parent_run_id: str | None = None
    licence: str = "MIT"
    exported_from: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _known_schema(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and isinstance(tree.get("schema"), int) and tree["schema"] > SCHEMA:
            raise ValueError(f"schema {tree['schema']} is newer than this fer_lab understands (≤ {SCHEMA}); update fer_lab")
        return tree

    def to_json(self) -> str:
        """Return the card as the text of card.json."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle folder. `digest` is the sha256 of its manifest: the identity of everything in it."""

    folder: Path
    card: Card
    digest: str
    files: Mapping[str, str]  # relative posix path → sha256
    signed_by: str | None = None  # the public key whose signature was verified

    def runtime_digest(self, runtime: str) -> str:
        """Return the sha256 over the files that this runtime reads (its folder, or the weights for torch).

        The identity by which latency measured on one machine joins accuracy measured on another.
        """
        prefix = f"{FOLDER_OF_RUNTIME.get(runtime, runtime)}/"
        chosen = [p for p in self.files if (p.startswith(prefix) if runtime != "torch" else p in (WEIGHTS, CARD))]
        if not chosen:
            raise NotFound(f"{self.folder} holds no {runtime}; it has: {', '.join(self.runtimes)}. Run fer_lab.export first")
        lines = "".join(f"{self.files[path]}  {path}\n" for path in sorted(chosen))
        return hashlib.sha256(f"{runtime}\n{lines}".encode()).hexdigest()

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The runtimes that this bundle can be run with."""
        folders = {PurePosixPath(path).parts[0] for path in self.files if "/" in path}
        names = [r for r in RUNTIMES if r != "torch" and FOLDER_OF_RUNTIME.get(r, r) in folders]
        return (*(("torch",) if WEIGHTS in self.files else ()), *names)


RUNTIMES = ("torch", "onnx", "onnx-int8", "openvino", "openvino-fp16", "openvino-bf16", "openvino-int8")
FOLDER_OF_RUNTIME = {"openvino-bf16": "openvino"}


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path) -> str:
    """Write MANIFEST.json over every file below `folder`, last and atomically. Returns the bundle digest.

    A signature of the manifest before is removed: it is not one of this.
    """
    files = {path: sha256_of(folder / path) for path in _files_below(folder)}
    text = json.dumps({"schema": SCHEMA, "files": files}, indent=2, sort_keys=True) + "\n"
    (folder / SIGNATURE).unlink(missing_ok=True)
    write_whole(folder / MANIFEST, text)
    return hashlib.sha256(text.encode()).hexdigest()


def open_bundle(folder: str | Path, *, signed_by: Collection[str] | None = None) -> Bundle:
    """Verify the signature, if there is one, then the manifest, then parse the card.

    signed_by: public keys of which one must have signed it; None: unsigned bundles are welcome too.
    Raises NotFound when there is no bundle, IntegrityError naming the file that is missing, extra, linked or altered, or
    when the signature is wrong or not one of these keys, InputError when the card does not follow its schema.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotFound(f"no such bundle folder: {folder}")
    manifest = folder / MANIFEST
    if not manifest.is_file() or manifest.is_symlink():
        raise NotFound(f"{folder} is not a bundle: it has no {MANIFEST}")
    raw = manifest.read_bytes()
    signer = verify(folder, raw)
    check_signer(folder, signer, signed_by)
    files = _parse_manifest(raw, manifest)
    present = set(_files_below(folder))
    for path in sorted(set(files) | present):
        if path not in present:
            raise IntegrityError(f"{folder}: {path} is missing (the manifest lists it). Fetch the bundle again")
        if path not in files:
            raise IntegrityError(f"{folder}: {path} is not in the manifest. Remove it, or fetch the bundle again")
        if sha256_of(folder / path) != files[path]:
            raise IntegrityError(f"{folder}: {path} was altered (sha256 differs from the manifest). Fetch the bundle again")
    if CARD not in files:
        raise InputError(f"{folder}: the bundle has no {CARD}")
    try:
        card = Card.model_validate_json(_read_listed(folder, CARD, files[CARD]))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{folder / CARD}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return Bundle(folder, card, hashlib.sha256(raw).hexdigest(), files, signer)


def check_signer(folder: Path, signer: str | None, keys: Collection[str] | None) -> None:
    """Raise IntegrityError unless the signer of a bundle is one of `keys`; None: anybody, and nobody, will do."""
    if keys is not None and signer not in keys:
        found = f"signed by {signer}" if signer else "not signed"
        raise IntegrityError(f"{folder} is {found}; expected a signature by {' or '.join(sorted(keys))}")


def open_trusted(folder: str | Path) -> Bundle:
    """Open a bundle that somebody else may have made: as `open_bundle`, signed by a key of FER_LAB_SIGNED_BY where it is set."""
    return open_bundle(folder, signed_by=demanded())


def read_verified(bundle: Bundle, path: str) -> bytes:
    """Return the bytes of one file of a bundle, checked again: what is hashed here is what the runtime parses.

    Raises NotFound when the manifest does not list it, IntegrityError when it changed since the bundle was opened.
    """
    if path not in bundle.files:
        raise NotFound(f"{bundle.folder} holds no {path}; its runtimes: {', '.join(bundle.runtimes)}. Run fer_lab.export first")
    return _read_listed(bundle.folder, path, bundle.files[path])


def _read_listed(folder: Path, path: str, digest: str) -> bytes:
    try:
        raw = (folder / path).read_bytes()
    except FileNotFoundError:
        raise IntegrityError(f"{folder}: {path} is missing (the manifest lists it). Fetch the bundle again") from None
    if hashlib.sha256(raw).hexdigest() != digest:
        raise IntegrityError(f"{folder}: {path} was altered (sha256 differs from the manifest). Fetch the bundle again")
    return raw


def _parse_manifest(raw: bytes, where: Path) -> dict[str, str]:
    try:
        tree = json.loads(raw)
        files = tree["files"]
        valid = isinstance(files, dict) and all(isinstance(p, str) and isinstance(d, str) for p, d in files.items())
        schema = tree["schema"]
        valid = valid and isinstance(schema, int)
    except (ValueError, KeyError, TypeError, RecursionError):
        valid = False
    if not valid:
        raise IntegrityError(f"{where}: not a manifest. Fetch the bundle again")
    refuse_newer(where, schema, SCHEMA)
    return dict(files)


def _files_below(folder: Path) -> list[str]:
    """List the files below `folder` but manifest and signature, as posix paths; links and special files are refused."""
    found = []
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        relative = path.relative_to(folder).as_posix()
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            raise IntegrityError(f"{folder}: {relative} is a link or a special file; a bundle holds plain files only")
        unfinished = is_staged(path) and relative.startswith((f".{MANIFEST}.", f".{SIGNATURE}."))
        if relative not in (MANIFEST, SIGNATURE) and not unfinished:
            found.append(relative)
    return found
