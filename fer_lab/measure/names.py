"""Short names of models for tables and charts: a run's own, of a path its last part, and as much before it as tells two apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path


def short_names(models: Mapping[str, str]) -> dict[str, str]:
    """Return a short name for each model, no two alike: registry names lose their scheme, runs go by their own name.

    models: from the reference to the name of its run, "" without one. Runs that share a name get eight digits of their ids too.

    >>> list(short_names({"models:/fer-ferplus-8/3": "b0", "some/where/net.onnx": "", "runs:/0123456789ab": "b0"}).values())
    ['fer-ferplus-8/3', 'net.onnx', 'b0']
    >>> list(short_names({"runs/a/bundle": "", "runs/b/bundle": "", "c/net.onnx": ""}).values())
    ['a/bundle', 'b/bundle', 'net.onnx']
    >>> list(short_names({"runs:/0123456789ab": "b0", "runs:/fedcba987654": "b0", "runs:/42": ""}).values())
    ['b0 (run 01234567)', 'b0 (run fedcba98)', 'run 42']
    """
    names = {model: _short(model, name, 1) for model, name in models.items()}
    longest = max((3, *(len(Path(model).parts) for model in names)))  # 3: a run's name, eight digits too, the whole id
    for parts in range(2, longest + 1):
        names |= {model: _short(model, models[model], parts) for model in _alike(names)}
    return names | {model: model for model in _alike(names)}


def _short(model: str, name: str, parts: int) -> str:
    if model.startswith("models:/"):
        return model.removeprefix("models:/")
    if model.startswith("runs:/"):
        run_id = model.removeprefix("runs:/")
        run = f"run {run_id[:8] if parts < 3 else run_id}"
        if not name:
            return run
        return name if parts == 1 else f"{name} ({run})"
    return Path(*Path(model).parts[-parts:]).as_posix()


def _alike(names: Mapping[str, str]) -> list[str]:
    """The models whose short name another one has too."""
    count = Counter(names.values())
    return [model for model, name in names.items() if count[name] > 1]
