"""Write tests/golden/schema-N: the smallest bundle, dataset and store of the schema this version writes.

    python tests/golden/write.py

Run once, when a release changes a schema, into a new folder; the folders of earlier releases are never written again
(tests/golden/test_golden.py loads them all, for ever).
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent
sys.path.insert(0, str(GOLDEN.parent))


def main() -> None:
    """Write the folder of the current schema; refuses to touch one that is there."""
    import tiny_bundle

    from fer_lab.backends.bundle import SCHEMA, open_bundle
    from fer_lab.backends.session import Predictor
    from fer_lab.data.synthetic import draw
    from fer_lab.tracking.ledger import Ledger
    from fer_lab.tracking.registry import register
    from fer_lab.tracking.store import open_store

    folder = GOLDEN / f"schema-{SCHEMA}"
    folder.mkdir()
    drawn = draw(24, seed=0)
    drawn.save(folder / "dataset")
    bundle = open_bundle(tiny_bundle.write(folder / "bundle"))
    with Predictor.open(bundle, "openvino", threads=1) as predictor:
        answers = predictor.predict(drawn.pixels[:4])
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        store = open_store(home)
        for name in ("first", "second"):
            register(store, tiny_bundle.write(home / name, ("onnx",), name=name), run_id=None)
        ledger = Ledger(store, "fer-synthetic-8")
        ledger.promote(1, expected=None, runtime="onnx", user="golden")
        ledger.promote(2, expected=1, runtime="onnx", user="golden")
        database = home / "mlruns" / "mlflow.db"
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("VACUUM INTO ?", (str(home / "copy.db"),))
        with tarfile.open(folder / "store.tar.xz", "w:xz") as archive:
            archive.add(home / "copy.db", "mlruns/mlflow.db")
    facts = {"fingerprint": drawn.fingerprint, "digest": bundle.digest, "answers": np.round(answers, 5).tolist()}
    (folder / "expected.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
