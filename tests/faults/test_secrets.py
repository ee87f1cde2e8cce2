"""Passwords and keys planted wherever a team keeps them; real commands, their errors too; then a search of all they left.

Real PostgreSQL, a real MLflow server, real processes. Searched for every secret, whole or in part: what was printed, every
file (logs, sqlite, artifacts, PostgreSQL's own files with its write-ahead log), and the command line of every process that ran.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tracking_store
from compose_processes import postgres_programs
from fault_figures import publish
from tracking_store import free_port, mlflow_server

pytestmark = [pytest.mark.faults, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")]

# The middle is what is searched for. `/` and `@` have to be quoted in a URL, and people forget to.
DATABASE, QUOTED = "pgcanary/7@f", "pgcanary%2F7%40f"
SERVER, PASSPHRASE, ACCESS, SECRET, USER_PASSWORD = "httpcanary", "pemcanary", "awsidcanary", "awskeycanary", "basiccanary"
SOUGHT = tuple(word.encode() for word in ("pgcanary", SERVER, PASSPHRASE, ACCESS, SECRET, USER_PASSWORD))
TINY = [
    "data.dataset=synthetic", "data.subset=64", "train.batch_size=16", "train.epochs=1", "train.image_size=32", "train.device=cpu",
    "train.threads=1", "train.warmup_epochs=0", "sweep.trials=1", "sweep.workers=2", "sweep.confirm.top=1", "sweep.confirm.seeds=1",
    "sweep.pruner.name=none",
]  # fmt: skip
QUICKSTART = str(Path(__file__).parents[2] / "experiments" / "quickstart.yaml")


@dataclass
class Team:
    """A database, a tracking server, and one folder for all that commands leave."""

    folder: Path
    database: str  # HOST:PORT
    server: str
    seen: set[bytes] = field(default_factory=set)  # command lines

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a worker that knows every secret."""
        return os.environ | {
            "FER_LAB_HOME": str(self.folder / "home"), "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1",
            "FER_LAB_STORAGE": f"postgresql+psycopg://lab:{QUOTED}@{self.database}/optuna",
            "MLFLOW_TRACKING_URI": f"http://ann:{SERVER}@{self.server}",
            "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET,
            "FER_LAB_KEY_PASSPHRASE": PASSPHRASE,
        } | more  # fmt: skip

    def run(self, verb: str, *options: str, **more: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end; what it prints is kept to be searched."""
        command = [sys.executable, "-m", f"fer_lab.{verb}", *options]
        done = subprocess.run(command, env=self.environment(**more), cwd=self.folder / "home", capture_output=True)
        with (self.folder / "printed").open("ab") as printed:
            printed.write(f"\n== {verb} {' '.join(options)}\n".encode() + done.stdout + done.stderr)
        return done

    def watch(self, over: threading.Event) -> None:
        """Collect the command lines of all processes."""
        while not over.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    self.seen.add(path.read_bytes())

    def found(self) -> list[str]:
        """Where any of the secrets stands: file and line, or the command line."""
        lines = (
            (path, line)
            for path in self.folder.rglob("*") if path.is_file() and any(secret in path.read_bytes() for secret in SOUGHT)
            for line in path.read_bytes().splitlines()
        )  # fmt: skip
        texts = [*(f"{path}: ".encode() + line for path, line in lines), *self.seen]
        return [text.decode(errors="replace")[:500] for text in texts if any(secret in text for secret in SOUGHT)]


@contextlib.contextmanager
def postgres(folder: Path, port: int) -> Iterator[None]:
    """A real PostgreSQL that asks for a password, with an empty database `optuna` of the account `lab`."""
    programs, data = postgres_programs(), folder / "postgres"
    data.mkdir()
    account = {}
    if os.geteuid() == 0:  # PostgreSQL refuses root
        shutil.chown(data, "postgres", "postgres")
        account = {"user": "postgres", "group": "postgres", "extra_groups": []}
    with tempfile.NamedTemporaryFile("w") as password:
        password.write(DATABASE)
        password.flush()
        os.chmod(password.name, 0o644)
        options = ["--no-sync", "-D", data, "-U", "lab", "-A", "scram-sha-256", f"--pwfile={password.name}"]
        subprocess.run([programs / "initdb", *options], check=True, cwd=data, stdout=subprocess.DEVNULL, **account)
    with (folder / "postgres.log").open("wb") as log:
        options = ["-D", str(data), "-k", str(data), "-h", "127.0.0.1", "-p", str(port), "-c", "log_statement=all"]
        server = subprocess.Popen([programs / "postgres", *options], cwd=data, stdout=log, stderr=log, **account)
    try:
        ready = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", "lab", "-d", "postgres", "-c", "CREATE DATABASE optuna"]
        until = time.monotonic() + 120
        while subprocess.run(ready, env=os.environ | {"PGPASSWORD": DATABASE}, capture_output=True).returncode:
            assert time.monotonic() < until, (folder / "postgres.log").read_text()[-2000:]
            time.sleep(0.5)
        yield
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


@pytest.fixture
def team() -> Iterator[Team]:
    """Everything up, and somebody who looks at the process list."""
    folder = Path(tempfile.mkdtemp(prefix="fer-secrets-"))  # not below pytest's folder: PostgreSQL's account must reach it
    folder.chmod(0o755)
    (folder / "home").mkdir()
    (folder / "server").mkdir()
    ports = free_port(), free_port()
    running = Team(folder, f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")
    over = threading.Event()
    watcher = threading.Thread(target=running.watch, args=(over,))
    try:
        with postgres(folder, ports[0]), mlflow_server(folder / "server", ports[1]):
            watcher.start()
            yield running
            over.set()
            watcher.join()
    finally:
        over.set()
        shutil.rmtree(folder, ignore_errors=True)


def test_no_secret_is_left_anywhere(team: Team) -> None:
    """A sweep, its status, a signed registration, a comparison, a promotion, and every way in which a connection fails."""
    for verb, *options in (
        ("prepare", "synthetic", "--count", "200"),
        ("sweep", QUICKSTART, *TINY, "--study", "secret"),
        ("sweep", QUICKSTART, *TINY, "--study", "secret", "--status"),
    ):
        done = team.run(verb, *options)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:].decode()
    key = Path(tempfile.mkdtemp()) / "key.pem"
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "env:FER_LAB_KEY_PASSPHRASE", "-out", key],
        env=team.environment(), check=True, capture_output=True,
    )  # fmt: skip
    key.chmod(0o600)
    bundle = tracking_store.tiny_bundle(team.folder / "bundle")
    signed = team.run("register", str(bundle), "--name", "signed", "--sign", str(key))
    assert signed.returncode == 0, signed.stderr.decode()
    options = ["--split", "valid", "--no-robustness", "--no-latency", "--no-cold-start"]
    compared = team.run("compare", "models:/fer-synthetic-8@challenger", *options)
    assert compared.returncode == 0, compared.stderr.decode()
    team.run("promote", "models:/fer-synthetic-8@challenger", "--dry-run")

    passfile = key.with_name("pgpass")
    passfile.write_text(f"*:*:*:lab:{DATABASE}\n")
    passfile.chmod(0o600)
    without = f"postgresql+psycopg://lab@{team.database}/optuna"
    by_file = team.run(
        "sweep", QUICKSTART, *TINY, "--study", "secret", "--status", FER_LAB_STORAGE=without, PGPASSFILE=str(passfile)
    )
    assert by_file.returncode == 0, by_file.stderr.decode()

    failures = broken(team)
    for n, (name, value) in enumerate(failures):
        for debug in ([], ["--debug"]):
            verb = ["sweep", QUICKSTART, *TINY, "--study", f"other-{n}", *(["--status"] if name == "FER_LAB_STORAGE" else [])]
            more = {name: value, "MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": USER_PASSWORD}
            done = team.run(*verb, *debug, **more)
            assert (done.returncode, b"internal error" in done.stderr) == (2, False), (name, value, done.stderr.decode())

    lines = [json.loads(line) for line in (team.folder / "printed").read_bytes().splitlines() if line.startswith(b'{"')]
    assert len(lines) >= 6  # the search below looked at something
    assert any(b"fer_lab.sweep" in line for line in team.seen)
    found = team.found()
    publish(
        "secrets", secrets=len(SOUGHT), commands_that_fail=2 * len(failures), command_lines_seen=len(team.seen), found=len(found)
    )
    assert found == []


def broken(team: Team) -> list[tuple[str, str]]:
    """A variable, and a value with its secret that leads nowhere."""
    closed = f"127.0.0.1:{free_port()}"
    return [
        ("FER_LAB_STORAGE", f"postgresql+psycopg://lab:{QUOTED}x@{team.database}/optuna"),  # wrong password
        ("FER_LAB_STORAGE", f"postgresql+psycopg://lab:{QUOTED}@{team.database}/nowhere"),
        ("FER_LAB_STORAGE", f"postgresql+psycopg://lab:{QUOTED}@{closed}/optuna"),
        ("FER_LAB_STORAGE", f"postgresql+psycopg://lab:{DATABASE}@{team.database}/optuna"),  # not quoted
        ("FER_LAB_STORAGE", f"postgresql+psycopg://lab:{QUOTED}@{team.database}:x/optuna"),
        ("FER_LAB_STORAGE", f"postgresql+nodriver://lab:{QUOTED}@{team.database}/optuna"),
        ("FER_LAB_STORAGE", f"mysql://lab:{QUOTED}@{team.database}/optuna"),
        ("FER_LAB_STORAGE", f"lab:{DATABASE}@{team.database}/optuna"),
        ("MLFLOW_TRACKING_URI", f"http://ann:{SERVER}@{closed}"),
        ("MLFLOW_TRACKING_URI", f"http://ann:{SERVER}/7@{closed}"),
        ("MLFLOW_TRACKING_URI", f"http://ann:{SERVER}@{closed}:x"),
        ("MLFLOW_TRACKING_URI", f"http://ann:{SERVER}@[::1"),
        ("MLFLOW_TRACKING_URI", f"ftp://ann:{SERVER}@{closed}"),
        ("MLFLOW_TRACKING_URI", f"postgresql+psycopg://lab:{QUOTED}x@{team.database}/optuna"),
        ("MLFLOW_TRACKING_URI", f"postgresql+psycopg://lab:{DATABASE}@{closed}/optuna"),
    ]
