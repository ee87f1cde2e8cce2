"""Finds the plug-ins of a package: each file of the package exposes one constant of an agreed name.

A dataset, a backbone family, a runtime, a detector or a gate is one new file and nothing else. Heavy imports stay
inside the functions of the plug-in, so that listing them costs nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any


def discover(package: str, constant: str) -> dict[str, Any]:
    """Return `{plugin.name: plugin}` for every module of `package` that defines `constant`.

    `constant` holds one plug-in or a tuple of them. Raises RuntimeError when two plug-ins share a name.
    """
    found: dict[str, Any] = {}
    for module_info in sorted(pkgutil.iter_modules(importlib.import_module(package).__path__), key=lambda m: m.name):
        module = importlib.import_module(f"{package}.{module_info.name}")
        value = getattr(module, constant, None)
        if value is None:
            continue
        for plugin in value if isinstance(value, tuple) else (value,):
            if plugin.name in found:
                raise RuntimeError(f"two plug-ins of {package} are called {plugin.name!r}")
            found[plugin.name] = plugin
    return found
