"""The champion, the challenger and the switch."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import linear_bundle
import numpy as np
import pytest
from live_bundle import write

from fer_lab.backends.session import Predictor
from fer_lab.core.errors import FerLabError, InputError, IntegrityError, NotFound, Unreachable
from fer_lab.data.faces import FaceDataset
from fer_lab.live.frames import Found
from fer_lab.live.lookup import Lookup
from fer_lab.live.models import Models, Named, Watcher

FACE = [Found((10, 10, 58, 58), 1.0)]


def named(folder: Path, version: int | None = 1, **options: object) -> Named:
    """A tiny model in OpenVINO."""
    return Named(folder.name, version, Predictor.open(write(folder, **options), "openvino"))  # type: ignore[arg-type]


def label(models: Models, gray: int) -> str:
    """What is said about a flat face."""
    front, probs, _, _ = models.classify(np.full((80, 80, 3), gray, np.uint8), FACE, 1.0, 0.0, False)
    return front.predictor.labels[int(probs[0].argmax())]


def test_all_faces_go_in_one_batch_and_the_shadow_is_counted(tmp_path: Path) -> None:
    """The turned model disagrees on every face."""
    models = Models(named(tmp_path / "a"), named(tmp_path / "b", 2, turn=1))
    image = np.full((80, 80, 3), 100, np.uint8)
    _, probs, faces, beside = models.classify(image, FACE * 5, 1.0, 0.0, False)
    assert (probs.shape, faces.shape, len(beside)) == ((5, 8), (5, 1, 48, 48), 5)
    assert (models.compared, models.disagreements) == (5, 5)
    first = label(models, 100)
    assert models.turn()
    assert label(models, 100) != first
    assert models.front.version == 2


def test_without_a_challenger_there_is_nothing_to_turn_to(tmp_path: Path) -> None:
    """The key says so."""
    assert not Models(named(tmp_path / "a")).turn()


def test_a_swap_under_load_loses_no_frame(tmp_path: Path) -> None:
    """Three threads classify while five swaps happen: every call answers, from the old or the new model."""
    models = Models(named(tmp_path / "v0", 0))
    fresh = [named(tmp_path / f"v{i}", i, turn=i) for i in range(1, 6)]
    expected = {label(Models(named(tmp_path / f"e{i}", i, turn=i)), 100) for i in range(6)}
    stop, seen, errors = threading.Event(), [], []

    def load() -> None:
        while not stop.is_set():
            try:
                seen.append(label(models, 100))
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for one in fresh:
        time.sleep(0.05)
        models.swap(one)
    time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert set(seen) <= expected
    assert (models.swaps, models.front.version) == (5, 5)


def test_a_moved_alias_is_followed_and_a_broken_model_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Version 2 is taken; version 3 is damaged: version 2 stays and the screen says why; version 4 is taken."""
    models = Models(named(tmp_path / "v1"))
    version = [1]

    def load() -> Named:
        if version[0] == 3:
            raise IntegrityError("model.bin was altered")
        return named(tmp_path / f"v{version[0]}", version[0])

    watcher = Watcher(models, lambda: version[0], load, first=1, every_s=3600)
    for now, expected in ((1, 1), (2, 2), (3, 2), (3, 2), (4, 4)):
        version[0] = now
        watcher.look()
        assert models.front.version == expected
        assert ("altered" in models.trouble) == (now == 3)
    watcher.close()
    assert "v2" in capsys.readouterr().err


def test_an_unreachable_registry_keeps_the_model(tmp_path: Path) -> None:
    """An outage is shown, not fatal."""
    models = Models(named(tmp_path / "v1"))

    def outage() -> object:
        raise ConnectionError("refused")

    watcher = Watcher(models, outage, lambda: named(tmp_path / "never"), first=1, every_s=3600)
    watcher.look()
    watcher.close()
    assert "does not answer" in models.trouble
    assert label(models, 10) == "neutral"


def test_a_registry_that_answers_again_clears_the_warning(tmp_path: Path) -> None:
    """But a champion that was not taken stays told."""
    models = Models(named(tmp_path / "v1"))
    version, away = [1], [True]

    def identity() -> object:
        if away[0]:
            raise ConnectionError("refused")
        return version[0]

    def load() -> Named:
        raise IntegrityError("model.bin was altered")

    watcher = Watcher(models, identity, load, first=1, every_s=3600)
    for now, outage, words in ((1, True, "does not answer"), (1, False, ""), (2, False, "altered"), (2, True, "does not answer"),
                               (2, False, "altered")):  # fmt: skip
        version[0], away[0] = now, outage
        watcher.look()
        assert words in models.trouble
        assert bool(words) == bool(models.trouble)
    watcher.close()


def test_another_label_set_can_be_swapped_in(tmp_path: Path) -> None:
    """Eight expressions, then five."""
    models = Models(named(tmp_path / "a"))
    models.swap(named(tmp_path / "b", 2, labels=("neutral", "happiness", "surprise", "sadness", "anger")))
    assert len(models.front.predictor.labels) == 5


@pytest.mark.parametrize(("channels", "side"), [(3, 48), (1, 4)])
def test_a_model_that_wants_another_input_is_refused(tmp_path: Path, channels: int, side: int) -> None:
    """The card is read before the first frame."""
    with pytest.raises(InputError, match="the demo gives one gray channel"):
        Models(named(tmp_path / "a", channels=channels, side=side))


def test_another_size_of_input_is_served(tmp_path: Path) -> None:
    """The card's 64 pixels, not 48; beside a champion of another size too."""
    models = Models(named(tmp_path / "a", side=64))
    assert label(models, 10) == "neutral"
    models = Models(named(tmp_path / "b"), named(tmp_path / "c", 2, side=64))
    assert label(models, 10) == "neutral"
    assert (models.compared, models.disagreements) == (1, 0)


