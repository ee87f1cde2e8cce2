"""Seeded mutations of everything that people hand in: the verb accepts what still means something, and refuses the rest in a line.

    FER_LAB_FAULTS=long python -m pytest tests/faults/test_mutations.py        # 10 000 mutations, half an hour on two cores

A mutation is bytes flipped, cut, doubled or put in, or a word replaced by a hostile one. What is accepted is held against
another library's reading of the same file (csv, Pillow); after a refusal the store root is as it was, byte for byte.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ferplus_files
import numpy as np
import pytest
import tiny_bundle
from fault_figures import count, publish
from PIL import Image
from tracking_store import free_port

from fer_lab import compare, prepare, sweep, train
from fer_lab.backends import foreign
from fer_lab.backends.bundle import MANIFEST, write_manifest
from fer_lab.data import faces
from fer_lab.data.faces import FaceDataset

HOSTILE = [
    b"", b"-1", b"0", b"1e309", b"nan", b"-inf", b"null", b"true", b"[]", b"{}", b"9" * 40, b"1e-400", b"../../etc/passwd", b"/",
    b"!!python/object/apply:os.system", b"&a [*a]", b"*a", b"'", b'"', b"\t", b"\0", b"\xff\xfe", b"\xe2\x80\xae", b"\r", b"%s{0}",
    b"[" * 3000, b"A" * 70_000, b": :", b"#", b"2147483648", b"0x1F", b"1_0", b"\\u0000", b"models:/x@y",
    b"9" * 5000, b"2026-13-45", b"!!int ''", b"? [a]", b"1:2:3", b"{{}}", b"${a}", b"0.0.0",
]  # fmt: skip


def mutated(raw: bytes, rng: np.random.Generator) -> bytes:
    """One to three changes of one of six kinds."""
    data = raw
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(data) + 1))
        size = int(rng.choice([1, 2, 16, 200]))
        kind = rng.integers(6)
        if kind == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[at + size :]
        elif kind == 2:
            data = data[:at] + data[at : at + size] + data[at:]
        elif kind == 3:
            data = data[:at] + rng.bytes(size) + data[at:]
        elif kind == 4:
            data = data[:at] if rng.random() < 0.3 else data
        elif words := list(re.finditer(rb"[\w.+-]+", data[at : at + 10_000])):
            word = words[int(rng.integers(len(words)))]
            chosen = HOSTILE[int(rng.integers(len(HOSTILE)))]
            data = data[: at + word.start()] + chosen + data[at + word.end() :]
    return data


def tree(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@dataclass
class Tally:
    """What became of the mutations of one kind; anything else than accepted or refused ends the test."""

    name: str
    home: Path
    said: pytest.CaptureFixture[str]
    reached: tuple[str, ...] = ()  # errors of a later step: the input itself was accepted
    accepted: int = 0
    refused: int = 0

    def judge(self, call: Callable[[], int], codes: Sequence[int], seed: int, kept: Callable[[], None] = lambda: None) -> None:
        """Call the verb: 0 and `kept` holds, or one of `codes`, one line that says why, and nothing has changed."""
        before = tree(self.home)
        self.said.readouterr()
        code = call()
        out, err = self.said.readouterr()
        where = f"{self.name}, seed {seed}: exit {code}\n{err[-3000:]}"
        assert "Traceback" not in err + out, where
        assert "internal error" not in err, where
        if code == 0:
            self.accepted += 1
            json.loads(out.splitlines()[-1])
            kept()
            return
        if any(text in err for text in self.reached):
            self.accepted += 1
        else:
            self.refused += 1
        assert code in codes, where
        assert err.splitlines()[-1].startswith("error: "), where
        assert tree(self.home) == before, where

    def report(self) -> None:
        """Publish the figure."""
        publish(
            f"mutations_{self.name}", mutations=self.accepted + self.refused, accepted=self.accepted, refused=self.refused,
            tracebacks=0, wrong_exit_codes=0, outputs_changed_after_a_refusal=0,
        )  # fmt: skip


@pytest.fixture
def files(drawn: FaceDataset, home: Path) -> ferplus_files.Files:
    """The sound miniature of FERPlus, beside the store root."""
    return ferplus_files.write(drawn, home / "in")


def test_csv_pairs(files: ferplus_files.Files, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """What is accepted has the pixels and votes that Python's csv module reads from the mutated pair."""
    monkeypatch.setenv("FER_LAB_HOME", str(home / "root"))
    tally = Tally("csv", home / "root", capfd)
    pair = (files.fer2013, files.new_labels)
    sound = [path.read_bytes() for path in pair]

    def same_as_csv() -> None:
        dataset = faces.load(home / "root" / "data" / "ferplus-2017")
        pictures, labels = (list(csv.DictReader(io.StringIO(p.read_text("utf-8-sig")), skipinitialspace=True)) for p in pair)
        named = {row["Image name"].strip(): (picture, row) for picture, row in zip(pictures, labels, strict=True)}
        assert set(dataset.names) <= set(named)
        for name, pixels, votes in zip(dataset.names, dataset.pixels, dataset.votes, strict=True):
            picture, label = named[name]
            assert [int(v) for v in picture["pixels"].split()] == pixels.ravel().tolist()
            assert [int(v) for v in list(label.values())[2:]] == votes.tolist()

    for seed in range(count(30, 2000)):
        rng = np.random.default_rng(seed)
        for path, raw in zip(pair, sound, strict=True):
            path.write_bytes(raw)
        which = seed % 2
        pair[which].write_bytes(mutated(sound[which], rng))
        tally.judge(
            lambda: prepare.main(["ferplus", "--fer2013", str(pair[0]), "--labels", str(pair[1])]), [2], seed, same_as_csv
        )  # fmt: skip
    tally.report()


