"""Which model runs: from a name, FER_LAB_MODEL, the registry's champions, or the bundle shipped with the repository."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from fer_lab.backends.bundle import MANIFEST, Bundle
from fer_lab.backends.foreign import ForeignModel, is_foreign, open_foreign
from fer_lab.backends.session import Predictor
from fer_lab.core.errors import FerLabError, NotFound, Unreachable
from fer_lab.core.labels import protocol
from fer_lab.live.models import Named

CHAMPIONS = ("models:/fer-ferplus-8@champion", "models:/fer-ferplus-5@champion")
SYNTHETIC = "fer-synthetic-8"
ALIAS = re.compile(r"^models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)$")
LIGHT_FIRST = ("openvino", "openvino-fp16", "onnx", "openvino-int8", "onnx-int8", "torch")
"""Without a promoted runtime: float32 before 8 bits, torch last because it takes longest to start."""


class Registry(Protocol):
    """What the demo asks of the registry; the verb gives it, so that a path needs no registry at all."""

    def exists(self) -> bool:
        """Whether there is a store to ask."""

    def resolve(self, reference: str) -> tuple[Bundle, str | None, int | None]:
        """The verified bundle, and its name and version in the registry. Raises NotFound, InputError, IntegrityError."""

    def version_of(self, name: str, alias: str) -> int | None:
        """The version behind an alias, quickly; None when there is none."""

    def promoted_runtime(self, name: str, version: int) -> str | None:
        """The runtime with which this version passed its gates, if any."""


class Lookup:
    """Opens models by reference, each in the runtime that was asked for, promoted, or at hand."""

    def __init__(self, registry: Registry, runtime: str | None, threads: int) -> None:
        self.reference = ""
        self.opened: tuple[int | None, str | None] = (None, None)  # version and promoted runtime, as `identity` tells them
        self._registry = registry
        self._runtime = runtime
        self._threads = threads

    def champion(self, reference: str | None) -> Named:
        """Open what was named, or the first champion there is. Raises NotFound saying what to do."""
        named = reference or os.environ.get("FER_LAB_MODEL")
        if named:
            return self._remember(named)
        asked = []
        outage: Unreachable | None = None
        for candidate in CHAMPIONS if self._registry.exists() else ():
            try:
                return self._remember(candidate)
            except NotFound as error:
                asked.append(str(error))
            except Unreachable as error:  # not in the cache; the next one may be
                outage = outage or error
        if outage is not None:
            raise outage
        shipped = shipped_bundle()
        if shipped is not None:
            return self._remember(str(shipped))
        raise NotFound(self._nothing(asked))

    def named(self, reference: str) -> Named:
        """Open one model."""
        return self._open(reference)[0]

    def identity(self) -> Callable[[], object] | None:
        """A cheap look at the version behind the champion's alias, or None when it was not named by an alias."""
        match = ALIAS.match(self.reference)
        if match is None:
            return None
        name, alias = match["name"], match["alias"]

        def look() -> object:
            version = self._registry.version_of(name, alias)
            if version is None:
                raise NotFound(f"{name} has no alias @{alias} any more")
            return version, None if self._runtime is not None else self._registry.promoted_runtime(name, version)

        return look

    def _remember(self, reference: str) -> Named:
        opened, promoted = self._open(reference)
        self.reference, self.opened = reference, (opened.version, promoted)
        return opened

    def _open(self, reference: str) -> tuple[Named, str | None]:
        """The model, and the runtime it was promoted in, which is read only when none was asked for."""
        if is_foreign(reference):
            return self._foreign(open_foreign(reference)), None
        bundle, name, version = self._registry.resolve(reference)
        promoted = None
        if self._runtime is None and name is not None and version is not None:
            with suppress(FerLabError):  # offline: the cached bundle still says what it holds
                promoted = self._registry.promoted_runtime(name, version)
        predictor = Predictor.open(bundle, self._choose(bundle, promoted), threads=self._threads)
        return Named(name or bundle.card.name, version, predictor), promoted

    def _foreign(self, model: ForeignModel) -> Named:
        """A file of somebody else's, under the labels that its card maps its own to."""
        rule = protocol("ferplus8")
        runtime = self._runtime or next(runtime for runtime in LIGHT_FIRST if runtime in model.runtimes)
        return Named(model.path.stem, None, model.predictor(runtime, rule.label_set.labels, rule.name, threads=self._threads))

    def _choose(self, bundle: Bundle, promoted: str | None) -> str:
        if self._runtime is not None:
            return self._runtime
        if promoted and promoted.partition(":")[0] in bundle.runtimes:
            return promoted
        for runtime in LIGHT_FIRST:
            if runtime in bundle.runtimes:
                return runtime
        raise NotFound(f"{bundle.folder} holds no runtime. Run: python -m fer_lab.export {self.reference or bundle.folder}")

    def _nothing(self, asked: list[str]) -> str:
        try:
            drawn = self._registry.exists() and self._registry.version_of(SYNTHETIC, "champion") is not None
        except FerLabError:
            drawn = False
        hint = (
            "A model trained on drawings is there; name it to use it: "
            f"python -m fer_lab.demo models:/{SYNTHETIC}@champion --source sample"
            if drawn
            else "Make one with: python -m fer_lab.sweep, then python -m fer_lab.promote; or give a bundle folder"
        )
        return f"no champion to run{f' ({asked[0]})' if asked else ''}. {hint}"


def shipped_bundle() -> Path | None:
    """The first bundle under experiments/models of the repository, or None."""
    folder = Path(__file__).parents[2] / "experiments" / "models"
    found = sorted(folder.glob(f"*/{MANIFEST}")) if folder.is_dir() else []
    return found[0].parent if found else None