class FakeRegistry:
    """A registry in memory: name → version → (bundle folder, runtime)."""

    def __init__(self, champions: dict[str, tuple[Path, int, str | None]]) -> None:
        self.champions = champions
        self.asked: list[str] = []

    def exists(self) -> bool:
        """There is a store."""
        return True

    def resolve(self, reference: str):  # type: ignore[no-untyped-def]  # the Protocol has the types
        """Open what is there."""
        from fer_lab.backends.bundle import open_bundle

        self.asked.append(reference)
        if not reference.startswith("models:/"):
            return open_bundle(reference), None, None
        name = reference.removeprefix("models:/").partition("@")[0]
        if name not in self.champions:
            raise NotFound(f"no model {name!r}")
        folder, version, _ = self.champions[name]
        return open_bundle(folder), name, version

    def version_of(self, name: str, alias: str) -> int | None:
        """The version behind the alias."""
        return self.champions[name][1] if name in self.champions else None

    def promoted_runtime(self, name: str, version: int) -> str | None:
        """As promoted."""
        return self.champions[name][2]


def test_the_champion_for_real_faces_is_taken_and_a_synthetic_one_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight, else five, else the shipped bundle, else a sentence that names the synthetic one."""
    monkeypatch.delenv("FER_LAB_MODEL", raising=False)
    monkeypatch.setattr("fer_lab.live.lookup.shipped_bundle", lambda: None)
    folder = write(tmp_path / "bundle")
    five = {"fer-ferplus-5": (folder, 4, None)}
    assert Lookup(FakeRegistry(five), None, 1).champion(None).shown == "fer-ferplus-5 v4"
    both = five | {"fer-ferplus-8": (folder, 7, "openvino")}
    lookup = Lookup(FakeRegistry(both), None, 1)
    assert lookup.champion(None).shown == "fer-ferplus-8 v7"
    identity = lookup.identity()
    assert identity is not None
    assert identity() == lookup.opened == (7, "openvino")
    with pytest.raises(NotFound, match=r"name it to use it: .* models:/fer-synthetic-8@champion"):
        Lookup(FakeRegistry({"fer-synthetic-8": (folder, 1, None)}), None, 1).champion(None)
    with pytest.raises(NotFound, match=r"fer_lab\.sweep"):
        Lookup(FakeRegistry({}), None, 1).champion(None)


@pytest.mark.parametrize(
    ("promoted", "asked", "expected"),
    [(None, None, "openvino"), ("onnx", None, "onnx"), ("torch", None, "openvino"), ("onnx", "openvino", "openvino")],
)
def test_the_runtime_is_the_one_asked_for_or_promoted(
    tmp_path: Path, drawn: FaceDataset, promoted: str | None, asked: str | None, expected: str
) -> None:
    """Else, or where the bundle lacks what was promoted, the lightest of float32."""
    linear_bundle.write(tmp_path / "both", drawn)
    registry = FakeRegistry({"fer-ferplus-8": (tmp_path / "both", 7, promoted)})
    opened = Lookup(registry, asked, 1).champion("models:/fer-ferplus-8@champion")
    assert opened.predictor.runtime == expected


class Away(FakeRegistry):
    """The tracking server does not answer; the models lie in the cache."""

    def resolve(self, reference: str):  # type: ignore[no-untyped-def]
        """From the cache, which lacks what is not there."""
        try:
            return super().resolve(reference)
        except NotFound:
            raise Unreachable("the tracking server does not answer") from None

    def promoted_runtime(self, name: str, version: int) -> str | None:
        """Nobody answers."""
        raise Unreachable("the tracking server does not answer")

    version_of = promoted_runtime  # type: ignore[assignment]


def test_a_demo_starts_from_the_cache_while_the_server_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever champion lies there. Once the server answers, the watcher hears of the promoted runtime; else it is an outage."""
    monkeypatch.delenv("FER_LAB_MODEL", raising=False)
    five = {"fer-ferplus-5": (write(tmp_path / "bundle"), 4, "openvino")}
    lookup = Lookup(Away(five), None, 1)
    assert lookup.champion(None).shown == "fer-ferplus-5 v4"
    assert lookup.opened == (4, None)
    with pytest.raises(Unreachable):
        Lookup(Away({}), None, 1).champion(None)


def test_the_environment_names_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FER_LAB_MODEL before the registry; a path has no alias to follow."""
    monkeypatch.setenv("FER_LAB_MODEL", str(write(tmp_path / "bundle")))
    lookup = Lookup(FakeRegistry({}), None, 1)
    assert lookup.champion(None).shown == "tiny"
    assert lookup.identity() is None


def test_a_runtime_that_the_bundle_lacks_is_told(tmp_path: Path) -> None:
    """--runtime onnx on a bundle with OpenVINO only."""
    folder = write(tmp_path / "bundle")
    with pytest.raises(FerLabError, match="holds no onnx"):
        Lookup(FakeRegistry({}), "onnx", 1).champion(str(folder))


def test_a_signal_after_a_swap_is_handled(tmp_path: Path) -> None:
    """OpenVINO ties memory for signals to the thread that loaded the first model; the watcher's thread closes that model."""
    code = f"""
import os, signal, sys, threading
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from live_bundle import write
from fer_lab.backends.session import Predictor
from fer_lab.live.models import Models, Named

folder = Path({str(tmp_path)!r})
models = Models(Named("a", 1, Predictor.open(write(folder / "a"), "openvino")))
fresh = write(folder / "b", turn=1)
watcher = threading.Thread(target=lambda: models.swap(Named("b", 2, Predictor.open(fresh, "openvino"))))
watcher.start()
watcher.join()
signal.signal(signal.SIGINT, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
