"""`mlflow models serve` answers a JSON request with faces: a real server, a registered version, the runtime asked for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from linear_bundle import write
from tracking_store import free_port, fresh_store, until_up

from fer_lab.backends.session import Predictor
from fer_lab.tracking.registry import register, set_alias


@pytest.mark.slow
def test_a_served_version_answers_a_json_request(home: Path, tmp_path: Path, drawn) -> None:  # type: ignore[no-untyped-def]
    store = fresh_store(home)
    bundle = write(tmp_path / "linear", drawn)
    version = register(store, bundle.folder, run_id=None)
    set_alias(store, version.name, "challenger", version.version)
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{version.name}@challenger",
        "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    # MLflow starts uvicorn by its name: the environment's programs must be found.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"MLFLOW_TRACKING_URI": store.uri, "PATH": path}
    log = tmp_path / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        until_up(server, f"{address}/ping", log)
        faces = drawn.pixels[:3]
        request = urllib.request.Request(
            f"{address}/invocations", json.dumps({"inputs": faces.tolist()}).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            said = np.array(json.load(reply)["predictions"], np.float32)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)
    with Predictor.open(bundle, "openvino") as predictor:
        np.testing.assert_allclose(said, predictor.predict(faces), atol=1e-6)
