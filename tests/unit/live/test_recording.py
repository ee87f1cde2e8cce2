"""The film that is written: whole, at the speed things happened, and never silently cut short."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_lab.core.errors import InputError
from fer_lab.live.record import VideoFile, frames_in


def shade(level: int) -> np.ndarray:
    """A flat picture."""
    return np.full((48, 64, 3), level, np.uint8)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov"])
@pytest.mark.parametrize("fps", [12.5, 29.97, 59.94, 66.6667, 119.9834, 239.7612])
def test_a_steady_film_keeps_every_frame(tmp_path: Path, suffix: str, fps: float) -> None:
    """As many as were given, in each container."""
    film = VideoFile(tmp_path / f"a{suffix}", fps)
    for i in range(101):
        film.write(shade(i), i / fps)
    film.close()
    assert frames_in(film.path) == 101


@pytest.mark.parametrize("camera_fps", [10, 25, 60])
def test_a_camera_is_recorded_at_the_speed_it_ran(tmp_path: Path, camera_fps: int) -> None:
    """Ten seconds are ten seconds, slow or quick, with jitter."""
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, 10 * camera_fps) / camera_fps
    film = VideoFile(tmp_path / "a.mp4", None)
    for i in range(10 * camera_fps):
        film.write(shade(i % 200), 5 + i / camera_fps + float(jitter[i]))
    film.close()
    assert frames_in(film.path) / 25 == pytest.approx(10, abs=0.2)


def test_an_outage_is_cut_and_a_short_gap_is_held(tmp_path: Path) -> None:
    """An hour without a camera is no hour of film."""
    film = VideoFile(tmp_path / "a.mp4", 25)
    for time_s in (0.0, 0.04, 1.04, 3600.0, 3600.04):
        film.write(shade(100), time_s)
    film.close()
    assert frames_in(film.path) == 2 + 25 + 2


def test_frames_of_another_size_are_fitted_into_the_first_ones(tmp_path: Path) -> None:
    """A camera that turns, the pictures of a folder: whole, undistorted, in the middle, black beside them."""
    film = VideoFile(tmp_path / "a.avi", 25)
    for i, size in enumerate(((48, 64), (96, 64), (49, 65))):
        film.write(np.full((*size, 3), 200, np.uint8), i / 25)
    film.close()
    capture = cv2.VideoCapture(str(film.path))
    frames = [capture.read()[1] for _ in range(3)]
    capture.release()
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
    assert (frames[2] > 150).all()
    assert (frames[1][:, 20:44] > 150).all()  # 96 × 64 becomes 48 × 32
    assert (frames[1][:, :12] < 50).all()
    assert (frames[1][:, 52:] < 50).all()


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """OpenCV writes on into nothing; closing says what is missing."""
    pytest.importorskip("resource")
    code = f"""
import resource, signal, numpy as np
from pathlib import Path
from fer_lab.live.record import VideoFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
film = VideoFile(Path({str(tmp_path / "a.mp4")!r}), 25)
rng = np.random.default_rng(0)
for i in range(100):
    film.write(rng.integers(0, 256, (240, 320, 3), np.uint8), i / 25)
film.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "of 100 frames. Is the disk full?" in done.stderr


def test_a_file_that_cannot_be_written_is_told_before_the_first_frame(tmp_path: Path) -> None:
    """A folder has its name."""
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        VideoFile(tmp_path / "a.mp4", 25).begin(shade(0))


def test_no_film_has_no_frames(tmp_path: Path) -> None:
    """Missing, or something else."""
    (tmp_path / "a.mp4").write_bytes(b"no film")
    assert frames_in(tmp_path / "a.mp4") == frames_in(tmp_path / "b.mp4") == 0