def test_pictures_in_folders_and_zips(
    files: ferplus_files.Files, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """A PNG, a label.csv or the zip itself; what is accepted has the pixels that Pillow reads."""
    monkeypatch.setenv("FER_LAB_HOME", str(home / "root"))
    tally = Tally("png", home / "root", capfd)
    sound = files.archive.read_bytes()
    with zipfile.ZipFile(io.BytesIO(sound)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def same_as_pillow() -> None:
        dataset = faces.load(home / "root" / "data" / "ferplus-2016")
        with zipfile.ZipFile(files.archive) as archive:
            there = {Path(name).name: name for name in archive.namelist()}
            for name, pixels in zip(dataset.names, dataset.pixels, strict=True):
                with Image.open(io.BytesIO(archive.read(there[name]))) as picture:
                    assert np.array_equal(np.asarray(picture), pixels)

    for seed in range(count(30, 2000)):
        rng = np.random.default_rng(seed)
        if seed % 4 == 0:
            files.archive.write_bytes(mutated(sound, rng))
        else:
            labels = [name for name in members if name.endswith(".csv")]
            chosen = str(rng.choice(labels if seed % 4 == 1 else list(members)))
            with zipfile.ZipFile(files.archive, "w") as archive:
                for name, raw in members.items():
                    archive.writestr(name, mutated(raw, rng) if name == chosen else raw)
        tally.judge(lambda: prepare.main(["ferplus", "--images", str(files.archive)]), [2], seed, same_as_pillow)
    tally.report()


def test_configurations(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """`train` and `sweep --status`; a configuration that is accepted gets as far as the tracking server, which is down."""
    assert prepare.main(["synthetic", "--count", "200"]) == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    folder = Path(__file__).parents[2] / "experiments"
    text = (folder / "ferplus8_b0.yaml").read_bytes()
    sound = {train: text.replace(b"dataset: ferplus", b"dataset: synthetic"), sweep: (folder / "quickstart.yaml").read_bytes()}
    assert b"synthetic" in sound[train]
    config = home / "mutated.yaml"
    options = {train: [], sweep: ["--status"]}
    for verb in sound:  # the study's database is made by the first look
        config.write_bytes(sound[verb])
        assert verb.main([str(config), *options[verb]]) == 2
    said = capfd.readouterr().err
    reached = ("tracking server", "no study")
    assert all(text in said for text in reached)
    tally = Tally("yaml", home / "data", capfd, reached)
    for seed in range(count(30, 2000)):
        verb = (train, sweep)[seed % 2]
        config.write_bytes(mutated(sound[verb], np.random.default_rng(seed)))
        tally.judge(lambda verb=verb: verb.main([str(config), *options[verb]]), [2], seed)
    tally.report()


def test_bundles(home: Path, capfd: pytest.CaptureFixture[str]):
    """Any file of a bundle: altered (4); altered and listed anew, as somebody with bad intent would (2, or it runs)."""
    sound = tiny_bundle.write(home / "sound", ["onnx"])
    out = home / "root"
    out.mkdir()
    tally = Tally("bundle", out, capfd)
    for seed in range(count(30, 2000)):
        rng = np.random.default_rng(seed)
        folder = home / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        listed_anew = seed % 4 > 0
        path = folder / ("card.json" if listed_anew else str(rng.choice(["card.json", "onnx/model.onnx", MANIFEST])))
        path.write_bytes(mutated(path.read_bytes(), rng))
        if listed_anew:
            write_manifest(folder)
        tally.judge(lambda folder=folder: timed(folder, out), [2] if listed_anew else [2, 4], seed)
    tally.report()


def test_foreign_models(home: Path, capfd: pytest.CaptureFixture[str]):
    """An .onnx from elsewhere, or its card."""
    model = home / "net.onnx"
    sound = tiny_bundle.proto(hidden=2).SerializeToString()
    model.write_bytes(sound)
    card = {
        "schema": 1, "labels": list(tiny_bundle.LABELS), "height": 48, "width": 48, "layout": "NCHW", "channels": "gray",
        "dtype": "uint8", "output": "probabilities", "label_map": {}, "note": "made by hand",
    }  # fmt: skip
    beside = foreign.card_path(model)
    text = json.dumps(card, indent=1).encode()
    out = home / "root"
    out.mkdir()
    tally = Tally("foreign", out, capfd)
    for seed in range(count(30, 2000)):
        rng = np.random.default_rng(seed)
        of_card = seed % 2 == 0
        model.write_bytes(sound if of_card else mutated(sound, rng))
        beside.write_bytes(mutated(text, rng) if of_card else text)
        tally.judge(lambda: timed(model, out), [2], seed)
    tally.report()


def timed(model: Path, out: Path) -> int:
    """Open, check, load and run a model with the least of measuring."""
    return compare.main(
        [str(model), "--latency-only", "--runtimes", "onnx", "--batches", "1", "--seconds", "0.01", "--no-cold-start",
         "--out", str(out / "profiles.json")]
    )  # fmt: skip
