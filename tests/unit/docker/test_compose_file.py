"""docker/compose.yaml: valid, hardened, without a secret or a default for one."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
from compose_file import EXAMPLE, FILE, ROOT, VARIABLE, Missing, secret_names, services

FILLED = {name: f"value-of-{name}" for name in secret_names()}
SERVICES = services(FILLED)
ONE_SHOT = {"bucket", "data"}
each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())


def test_it_follows_the_schema_of_compose() -> None:
    """The schema that check-jsonschema carries, so no network is needed."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_would_notice_a_fault(tmp_path: Path) -> None:
    """A misspelt key is refused: the check above is not vacuous."""
    broken = tmp_path / "compose.yaml"
    broken.write_text(FILE.read_text(encoding="utf-8").replace("    command:", "    comand:", 1), encoding="utf-8")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(broken)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "comand" in done.stdout) == (1, True)


@pytest.mark.parametrize("name", secret_names())
def test_a_secret_has_no_default(name: str) -> None:
    """Without a value compose stops and names the variable; the example holds none."""
    with pytest.raises(Missing, match=name):
        services(FILLED | {name: ""})
    assert re.search(rf"^{name}=$", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_required_variable_stands_in_the_example() -> None:
    """And nothing else does."""
    required = {match["name"] for match in VARIABLE.finditer(FILE.read_text(encoding="utf-8")) if match["kind"] == "?"}
    assert sorted(required) == sorted(secret_names())


@each_service
def test_a_service_is_hardened(service: dict[str, Any]) -> None:
    """A read-only root, no capabilities, no new privileges, limits on processor, memory and logs."""
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys()
    assert "max-size" in service["logging"]["options"]
    assert "privileged" not in service


@each_service
def test_no_service_runs_as_root(service: dict[str, Any]) -> None:
    """Images of others are given a user; ours end with one."""
    if "build" in service:
        text = (ROOT / service["build"]["dockerfile"]).read_text(encoding="utf-8")
        target = text.partition(f" AS {service['build']['target']}\n")[2] if "target" in service["build"] else text
        assert "USER 10001:10001" in target
    else:
        assert not str(service["user"]).startswith(("0", "root"))


@each_service
def test_an_image_is_pinned_by_tag(service: dict[str, Any]) -> None:
    """No `latest`, and no digest that nobody has seen."""
    name, _, tag = service["image"].rpartition(":")
    assert re.fullmatch(r"\d+\.\d+[\w.-]*", tag), service["image"]
    assert "@" not in name


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_says_whether_it_is_well(name: str) -> None:
    """A health check with a time to start, or the reason why there is none beside it."""
    check = SERVICES[name]["healthcheck"]
    if name in ONE_SHOT | {"worker"}:
        assert check == {"disable": True}
    else:
        assert {"test", "interval", "timeout", "retries", "start_period"} <= check.keys()


def test_only_the_server_and_its_store_hold_the_keys() -> None:
    """Workers and the demo send their artifacts through the server."""
    holders = {name for name, service in SERVICES.items() if FILLED["S3_SECRET_KEY"] in service["environment"].values()}
    assert holders == {"s3", "bucket", "mlflow"}
    assert set(SERVICES["worker"]["networks"]) & set(SERVICES["s3"]["networks"]) == set()
    assert set(SERVICES["demo"]["networks"]) == {"front"}


def test_no_secret_is_on_a_command_line_or_in_a_url() -> None:
    """`ps` and a log line of a URL show none."""
    for service in SERVICES.values():
        shown = [*service.get("command", []), *(v for v in service["environment"].values() if "://" in v)]
        assert [text for text in shown if any(secret in text for secret in FILLED.values())] == []


def test_ports_are_open_on_this_machine_only() -> None:
    """A team's server needs TLS before it; compose does not pretend otherwise."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_the_server_answers_to_its_service_name() -> None:
    """Else every worker gets 403 from the host check."""
    command = SERVICES["mlflow"]["command"]
    assert "mlflow:5000" in command[command.index("--allowed-hosts") + 1].split(",")
    assert SERVICES["worker"]["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"


def test_mlflow_and_optuna_have_a_database_each() -> None:
    """They own a table of the same name."""
    mlflow = SERVICES["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    optuna = SERVICES["worker"]["environment"]["FER_LAB_STORAGE"]
    assert (mlflow, optuna) == (
        "postgresql+psycopg://mlflow@postgres:5432/mlflow", "postgresql+psycopg://optuna@postgres:5432/optuna",
    )  # fmt: skip


def test_a_new_env_file_has_a_value_for_every_secret_and_is_never_overwritten(tmp_path: Path) -> None:
    """Random, different, readable by its owner only."""
    for name in ("new-env.sh", ".env.example"):
        copyfile(ROOT / "docker" / name, tmp_path / name)
    first = subprocess.run(["sh", str(tmp_path / "new-env.sh")], capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    written = tmp_path / ".env"
    values = dict(re.findall(r"^(\w+)=(\w+)$", written.read_text(encoding="utf-8"), re.MULTILINE))
    assert sorted(values) == sorted(secret_names())
    assert len(set(values.values())) == len(values)
    assert min(map(len, values.values())) == 48
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    before = written.read_bytes()
    second = subprocess.run(["sh", str(tmp_path / "new-env.sh")], capture_output=True, text=True)
    assert (second.returncode, written.read_bytes()) == (5, before)
