"""A signature is checked before anything of a bundle is parsed, and covers every byte of it."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_bundle
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from fer_lab.backends import bundle as bundle_module
from fer_lab.backends.bundle import MANIFEST, open_bundle, write_manifest
from fer_lab.backends.signature import CONTEXT, PASSPHRASE, SIGNATURE, VARIABLE, demanded, public_key, read_key, sign
from fer_lab.core.errors import InputError, IntegrityError, NotFound
from fer_lab.gates import policy

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
PUBLIC = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A signed bundle."""
    folder = tiny_bundle.write(tmp_path / "bundle", ["onnx"])
    assert sign(folder / MANIFEST, KEY) == PUBLIC
    return folder


def write_key(path: Path, key: object = KEY, passphrase: bytes | None = None) -> Path:
    """A private key as openssl writes it."""
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))  # type: ignore[attr-defined]
    path.chmod(0o600)
    return path


def refuse_to_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test when manifest or card are parsed."""

    def parsed(*_: object, **__: object) -> None:
        pytest.fail("something was parsed before the signature was refused")

    monkeypatch.setattr(bundle_module, "_parse_manifest", parsed)
    monkeypatch.setattr(bundle_module.Card, "model_validate_json", parsed)


def test_a_signed_bundle_names_its_signer_and_keeps_its_digest(folder: Path) -> None:
    """The signature is about the bundle, not part of it."""
    signed = open_bundle(folder, signed_by=[PUBLIC])
    (folder / SIGNATURE).unlink()
    unsigned = open_bundle(folder)
    assert (signed.signed_by, unsigned.signed_by) == (PUBLIC, None)
    assert (signed.digest, signed.files) == (unsigned.digest, unsigned.files)


def test_openssl_agrees(folder: Path, tmp_path: Path) -> None:
    """Anybody can check a signature without fer_lab."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    record = json.loads((folder / SIGNATURE).read_text(encoding="utf-8"))
    (tmp_path / "message").write_bytes(CONTEXT + (folder / MANIFEST).read_bytes())
    (tmp_path / "signature").write_bytes(base64.b64decode(record["signature"]))
    key = write_key(tmp_path / "key.pem")
    command = [openssl, "pkeyutl", "-verify", "-rawin", "-inkey", key, "-in", "message", "-sigfile", "signature"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    (tmp_path / "message").write_bytes((folder / MANIFEST).read_bytes())
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode != 0


@pytest.mark.parametrize("fault", ["manifest", "signature", "key", "swapped", "truncated", "no JSON", "huge", "link", "extra key"])
def test_a_signature_that_does_not_fit_is_refused_before_anything_is_parsed(
    fault: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without asking for a signer: a wrong signature is never as good as none."""
    path = folder / SIGNATURE
    record = json.loads(path.read_text(encoding="utf-8"))
    match fault:
        case "manifest":
            (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes() + b" ")
        case "signature":
            raw = bytearray(base64.b64decode(record["signature"]))
            raw[5] ^= 1
            path.write_text(json.dumps(record | {"signature": base64.b64encode(raw).decode()}), encoding="utf-8")
        case "key":
            other = base64.b64encode(OTHER.public_key().public_bytes_raw()).decode()
            path.write_text(json.dumps(record | {"public_key": other}), encoding="utf-8")
        case "swapped":  # the signature of another bundle by the same key
            another = tiny_bundle.write(tmp_path / "another", ["onnx"], name="another")
            sign(another / MANIFEST, KEY)
            shutil.copyfile(another / SIGNATURE, path)
        case "truncated":
            path.write_text(json.dumps(record | {"signature": record["signature"][:40]}), encoding="utf-8")
        case "no JSON":
            path.write_bytes(b"\xff\x00")
        case "huge":
            path.write_text(json.dumps(record) + " " * 10_000, encoding="utf-8")
        case "link":
            path.replace(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
        case "extra key":
            path.write_text(json.dumps(record | {"trusted": True}), encoding="utf-8")
    refuse_to_parse(monkeypatch)
    with pytest.raises(IntegrityError, match="signature"):
        open_bundle(folder)


@pytest.mark.parametrize("signer", ["another key", "nobody"])
def test_a_signer_who_was_not_asked_for_is_refused_before_anything_is_parsed(
    signer: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says who signed it and who should have."""
    if signer == "nobody":
        (folder / SIGNATURE).unlink()
    else:
        sign(folder / MANIFEST, OTHER)
    refuse_to_parse(monkeypatch)
    with pytest.raises(IntegrityError, match=rf"is (not signed|signed by \S+); expected a signature by {PUBLIC[:20]}"):
        open_bundle(folder, signed_by=[PUBLIC])


def test_a_changed_file_of_a_signed_bundle_is_refused(folder: Path) -> None:
    """By the manifest, which the signature covers."""
    (folder / "onnx" / "model.onnx").write_bytes(b"other")
    with pytest.raises(IntegrityError, match="was altered"):
        open_bundle(folder)


def test_a_new_manifest_drops_the_old_signature(folder: Path) -> None:
    """An export that begins from a signed bundle is not signed."""
    (folder / "parity.json").write_text("{}", encoding="utf-8")
    write_manifest(folder)
    assert open_bundle(folder).signed_by is None


def test_a_key_is_read_with_and_without_a_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The passphrase comes from the environment, and its absence is said."""
    assert read_key(write_key(tmp_path / "plain")).private_bytes_raw() == bytes(range(32))
    locked = write_key(tmp_path / "locked", passphrase=b"secret")
    with pytest.raises(InputError, match=f"is encrypted; set {PASSPHRASE}"):
        read_key(locked)
    monkeypatch.setenv(PASSPHRASE, "secret")
    assert read_key(locked).private_bytes_raw() == bytes(range(32))
    with pytest.raises(InputError, match=f"is not encrypted; unset {PASSPHRASE}"):
        read_key(tmp_path / "plain")
    monkeypatch.setenv(PASSPHRASE, "guess")
    with pytest.raises(InputError, match="is wrong"):
        read_key(locked)


def test_what_is_no_key_is_named(tmp_path: Path) -> None:
    """Absent, readable by others, another kind, no PEM."""
    with pytest.raises(NotFound, match="openssl genpkey"):
        read_key(tmp_path / "absent")
    shown = write_key(tmp_path / "shown")
    shown.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        read_key(shown)
    with pytest.raises(InputError, match="another kind of key"):
        read_key(write_key(tmp_path / "ec", generate_private_key(SECP256R1())))
    (tmp_path / "text").write_text("no key", encoding="utf-8")
    (tmp_path / "text").chmod(0o600)
    with pytest.raises(InputError, match="cannot be read as a private key"):
        read_key(tmp_path / "text")


def test_the_demanded_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several with commas; a misspelt one is an error, never nobody."""
    monkeypatch.delenv(VARIABLE, raising=False)
    assert demanded() is None
    monkeypatch.setenv(VARIABLE, f" {PUBLIC}, {public_key('A' * 43 + '=')}")
    assert demanded() == {PUBLIC, "A" * 43 + "="}
    monkeypatch.setenv(VARIABLE, "somebody")
    with pytest.raises(InputError, match=f"{VARIABLE}: 'somebody' is not an Ed25519 public key"):
        demanded()


def test_a_policy_with_a_misspelt_key_is_refused() -> None:
    """The gate would otherwise refuse everything, and nobody would know why."""
    rules = {"schema": 1, "gates": {"signed_by": {"keys": ["somebody"]}}, "first_promotion": {"licence": {}}}
    with pytest.raises(InputError, match=r"gates\.signed_by: keys: .*'somebody' is not an Ed25519 public key"):
        policy.parse(rules)
    rules["gates"] = {"signed_by": {"keys": []}}
    with pytest.raises(InputError, match="keys"):
        policy.parse(rules)


def test_an_unsigned_bundle_needs_no_cryptography(folder: Path) -> None:
    """Its library is imported for a signature only, so that a path starts as fast as before."""
    (folder / SIGNATURE).unlink()
    code = (
        f"import sys; from fer_lab.backends.bundle import open_bundle; open_bundle({str(folder)!r}); "
        "print('cryptography' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
