"""Who takes part in a comparison: names and paths become candidates, and their looks at the test split are counted."""

from __future__ import annotations

from collections.abc import Sequence

from fer_lab.core.errors import NotFound
from fer_lab.data.faces import FaceDataset
from fer_lab.measure.candidates import Candidate, from_path, of_seeds
from fer_lab.tracking import registry
from fer_lab.tracking.ledger import Ledger, in_office
from fer_lab.tracking.registry import Resolved
from fer_lab.tracking.store import Store, open_store


class Entrants:
    """Turns names into candidates; opens the store only when a name, not a path, asks for it."""

    def __init__(self) -> None:
        self.store: Store | None = None

    def open(self) -> Store:
        """The store, opened once."""
        if self.store is None:
            self.store = open_store()
        return self.store

    def candidate(self, ref: str) -> Candidate:
        """A candidate by name or path."""
        if not ref.startswith(("models:/", "runs:/")):
            return from_path(ref, "ferplus8")
        store = self.open()
        try:
            found = registry.resolve(ref, store)
        except NotFound:
            if not ref.startswith("runs:/"):
                raise
            seeds = self._seeds(ref)
            if seeds is None:
                raise
            return seeds
        return candidate_of(found)

    def _seeds(self, ref: str) -> Candidate | None:
        """The children of a parent run that left a bundle, as one row; None when there are none."""
        store = self.open()
        members = []
        for child in store.children(ref.removeprefix("runs:/")):
            try:
                found = registry.resolve(f"runs:/{child['run_id']}", store)
            except NotFound:
                continue
            members.append(Candidate(found.ref_shown, found.bundle, run_id=child["run_id"]))
        return of_seeds(ref, tuple(members)) if members else None

    def shipped_runtime(self, candidate: Candidate) -> str | None:
        """The runtime that a champion ships in, which is what a challenger must replace; None for any other model."""
        if candidate.name is None or candidate.version is None:
            return None
        version, runtime = in_office(self.open(), candidate.name) or (None, None)
        return runtime if version == candidate.version else None

    def count_look(self, candidates: Sequence[Candidate], dataset: FaceDataset, identity: str) -> int | None:
        """Enter this look at the test split, see `count_look`; None when only paths take part."""
        return None if self.store is None else count_look(self.store, candidates, dataset, identity)


def count_look(store: Store, candidates: Sequence[Candidate], dataset: FaceDataset, identity: str) -> int | None:
    """Enter a look at the test split, for each backbone, in the ledger of every registered name that takes part.

    A run counts under the name that its model is registered by, once there is one. Returns the most looks of any of them, this
    one included, or None when no registered name takes part.
    """
    families = {(name, c.bundle.card.backbone) for c in candidates for name in _registered_names(store, c)}
    return max(
        (Ledger(store, name).count_look(family, dataset.fingerprint, identity) for name, family in sorted(families)), default=None
    )


def _registered_names(store: Store, candidate: Candidate) -> list[str]:
    if candidate.name is not None:
        return [candidate.name]
    if not candidate.shown.startswith("runs:/"):
        return []
    usual = registry.model_name(candidate.bundle.card)
    own = registry.names_of_run(store, candidate.run_id) if candidate.run_id else []
    return own or ([usual] if registry.versions(store, usual) else [])


def candidate_of(resolved: Resolved) -> Candidate:
    """A model of the registry as a candidate."""
    return Candidate(resolved.ref_shown, resolved.bundle, resolved.name, resolved.version, resolved.run_id)
