"""The model that is running, a challenger beside it, and the switch to another one without losing a frame."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fer_lab.backends.session import Predictor
from fer_lab.core.console import note
from fer_lab.core.errors import FerLabError, InputError
from fer_lab.live.crop import Square, crops, square
from fer_lab.live.frames import Found, Image

BANNER = "trained on drawings, not for real faces"


@dataclass(frozen=True)
class Named:
    """A model as it is shown: `name` as asked for and resolved, `version` in the registry (None for a path)."""

    name: str
    version: int | None
    predictor: Predictor

    @property
    def shown(self) -> str:
        """`fer-ferplus-8 v3`, or the path's name."""
        return f"{self.name} v{self.version}" if self.version is not None else self.name

    @property
    def is_synthetic(self) -> bool:
        """Trained on drawings."""
        return self.predictor.bundle.card.label_source == "synthetic"


def check_input(named: Named) -> Named:
    """Return the model when the demo can feed it. Raises InputError when its card wants another input."""
    contract = named.predictor.bundle.card.input
    if contract.channels != 1 or not (8 <= contract.height <= 1024 and 8 <= contract.width <= 1024):
        raise InputError(
            f"{named.name} takes {contract.channels}×{contract.height}×{contract.width} pictures; the demo gives one gray channel, "
            "8–1024 pixels a side. Export the model for uint8 [N, 1, 48, 48]"
        )
    return named


def warm(named: Named) -> Named:
    """Run the model once for one face and once for several, so that the first frame does not pay for it."""
    contract = named.predictor.bundle.card.input
    for n in (1, 2, 5):
        named.predictor.predict(np.zeros((n, contract.channels, contract.height, contract.width), np.uint8))
    return named


class Models:
    """The champion and, if any, the challenger; safe to use from several threads."""

    def __init__(self, champion: Named, shadow: Named | None = None) -> None:
        self._lock = threading.Lock()
        self._champion = warm(check_input(champion))
        self._shadow = warm(check_input(shadow)) if shadow is not None else None
        self.challenger_in_front = False
        self.swaps = 0
        self.compared = 0  # faces that both models saw
        self.disagreements = 0
        self.trouble = ""  # why the last switch did not happen

    @property
    def front(self) -> Named:
        """The model whose labels are shown."""
        return self._shadow if self.challenger_in_front and self._shadow is not None else self._champion

    @property
    def shadow(self) -> Named | None:
        """The model that runs beside."""
        return self._champion if self.challenger_in_front else self._shadow

    @property
    def champion(self) -> Named:
        """The model that the alias names."""
        return self._champion

    def turn(self) -> bool:
        """Put the other model in front; False when there is only one."""
        if self._shadow is None:
            return False
        self.challenger_in_front = not self.challenger_in_front
        return True

    def classify(
        self, image: Image, found: list[Found], margin: float, drop: float, align: bool
    ) -> tuple[Named, npt.NDArray[np.float32], npt.NDArray[np.uint8], tuple[str, ...]]:
        """All faces of a frame in one batch: the model, probs [N, K], crops [N, 1, h, w], the shadow's labels."""
        squares: list[Square] = [square(one, margin=margin, drop=drop, align=align) for one in found]
        with self._lock:
            front, beside = self.front, self.shadow
            contract = front.predictor.bundle.card.input
            faces = crops(image, squares, contract.height, contract.width)
            probs = front.predictor.predict(faces)
            if beside is None or not found:
                return front, probs, faces, ()
            other = beside.predictor.bundle.card.input
            same = (other.height, other.width) == (contract.height, contract.width)
            second = beside.predictor.predict(faces if same else crops(image, squares, other.height, other.width))
        labels = tuple(beside.predictor.labels[i] for i in second.argmax(axis=1))
        mine = [front.predictor.labels[i] for i in probs.argmax(axis=1)]
        self.compared += len(labels)
        self.disagreements += sum(a != b for a, b in zip(mine, labels, strict=True))
        return front, probs, faces, labels

    def swap(self, fresh: Named) -> None:
        """Put another champion in place: warmed first, then switched between two frames, the old one closed."""
        warm(check_input(fresh))
        with self._lock:
            old, self._champion = self._champion, fresh
            self.swaps += 1
            self.trouble = ""
        old.predictor.close()

    def close(self) -> None:
        """Free the sessions."""
        with self._lock:
            self._champion.predictor.close()
            if self._shadow is not None:
                self._shadow.predictor.close()


class Watcher:
    """Looks every few seconds whether the alias moved; loads and switches; keeps the old model when that fails.

    `identity` is cheap and returns something that changes when the alias moves; `load` opens the new model.
    """

    def __init__(
        self, models: Models, identity: Callable[[], object], load: Callable[[], Named], *, first: object, every_s: float = 3.0
    ) -> None:
        self._models, self._identity, self._load = models, identity, load
        self._known = first
        self._not_taken = ""
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="alias-watcher", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            self.look()

    def look(self) -> None:
        """Look once."""
        try:
            now = self._identity()
        except Exception as error:  # an outage of the registry must not end the demo
            self._models.trouble = f"the registry does not answer: {_one_line(error)}"
            return
        self._models.trouble = self._not_taken
        if now == self._known:
            return
        try:
            fresh = self._load()
            self._models.swap(fresh)
        except Exception as error:  # whatever the new model is broken by, the old one stays
            self._models.trouble = self._not_taken = f"the new champion was not taken: {_one_line(error)}"
            note(f"warning: {self._models.trouble}; {self._models.champion.shown} keeps running")
            if isinstance(error, FerLabError):
                self._known = now  # a broken model stays broken; do not load it every few seconds
            return
        self._known, self._not_taken = now, ""
        note(f"switched to {fresh.shown} ({fresh.predictor.runtime})")

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join(timeout=5)


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:160]
