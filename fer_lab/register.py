"""Register a run or a bundle folder as a version of a model.

    python -m fer_lab.register runs:/RUN_ID
    python -m fer_lab.register exports/my-bundle --alias challenger

The bundle is verified, stored with the registry and tagged with its digest, run, protocol, label source, seeds and
validation score. Registering the same run and content again returns the version that exists. Prints the version and
ends with {"name": …, "version": …}. A version is also an MLflow pyfunc: with MLFLOW_TRACKING_URI set,
`mlflow.pyfunc.load_model("models:/NAME/VERSION").predict(faces)` takes uint8 faces and returns probabilities.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fer_lab.core import console
from fer_lab.core.errors import NotFound, Refused


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m fer_lab.register", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="runs:/RUN_ID, a run id, or a bundle folder")
    parser.add_argument("--name", help="the registered model; by default what it was trained on, e.g. fer-ferplus-8")
    parser.add_argument("--alias", help="also point this alias at the version, e.g. challenger")
    return console.run(parser, body, argv)


def body(args: argparse.Namespace) -> dict[str, Any]:
    """Register and report. Raises NotFound, Refused (the run did not finish), IntegrityError (the bundle is damaged)."""
    from fer_lab.tracking.registry import register, resolve, set_alias
    from fer_lab.tracking.store import export_line, open_store

    ref: str = args.model
    if re.fullmatch(r"[0-9a-f]{32}", ref) and not Path(ref).exists():
        ref = f"runs:/{ref}"
    if ref.startswith("models:/"):
        raise NotFound(f"{ref} is registered already; give runs:/RUN_ID or a bundle folder")
    if not ref.startswith("runs:/"):
        resolve(ref)  # a damaged bundle is refused before the store is opened
    store = open_store()
    resolved = resolve(ref, store)
    run_id = resolved.run_id
    if ref.startswith("runs:/"):
        status = store.run_info(str(run_id))["status"]
        if status != "FINISHED":
            raise Refused(
                f"run {run_id} is {status}; only a FINISHED run is registered. Resume it with fer_lab.train --resume {run_id}"
            )
    elif run_id is not None:
        try:
            store.run_info(run_id)
        except NotFound:
            run_id = None  # trained elsewhere; its card still says where
    version = register(store, resolved.bundle.folder, run_id=run_id, name=args.name)
    if args.alias:
        set_alias(store, version.name, args.alias, version.version)
    shown = f"{version.uri}" + (f" (@{args.alias})" if args.alias else "")
    console.say(f"registered {shown}: {resolved.bundle.card.backbone}, {', '.join(resolved.bundle.runtimes)}")
    console.say(f"for MLflow's own commands: export {export_line(store)}")
    console.next_command(f"python -m fer_lab.export {version.uri}")
    return {
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "run_id": version.run_id,
        "alias": args.alias,
    }


if __name__ == "__main__":
    sys.exit(main())
