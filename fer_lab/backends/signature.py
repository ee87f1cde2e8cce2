"""Who made a bundle: an Ed25519 signature (RFC 8032) over MANIFEST.json, in SIGNATURE.json beside it.

    openssl genpkey -algorithm ed25519 -out signer.pem && chmod 600 signer.pem
    python -m fer_lab.register models:/fer-ferplus-8@challenger --sign signer.pem    # prints the public key

The manifest holds the sha256 of every other file, so that its signature covers the bundle. It proves that the holder of a key
signed these bytes; whose key that is must be known from elsewhere: the gate `signed_by`, or FER_LAB_SIGNED_BY on a machine
that runs what others made. A bundle without SIGNATURE.json is unsigned, which is not an error by itself.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fer_lab.core.errors import InputError, IntegrityError, NotFound
from fer_lab.core.files import write_whole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE = "SIGNATURE.json"
VARIABLE = "FER_LAB_SIGNED_BY"
PASSPHRASE = "FER_LAB_KEY_PASSPHRASE"
MOST_BYTES = 4096  # of SIGNATURE.json, which is read before anything is trusted
KEY_BYTES, SIGNATURE_BYTES = 32, 64  # RFC 8032, 5.1.5 and 5.1.6
CONTEXT = b"fer_lab bundle manifest 1\n"  # so that a signature made for something else can never count here


class SignatureFile(BaseModel):
    """SIGNATURE.json: key and signature as base64 of the raw bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: Literal[1] = Field(1, alias="schema")
    algorithm: Literal["ed25519"] = "ed25519"
    public_key: str
    signature: str


def public_key(text: str) -> str:
    """Return a public key in its one spelling. Raises InputError unless it is the base64 of 32 bytes.

    >>> public_key("11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
    '11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo='
    """
    return base64.b64encode(_raw(text.strip(), KEY_BYTES, "an Ed25519 public key")).decode()


def demanded() -> frozenset[str] | None:
    """The public keys of FER_LAB_SIGNED_BY (commas or spaces between them), or None when no signature is demanded."""
    given = os.environ.get(VARIABLE, "").strip()
    if not given:
        return None
    parts = given.replace(",", " ").split()
    if not parts:
        raise InputError(f"{VARIABLE}={given!r} names no key")
    try:
        return frozenset(public_key(part) for part in parts)
    except InputError as error:
        raise InputError(f"{VARIABLE}: {error}") from None


def read_key(path: str | Path) -> Ed25519PrivateKey:
    """Read a private key (PEM, PKCS 8); an encrypted one with FER_LAB_KEY_PASSPHRASE.

    Raises NotFound without the file, InputError when others may read it or it is no Ed25519 key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = Path(path)
    if not path.is_file():
        raise NotFound(f"no such key: {path}. Make one: openssl genpkey -algorithm ed25519 -out {path}")
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise InputError(f"{path} can be read by others of this machine; run: chmod 600 {path}")
    passphrase = os.environ.get(PASSPHRASE)
    try:
        key = load_pem_private_key(path.read_bytes(), passphrase.encode() if passphrase else None)
    except TypeError:
        raise InputError(f"{path} is {'not encrypted; unset' if passphrase else 'encrypted; set'} {PASSPHRASE}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{path} cannot be read as a private key (PEM), or {PASSPHRASE} is wrong") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path} holds another kind of key; expected Ed25519: openssl genpkey -algorithm ed25519 -out {path}")
    return key


def sign(manifest: Path, key: Ed25519PrivateKey) -> str:
    """Write SIGNATURE.json beside a manifest, replacing an older one atomically. Returns the public key."""
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    signature = base64.b64encode(key.sign(CONTEXT + manifest.read_bytes())).decode()
    record = SignatureFile(schema=1, public_key=public, signature=signature)
    write_whole(manifest.with_name(SIGNATURE), record.model_dump_json(by_alias=True, indent=2) + "\n")
    return public


def verify(folder: Path, manifest: bytes) -> str | None:
    """Return the public key that signed these bytes of a manifest, or None when the folder holds no signature.

    Raises IntegrityError when there is a signature and it is not one of these bytes.
    """
    path = folder / SIGNATURE
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode) or path.stat().st_size > MOST_BYTES:
        raise IntegrityError(f"{folder}: {SIGNATURE} is not a signature. Fetch the bundle again")
    try:
        record = SignatureFile.model_validate_json(path.read_bytes())
        key = _raw(record.public_key, KEY_BYTES, "an Ed25519 public key")
        signature = _raw(record.signature, SIGNATURE_BYTES, "an Ed25519 signature")
    except (ValidationError, InputError):
        raise IntegrityError(f"{folder}: {SIGNATURE} is not a signature of this fer_lab. Fetch the bundle again") from None
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, CONTEXT + manifest)
    except InvalidSignature:
        raise IntegrityError(
            f"{folder}: the signature does not fit the manifest; one of the two was altered. Fetch the bundle again"
        ) from None
    return base64.b64encode(key).decode()


def _raw(text: str, size: int, what: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != size:
        raise InputError(f"{text[:60]!r} is not {what}; expected the base64 of {size} bytes, as register --sign prints it")
    return raw
