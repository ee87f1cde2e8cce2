"""docker/compose.yaml for tests: read, its variables filled in as compose does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docker" / "compose.yaml"
EXAMPLE = ROOT / "docker" / ".env.example"
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


class Missing(KeyError):
    """A variable that has neither a value nor a default."""


def services(values: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The services with `${NAME}`, `${NAME:-default}` and `${NAME:?message}` filled in. Raises Missing."""

    def fill(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: fill(value) for key, value in node.items()}
        if isinstance(node, list):
            return [fill(value) for value in node]
        return VARIABLE.sub(one, node) if isinstance(node, str) else node

    def one(match: re.Match[str]) -> str:
        value = values.get(match["name"])
        if value:
            return value
        if match["kind"] != "-":
            raise Missing(f"{match['name']}: {match['rest']}")
        return match["rest"]

    return fill(yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"])  # type: ignore[no-any-return]


def secret_names() -> list[str]:
    """The names in docker/.env.example."""
    return re.findall(r"^(\w+)=", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)


SERVICES_BUILT = {
    name: service["image"]
    for name, service in yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"].items()
    if "build" in service
}
"""The services whose images are built here → their image."""
