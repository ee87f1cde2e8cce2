"""The search space: dotted configuration keys with a range or choices, as Optuna distributions.

The space is flat: every trial has every key, so that TPE sees one joint space (Optuna falls back to independent
sampling outside the intersection of a conditional one).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

from fer_lab.core.config import Dimension, RunConfig, SweepConfig, run_config_of
from fer_lab.core.errors import FerLabError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

Space = Mapping[str, Dimension]

MACHINE_KEYS = ("device", "threads")
"""Keys of `train` that say where a run happens, not what it is."""
STUDY_KEYS = ("study", "trials", "workers", "lease_s", "max_hours")
"""Keys of `sweep` that say how far and by whom the study is run, not what it searches."""


def distribution(dimension: Dimension) -> BaseDistribution:
    """Return the Optuna distribution of one searched key."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.choices is not None:
        return CategoricalDistribution(dimension.choices)
    assert dimension.low is not None
    assert dimension.high is not None
    if dimension.integer:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=int(dimension.step or 1))
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def suggest(trial: Trial, space: Space) -> dict[str, Any]:
    """Ask Optuna for one value per key of the space."""
    values: dict[str, Any] = {}
    for key, dimension in space.items():
        if dimension.choices is not None:
            values[key] = trial.suggest_categorical(key, dimension.choices)
            continue
        assert dimension.low is not None
        assert dimension.high is not None
        if dimension.integer:
            low, high, step = int(dimension.low), int(dimension.high), int(dimension.step or 1)
            values[key] = trial.suggest_int(key, low, high, step=step, log=dimension.log)
        else:
            values[key] = trial.suggest_float(key, dimension.low, dimension.high, step=dimension.step, log=dimension.log)
    return values


def starting_point(config: SweepConfig) -> dict[str, Any] | None:
    """Return the configuration's own values of the searched keys, or None when one of them lies outside the space.

    The first trial runs them, so that a study is never worse than the configuration it started from.
    """
    tree = config.model_dump(mode="json")
    values: dict[str, Any] = {}
    for key, dimension in config.space.items():
        node: Any = tree
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if not _contains(dimension, node):
            return None
        values[key] = node if dimension.choices is not None or dimension.integer else float(node)
    return values or None


def corners(config: SweepConfig) -> Iterator[RunConfig]:
    """Yield the run configurations at every combination of the choices and extremes of the searched keys.

    Ranges of fractions (rates, probabilities) are left out: the schema has checked their ends, and nothing else depends on them.
    """
    chosen = {key: _extremes(d) for key, d in config.space.items() if d.choices is not None or d.integer or d.step}
    for values in product(*chosen.values()):
        yield run_config_of(config, dict(zip(chosen, values, strict=True)))


def study_spec(config: SweepConfig, fingerprint: str) -> dict[str, Any]:
    """Return what a study is: configuration, search space and data, without how far and by whom it is run."""
    tree = config.model_dump(mode="json")
    for key in STUDY_KEYS:
        tree["sweep"].pop(key)
    for key in MACHINE_KEYS:
        tree["train"].pop(key)
    tree["fingerprint"] = fingerprint
    return dict(json.loads(json.dumps(tree)))


def study_name(config: SweepConfig, spec: Mapping[str, Any]) -> str:
    """Return the explicit name, or the configuration's name with a hash of the specification."""
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    return config.sweep.study or f"{config.name}-{digest[:8]}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys in which two specifications differ."""
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping) and key != "space":
            found += [f"{key}.{inner}" for inner in differences(a, b)]
        elif a != b:
            found.append(key)
    return found


def finite(metrics: Mapping[str, float], metric: str) -> float:
    """Return the metric, a finite number. Raises FerLabError when it is absent or not finite (Optuna would let inf win)."""
    if metric not in metrics:
        raise FerLabError(f"sweep.metric {metric!r} is not measured; measured: {', '.join(sorted(metrics))}")
    value = float(metrics[metric])
    if not math.isfinite(value):
        raise FerLabError(f"nonfinite: {metric} is {value}")
    return value


LOWER_IS_BETTER = ("nll", "loss", "ece", "brier", "kl_to_votes", "js_to_votes")


def maximised(metric: str) -> bool:
    """Whether more of the metric is better."""
    return metric.rsplit("/", 1)[-1] not in LOWER_IS_BETTER


def _contains(dimension: Dimension, value: Any) -> bool:
    if dimension.choices is not None:
        return value in dimension.choices
    assert dimension.low is not None
    assert dimension.high is not None
    if isinstance(value, bool) or not isinstance(value, int | float) or not dimension.low <= value <= dimension.high:
        return False
    if dimension.integer and value != int(value):
        return False
    steps = (value - dimension.low) / dimension.step if dimension.step else 0.0
    return abs(steps - round(steps)) < 1e-9


def _extremes(dimension: Dimension) -> list[Any]:
    if dimension.choices is not None:
        return list(dimension.choices)
    return [dimension.low, dimension.high]
