"""What takes part in a comparison: a bundle (from a registry, a run, a folder), a foreign model, or the seeds of one config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fer_lab.backends.bundle import CARD, FOLDER_OF_RUNTIME, WEIGHTS, Bundle, open_trusted, read_verified
from fer_lab.backends.foreign import ForeignModel, is_foreign, open_foreign
from fer_lab.backends.session import Predictor, backends, split_runtime
from fer_lab.core import labels
from fer_lab.core.errors import InputError, NotFound

PARITY = "parity.json"


@dataclass(frozen=True)
class Candidate:
    """One model. With `seeds`, several runs of one configuration, of which `bundle` is the first."""

    shown: str
    bundle: Bundle
    name: str | None = None
    version: int | None = None
    run_id: str | None = None
    foreign: ForeignModel | None = None
    seeds: tuple[Candidate, ...] = ()

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The runtimes that it holds."""
        return self.foreign.runtimes if self.foreign else self.bundle.runtimes

    @property
    def identity(self) -> str:
        """The bundle's digest and its signer, for a signed copy is another candidate; of several seeds, all of theirs."""
        if self.seeds:
            return "+".join(seed.identity for seed in self.seeds)
        return self.bundle.digest if self.bundle.signed_by is None else f"{self.bundle.digest} signed by {self.bundle.signed_by}"

    def digest(self, runtime: str) -> str:
        """Identity of the artifact that this runtime reads."""
        return self.foreign.digest if self.foreign else self.bundle.runtime_digest(_plain(runtime))

    def size_mb(self, runtime: str) -> float:
        """Size of the files that this runtime reads, in MB."""
        if self.foreign:
            return self.foreign.size_mb
        name = _plain(runtime)
        prefix = f"{FOLDER_OF_RUNTIME.get(name, name)}/"
        chosen = [p for p in self.bundle.files if (p in (WEIGHTS, CARD) if name == "torch" else p.startswith(prefix))]
        return sum((self.bundle.folder / path).stat().st_size for path in chosen) / 1e6

    def parity(self, runtime: str) -> Mapping[str, Any] | None:
        """What export found out about this runtime on this device, or None: another device computes otherwise."""
        if self.foreign or PARITY not in self.bundle.files:
            return None
        tree = json.loads(read_verified(self.bundle, PARITY))
        name, device = split_runtime(runtime)
        entry = tree.get("runtimes", tree).get(name)
        return entry if isinstance(entry, dict) and entry.get("device", "CPU") == device else None

    def card(self) -> dict[str, Any]:
        """Provenance: the bundle's card; of a foreign model, its own."""
        if self.foreign:
            own = self.foreign.card.model_dump(mode="json", by_alias=True)
            return {**self.bundle.card.model_dump(mode="json", by_alias=True), "foreign": own}
        return self.bundle.card.model_dump(mode="json", by_alias=True)

    def unavailable(self, runtime: str) -> str | None:
        """Why this host cannot run it, or None. Raises InputError for an unknown runtime, NotFound when it holds none."""
        if self.foreign:
            return None
        name, device = split_runtime(runtime)
        if name not in self.runtimes:
            raise NotFound(
                f"{self.shown} holds no {name}; it has: {', '.join(self.runtimes)}. Run: python -m fer_lab.export {self.shown}"
            )
        return backends()[name].unavailable(device)

    def open(self, runtime: str, threads: int, protocol: str | None = None) -> Predictor:
        """Load it; `protocol` tells a foreign model which labels to answer."""
        if self.foreign:
            rule = labels.protocol(protocol or "ferplus8")
            return self.foreign.predictor(runtime, rule.label_set.labels, rule.name, threads=threads)
        return Predictor.open(self.bundle, runtime, threads=threads)


def from_path(ref: str, protocol: str) -> Candidate:
    """A candidate from a bundle folder or a foreign file; no registry is touched."""
    if is_foreign(ref):
        model = open_foreign(ref)
        rule = labels.protocol(protocol)
        return Candidate(ref, model.as_bundle(rule.label_set.labels, rule.name), foreign=model)
    bundle = open_trusted(Path(ref))
    return Candidate(ref, bundle, run_id=bundle.card.run_id)


def of_seeds(shown: str, members: tuple[Candidate, ...]) -> Candidate:
    """Several runs of one configuration as one candidate. Raises InputError when they are not runs of one configuration."""
    if len(members) < 2:
        raise InputError(f"{shown}: {len(members)} run with a bundle; seeds need at least two")
    first = _without_seed(members[0].bundle.card.config)
    for member in members[1:]:
        if _without_seed(member.bundle.card.config) != first:
            raise InputError(
                f"{shown}: {members[0].shown} and {member.shown} differ in more than the seed; name the runs one by one instead"
            )
    return replace(members[0], shown=shown, name=None, version=None, seeds=members)


def _without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("seed", "name")}


def _plain(runtime: str) -> str:
    return runtime.partition(":")[0]
