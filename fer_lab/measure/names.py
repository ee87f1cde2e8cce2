"""Short names of models for tables and charts: of a path its last part, and as many folders before it as tell two apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Return a short name for each model, no two alike: registry names lose their scheme, run ids all but eight digits.

    >>> list(short_names(["models:/fer-ferplus-8/3", "some/where/net.onnx", "runs:/0123456789abcdef"]).values())
    ['fer-ferplus-8/3', 'net.onnx', 'run 01234567']
    >>> list(short_names(["runs/a/bundle", "runs/b/bundle", "c/net.onnx"]).values())
    ['a/bundle', 'b/bundle', 'net.onnx']
    """
    names = {model: _short(model, 1) for model in models}
    longest = max((len(Path(model).parts) for model in names), default=1)
    for parts in range(2, longest + 1):
        names |= {model: _short(model, parts) for model in _alike(names)}
    return names | {model: model for model in _alike(names)}


def _short(model: str, parts: int) -> str:
    if model.startswith("models:/"):
        return model.removeprefix("models:/")
    if model.startswith("runs:/"):
        run_id = model.removeprefix("runs:/")
        return f"run {run_id[:8] if parts == 1 else run_id}"
    return Path(*Path(model).parts[-parts:]).as_posix()


def _alike(names: Mapping[str, str]) -> list[str]:
    """The models whose short name another one has too."""
    count = Counter(names.values())
    return [model for model, name in names.items() if count[name] > 1]
