"""The team's services, started as docker/compose.yaml says, and one sweep through them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from compose_processes import Stack, install_tools, started

pytestmark = pytest.mark.slow

TINY = [
    "data.subset=64", "train.batch_size=16", "train.epochs=1", "train.image_size=32", "train.device=cpu", "train.threads=1",
    "sweep.trials=1", "sweep.confirm.top=1", "sweep.confirm.seeds=1", "sweep.pruner.name=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """PostgreSQL, an S3 server, the bucket job, the MLflow server, the drawn data: up."""
    with started(install_tools(tmp_path_factory.mktemp("tools"))) as running:
        yield running


def test_a_worker_sweeps_and_the_demo_runs_its_challenger(stack: Stack) -> None:
    """Study in one database, runs in the other, files in the bucket through the server, and out again."""
    said = stack.run("worker", *TINY)
    result = json.loads(said.stdout.splitlines()[-1])
    assert result["trials"] == {"complete": 1, "pruned": 0, "failed": 0}
    assert result["registered"] == {**result["registered"], "name": "fer-synthetic-8", "version": 1, "alias": "challenger"}

    weights = list(stack.objects.rglob("weights.safetensors"))
    assert weights, "no artifact reached the bucket"
    assert {path.relative_to(stack.objects).parts[0] for path in weights} == {"mlflow"}
    assert not (stack.home / "mlruns" / "mlflow.db").exists()

    command = ["models:/fer-synthetic-8@challenger", "--runtime", "torch", "--source", "sample", "--view", "none"]
    demo = stack.command("demo")
    stack.services["demo"]["command"] = []
    shown = stack.run("demo", *command)
    assert demo[1:3] == ["-m", "fer_lab.demo"]
    assert json.loads(shown.stdout.splitlines()[-1])["frames_with_face"] > 0

    status = stack.run("worker", *TINY, "--status")
    assert json.loads(status.stdout.splitlines()[-1])["finished"] is True


def test_the_bucket_job_can_run_again(stack: Stack) -> None:
    """Compose starts it at every `up`."""
    assert stack.run("bucket").stdout == "bucket mlflow is there\n"


def test_each_account_reaches_its_own_database_only(stack: Stack) -> None:
    """And none without its password."""
    for own, other in (("mlflow", "optuna"), ("optuna", "mlflow")):
        password = stack.values[f"{own.upper()}_DB_PASSWORD"]
        assert stack.psql(own, own, "SELECT count(*) FROM alembic_version", password).stdout == "1\n"
        refused = stack.psql(own, other, "SELECT 1", password)
        assert (refused.returncode, "permission denied" in refused.stderr) == (2, True)
        wrong = stack.psql(own, own, "SELECT 1", "wrong")
        assert (wrong.returncode, "password authentication failed" in wrong.stderr) == (2, True)


def test_the_server_answers_to_its_names_only(stack: Stack) -> None:
    """Its service name, so that workers are let in; another site's name is turned away."""
    path = "/api/2.0/mlflow/experiments/search?max_results=1"
    port = stack.ports["mlflow"]
    assert {stack.get(path, host) for host in (f"mlflow:{port}", f"localhost:{port}")} == {200}
    assert stack.get(path, "evil.example") == 403


def test_no_secret_shows_in_logs_or_in_the_process_list(stack: Stack) -> None:
    """Every password and key, everywhere that somebody else can read."""
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    shown = stack.logs() + b"\n".join(lines).decode(errors="replace")
    assert [name for name, value in stack.values.items() if value in shown] == []
