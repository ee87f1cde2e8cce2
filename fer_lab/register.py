"""Register a run or a bundle folder as a version of a model.

    python -m fer_lab.register runs:/RUN_ID
    python -m fer_lab.register exports/my-bundle --alias challenger
    python -m fer_lab.register models:/fer-ferplus-8@challenger --sign signer.pem --alias challenger

The bundle is verified, stored with the registry and tagged with its digest, run, protocol, label source, seeds and
validation score. Registering the same run and content again returns the version that exists. @champion and @previous are
not for `--alias`: promote moves them, through the gates. `--sign` puts an Ed25519
signature of its manifest beside it and registers that as a version of its own, also of a version that is there; the gate
`signed_by` asks for the public key, which is printed. Sign before you compare. Prints the version and ends with
{"name": …, "version": …}. A version is also an MLflow pyfunc: with MLFLOW_TRACKING_URI set,
`mlflow.pyfunc.load_model("models:/NAME/VERSION").predict(faces)` takes uint8 faces and returns probabilities.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.core import console
from fer_lab.core.errors import InputError, NotFound

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m fer_lab.register", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="runs:/RUN_ID, a run id, or a bundle folder; with --sign also models:/NAME@ALIAS or /VERSION")
    parser.add_argument("--name", help="the registered model; by default what it was trained on, e.g. fer-ferplus-8")
    parser.add_argument("--alias", help="also point this alias at the version, e.g. challenger")
    parser.add_argument("--sign", type=Path, metavar="KEY", help="sign it with this Ed25519 key (PEM)")
    return console.run(parser, body, argv)


def body(args: argparse.Namespace) -> dict[str, Any]:
    """Register and report.

    Raises InputError (an alias that only promote moves), NotFound, Refused (the run did not finish), IntegrityError (the bundle
    is damaged).
    """
    from fer_lab.backends.signature import read_key
    from fer_lab.tracking.ledger import CHAMPION, PREVIOUS
    from fer_lab.tracking.registry import register, resolve, run_of, set_alias
    from fer_lab.tracking.store import export_line, open_store

    if args.alias and args.alias.lower() in (CHAMPION, PREVIOUS):
        raise InputError(
            f"--alias {args.alias}: only the gates make a champion. Register it with --alias challenger, "
            f"then run: python -m fer_lab.promote models:/{args.name or 'NAME'}@challenger"
        )
    ref: str = args.model
    if re.fullmatch(r"[0-9a-f]{32}", ref) and not Path(ref).exists():
        ref = f"runs:/{ref}"
    key = read_key(args.sign) if args.sign else None
    if ref.startswith("models:/") and key is None:
        raise NotFound(f"{ref} is registered already; give runs:/RUN_ID or a bundle folder, or sign it with --sign KEY")
    if not ref.startswith(("runs:/", "models:/")):
        resolve(ref)  # a damaged bundle is refused before the store is opened
    store = open_store()
    resolved = resolve(ref, store)
    run_id = run_of(store, resolved)
    name = args.name or resolved.name
    if key is None:
        version = register(store, resolved.bundle.folder, run_id=run_id, name=name)
    else:
        with _signed(resolved.bundle.folder, key) as folder:
            version = register(store, folder, run_id=run_id, name=name)
    if args.alias:
        set_alias(store, version.name, args.alias, version.version)
    shown = f"{version.uri}" + (f" (@{args.alias})" if args.alias else "")
    console.say(f"registered {shown}: {resolved.bundle.card.backbone}, {', '.join(resolved.bundle.runtimes)}")
    signed_by = version.tags.get("signed_by")
    if signed_by:
        console.say(f"signed by {signed_by} (for the gate signed_by: {{keys: [{signed_by}]}})")
    console.say(f"for MLflow's own commands: export {export_line(store)}")
    console.next_command(f"python -m fer_lab.export {version.uri}")
    return {
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "run_id": version.run_id,
        "alias": args.alias,
        "signed_by": signed_by,
    }


@contextmanager
def _signed(bundle: Path, key: Ed25519PrivateKey) -> Iterator[Path]:
    """A signed copy of a bundle: what was given, and the cache, stay as they are."""
    from fer_lab.backends.bundle import MANIFEST
    from fer_lab.backends.signature import sign

    with tempfile.TemporaryDirectory() as staging:
        folder = Path(shutil.copytree(bundle, Path(staging) / "bundle"))
        sign(folder / MANIFEST, key)
        yield folder


if __name__ == "__main__":
    sys.exit(main())
