"""The demo as a person starts it: sources, files out, exit codes, the last line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from live_bundle import write

from fer_lab import demo
from fer_lab.backends.foreign import card_path
from fer_lab.core.labels import EIGHT


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The tiny model: brightness decides."""
    return write(tmp_path / "tiny")


@pytest.fixture(autouse=True)
def no_detector_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """haar, whatever the machine has configured."""
    for name in ("FER_LAB_YUNET", "FER_LAB_SSD", "FER_LAB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    """Exit code, last line, stderr."""
    code = demo.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    lines = out.strip().splitlines()
    return code, json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}, err


def test_the_sample_runs_from_end_to_end_without_camera_or_screen(
    home: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every frame, every file out, every promised key."""
    code, result, err = run(
        capsys, bundle, "--source", "sample", "--view", "none", "--json", home / "o.jsonl", "--record", home / "o.mp4"
    )  # fmt: skip
    assert code == 0, err
    assert set(result) >= {"frames", "fps", "p50_ms", "p95_ms", "frames_with_face", "label_changes_per_s", "model", "runtime"}
    assert (result["frames"], result["frames_with_face"], result["faces"], result["runtime"]) == (480, 480, 720, "openvino")
    assert sum(result["expressions"].values()) == pytest.approx(1, abs=0.01)
    lines = [json.loads(line) for line in (home / "o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 720
    assert set(lines[0]) >= {"time_s", "track", "box_px", "probs", "label", "model"}
    film = cv2.VideoCapture(str(home / "o.mp4"))
    assert int(film.get(cv2.CAP_PROP_FRAME_COUNT)) == 480
    film.release()


def test_a_champion_beside_itself_turned_disagrees(home: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--shadow counts."""
    other = write(home / "other", turn=1)
    code, result, _ = run(capsys, bundle, "--shadow", other, "--source", "sample", "--view", "none", "--seconds", 1)
    assert code == 0
    assert result["shadow"]["compared"] == result["faces"]
    assert result["shadow"]["disagreements"] > 0


def test_a_model_of_drawings_wears_its_banner(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the terminal too."""
    code, _, err = run(
        capsys, write(home / "b", label_source="synthetic"), "--source", "sample", "--view", "none", "--seconds", 0.2
    )
    assert code == 0
    assert "trained on drawings, not for real faces" in err


def test_a_face_in_a_photograph_is_found_and_labelled(home: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image and a folder with an unreadable one."""
    portrait = pytest.importorskip("skimage.data").astronaut()
    (home / "pictures").mkdir()
    cv2.imwrite(str(home / "pictures" / "a.png"), portrait[:, :, ::-1])
    cv2.imwrite(str(home / "pictures" / "b.jpg"), np.full((300, 300), 80, np.uint8))
    (home / "pictures" / "c.png").write_bytes(b"broken")
    code, result, _ = run(capsys, bundle, "--source", home / "pictures" / "a.png", "--view", "none")
    assert (code, result["frames"], result["frames_with_face"]) == (0, 1, 1)
    code, result, err = run(capsys, bundle, "--source", home / "pictures", "--view", "none")
    assert (code, result["frames"], result["frames_with_face"], result["bad_frames"]) == (0, 2, 1, 1)
    assert "c.png is not an image" in err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--source", "nowhere.mp4"], "no such source"), (["--source", "98"], "--source sample"),
        (["--source", "."], "holds no images"),
        (["--detector", "yunet=nowhere.onnx"], "nowhere.onnx"), (["--detector", "hair"], "did you mean 'haar'"),
        (["--host", "0.0.0.0"], "--token"), (["--threshold", "7"], "between 0 and 1"),
        (["--record", "no/where/o.mp4", "--source", "sample"], "does not exist"),
        (["--record", "o.txt", "--source", "sample"], "expected a name ending"),
        (["--runtime", "opnvino"], "did you mean 'openvino'"),
        (["--runtime", "onnx"], "holds no onnx"), (["--json", "no/where.jsonl", "--source", "sample"], "does not exist"),
        (["--snapshots", "nowhere"], "is not a folder"), (["--allow-host", "demo.example.org"], "--token"),
        (["--view", "web", "--record", "o.mp4"], "--source 0"), (["--seconds", "0"], "more than 0"),
        (["--seconds", "nan"], "more than 0"), (["--search-px", "20"], "between 64 and 4096"),
        (["--record", "o.mp4", "--json", "o.mp4", "--source", "sample"], "a file of its own"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_sentence_and_exit_2(
    home: Path, bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    """What was got, what was expected, no traceback."""
    (home / "empty").mkdir()
    os.chdir(home / "empty")
    code, _, err = run(capsys, bundle, "--view", "none", *arguments)
    last = err.strip().splitlines()[-1]
    assert (code, last.startswith("error: ")) == (2, True)
    assert why in last


@pytest.mark.parametrize("option", ["--record", "--json"])
def test_the_source_is_never_overwritten(home: Path, bundle: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    """By another spelling of its name too."""
    film = home / "film.mp4"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"mp4v"), 25, (160, 120))
    for i in range(20):
        writer.write(np.full((120, 160, 3), 10 * i, np.uint8))
    writer.release()
    before = film.read_bytes()
    code, _, err = run(capsys, bundle, "--source", film, "--view", "none", option, home / "." / "film.mp4")
    assert (code, "is the source itself" in err) == (2, True)
    assert film.read_bytes() == before


def test_a_camera_that_dies_is_told_and_the_run_still_ends_in_time(
    home: Path, bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No frame comes any more: the status is said, --seconds holds."""
    from fer_lab.live import sources

    class Dying:
        def __init__(self) -> None:
            self.left = 10

        def read(self) -> tuple[bool, Any]:
            time.sleep(0.02)
            self.left -= 1
            return (True, np.full((120, 160, 3), 90, np.uint8)) if self.left > 0 else (False, None)

        def release(self) -> None:
            pass

    cameras = [Dying()]
    monkeypatch.setattr(sources, "open_camera", lambda *_: cameras.pop() if cameras else None)
    start_s = time.perf_counter()
    code, result, err = run(capsys, bundle, "--source", "0", "--view", "none", "--seconds", 4)
    assert time.perf_counter() - start_s < 20
    assert (code, 0 < result["frames"] < 10) == (0, True)
    assert "no signal, trying again" in err


def test_no_model_at_all_says_how_to_get_one(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty store, nothing shipped."""
    monkeypatch.setattr("fer_lab.live.lookup.shipped_bundle", lambda: None)
    code, _, err = run(capsys, "--source", "sample", "--view", "none")
    assert code == 2
    assert "fer_lab.sweep" in err


def test_a_tampered_bundle_is_refused_with_exit_4(home: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is parsed."""
    weights = bundle / "openvino" / "model.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    code, _, err = run(capsys, bundle, "--source", "sample", "--view", "none")
    assert code == 4
    assert "model.bin" in err


def test_no_display_for_the_window_suggests_the_page(
    home: Path, bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--view window is a demand; auto would take the page."""
    if not sys.platform.startswith("linux"):
        pytest.skip("other systems always have a display")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    code, _, err = run(capsys, bundle, "--source", "sample", "--view", "window")
    assert code == 2
    assert "--view web" in err


def test_a_port_in_use_is_told(home: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the way out, and before the lines of the last run are emptied."""
    (home / "keep.jsonl").write_text("of yesterday\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = run(
            capsys, bundle, "--view", "web", "--no-browser", "--port", taken.getsockname()[1], "--source", "sample",
            "--json", home / "keep.jsonl",
        )  # fmt: skip
    assert code == 2
    assert "--port 0" in err
    assert (home / "keep.jsonl").read_text() == "of yesterday\n"


@pytest.mark.parametrize("view", ["none", "web"])
def test_a_film_that_cannot_be_written_is_bad_input_in_every_view(
    home: Path, bundle: Path, capsys: pytest.CaptureFixture[str], view: str
) -> None:
    """The page goes on with the browser's own camera; the exit code is that of the error all the same."""
    (home / "o.mp4").mkdir()
    code, _, err = run(
        capsys, bundle, "--source", "sample", "--view", view, "--record", home / "o.mp4", "--seconds", 2, "--port", 0,
        "--no-browser",
    )  # fmt: skip
    assert (code, "o.mp4 cannot be written" in err) == (2, True), err


def test_what_the_options_say_reaches_detector_model_and_label(
    home: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One photograph, looked at in other ways."""
    portrait = pytest.importorskip("skimage.data").astronaut()
    cv2.imwrite(str(home / "a.png"), portrait[:, :, ::-1])

    def seen(*options: object) -> tuple[int, dict[str, Any], list[Any]]:
        words = ["--source", home / "a.png", "--view", "none", "--detector", "haar", "--json", home / "o.jsonl"]
        code, result, err = run(capsys, bundle, *words, *options)
        assert code == 0, err
        lines = [json.loads(line) for line in (home / "o.jsonl").read_text(encoding="utf-8").splitlines()]
        return result["faces"], result["expressions"], [line["probs"] for line in lines]

    faces, expressions, probs = seen()
    assert faces > 0
    for option, value in (("--smallest", 0.5), ("--search-px", 64)):
        assert seen(option, value)[0] < faces
    assert seen("--uncertain-below", 1)[1] == {"uncertain": 1} != expressions
    assert seen("--margin", 3)[2] != probs


def test_a_detector_that_is_asked_for_looks_at_the_sample_too(home: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without one the sample's own boxes are taken."""
    for options, expected in (([], "known boxes"), (["--detector", "haar"], "haar")):
        code, result, _ = run(capsys, bundle, "--source", "sample", "--view", "none", "--seconds", 1, *options)
        assert (code, result["detector"], "known" in result) == (0, expected, expected == "known boxes")


def test_the_page_answers_and_ctrl_c_ends_it_with_a_summary(home: Path, bundle: Path) -> None:
    """A process of its own: page up, health ok, SIGINT → 130 and the last line; no torch, no mlflow imported."""
    heavy = "sorted({'torch', 'timm', 'optuna', 'mlflow'} & set(sys.modules))"
    code = f"import sys, fer_lab.demo as d\nc = d.main(sys.argv[1:])\nprint({heavy}, file=sys.stderr)\nsys.exit(c)"
    command = [
        sys.executable,
        "-c",
        code,
        str(bundle),
        "--view",
        "web",
        "--port",
        "0",
        "--no-browser",
        "--source",
        "sample",
        "--loop",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    assert process.stdout is not None
    address = process.stdout.readline().split()[1]
    until = time.monotonic() + 20
    state: dict[str, Any] = {}
    while time.monotonic() < until and not state.get("result"):
        with urllib.request.urlopen(f"{address}api/state", timeout=5) as reply:
            state = json.load(reply)
        time.sleep(0.1)
    assert state["result"]["model"] == "tiny"
    with urllib.request.urlopen(f"{address}api/stream.mjpeg", timeout=5) as reply:
        assert b"image/jpeg" in reply.read(400)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert json.loads(out.strip().splitlines()[-1])["frames"] > 0
    assert err.strip().splitlines()[-1] == "[]"


def test_a_looping_film_does_not_grow(home: Path, bundle: Path) -> None:
    """Less than 2 % more memory after the first frames of one film over and over (short form of 30 minutes)."""
    psutil = pytest.importorskip("psutil")
    from fer_lab.backends.session import Predictor
    from fer_lab.live.models import Models, Named
    from fer_lab.live.outputs import Outputs
    from fer_lab.live.pipeline import Pipeline, Settings
    from fer_lab.live.sources import VideoSource

    writer = cv2.VideoWriter(str(home / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (160, 120))
    for i in range(50):
        writer.write(np.full((120, 160, 3), 4 * i, np.uint8))
    writer.release()

    class Middle:
        name, margin, drop = "middle", 1.0, 0.0

        def find(self, image: np.ndarray) -> list[Any]:
            from fer_lab.live.frames import Found

            return [Found((40, 30, 100, 90), 1.0)]

    pipeline = Pipeline(
        VideoSource(home / "a.avi", loop=True), [Middle()], Models(Named("tiny", None, Predictor.open(bundle))), Settings()
    )
    outputs = Outputs(pipeline, json_path=home / "o.jsonl")
    process = psutil.Process()
    after_start = 0
    for result in pipeline.results():
        outputs.take(result)
        if outputs.summary.frames == 600:
            after_start = process.memory_info().rss
        if outputs.summary.frames >= 3000:
            break
    outputs.close()
    assert process.memory_info().rss < 1.02 * after_start
    assert len(pipeline.tracker.tracks) <= 2


@pytest.mark.parametrize("signals", [["SIGTERM"], ["SIGTERM", "SIGTERM"], ["SIGHUP", "SIGHUP"]], ids="-".join)
def test_signals_end_a_headless_run_with_its_files_complete(home: Path, bundle: Path, signals: list[str]) -> None:
    """143, the film can be played, the JSON lines are whole; a launcher that passes the signal on a second time changes nothing."""
    command = [sys.executable, "-m", "fer_lab.demo", str(bundle), "--source", "sample", "--loop", "--view", "none"]
    command += ["--record", str(home / "o.mp4"), "--json", str(home / "o.jsonl")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests themselves may run under nohup
    )  # fmt: skip
    until = time.monotonic() + 30
    while time.monotonic() < until and not ((home / "o.jsonl").is_file() and (home / "o.jsonl").stat().st_size > 50_000):
        time.sleep(0.1)
    for name in signals:
        process.send_signal(getattr(signal, name))
        time.sleep(0.05)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 143, err
    assert json.loads(out.strip().splitlines()[-1])["frames"] > 50
    film = cv2.VideoCapture(str(home / "o.mp4"))
    assert film.read()[0]
    film.release()
    for line in (home / "o.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line)


def test_a_refused_command_leaves_the_files_of_the_last_one(home: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The place of the film is checked before the lines are emptied."""
    (home / "keep.jsonl").write_text("of yesterday\n")
    code, _, err = run(
        capsys, bundle, "--source", "sample", "--view", "none", "--json", home / "keep.jsonl", "--record", home / "none" / "x.mp4"
    )  # fmt: skip
    assert (code, "does not exist" in err) == (2, True), err
    assert (home / "keep.jsonl").read_text() == "of yesterday\n"


def test_a_folder_without_a_readable_picture_is_a_failure(home: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing succeeded: exit 1, with the summary."""
    (home / "pictures").mkdir()
    (home / "pictures" / "a.png").write_bytes(b"no picture")
    code, result, err = run(capsys, bundle, "--source", home / "pictures", "--view", "none")
    assert (code, result["frames"], "none of the 1 pictures of pictures could be read" in err) == (1, 0, True), err


def test_a_foreign_model_runs_by_its_path(home: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the card beside it, as in `compare`; its answers are those of the bundle that it was taken from."""
    for name in ("model.xml", "model.bin"):
        shutil.copy(bundle / "openvino" / name, home / name)
    card = {"schema": 1, "labels": list(EIGHT.labels), "height": 48, "width": 48, "dtype": "uint8", "output": "probabilities"}
    card_path(home / "model.xml").write_text(json.dumps(card), encoding="utf-8")
    code, result, err = run(capsys, home / "model.xml", "--source", "sample", "--view", "none")
    assert code == 0, err
    _, expected, _ = run(capsys, bundle, "--source", "sample", "--view", "none")
    assert (result["model"], result["expressions"]) == ("model", expected["expressions"])
    code, _, err = run(capsys, home / "none.onnx", "--source", "sample", "--view", "none")
    assert (code, "no such model" in err) == (2, True), err
