"""Each detector finds a real face (a public-domain photograph) and names a bad file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from portrait import FACE, astronaut, yunet_file

from fer_lab.core.errors import InputError, NotFound
from fer_lab.live.detectors import Search, build, detectors, reduced, yunet
from fer_lab.live.detectors.openvino_ssd import DETECTOR as SSD


def ssd(folder: Path) -> Path:
    """An IR with the output of face-detection-retail: one sure face, one unsure one, then the end mark."""
    import openvino as ov
    from openvino import opset13 as ops

    image = ops.parameter([1, 3, 300, 300], np.float32, name="image")
    rows = np.full((1, 1, 200, 7), -1, np.float32)
    rows[0, 0, 0] = [0, 1, 0.95, 0.25, 0.25, 0.5, 0.75]
    rows[0, 0, 1] = [0, 1, 0.30, 0.6, 0.6, 0.9, 0.9]
    zero = ops.multiply(ops.reduce_mean(image, ops.constant([1, 2, 3], np.int64), True), ops.constant(np.float32(0)))
    ov.save_model(ov.Model([ops.result(ops.add(ops.constant(rows), zero))], [image], "ssd"), folder / "ssd.xml")
    return folder / "ssd.xml"


def covers(box: tuple[float, float, float, float]) -> bool:
    """The box' centre lies in the face and its size is a face's."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return FACE[0] < x < FACE[2] and FACE[1] < y < FACE[3] and 60 < box[2] - box[0] < 200


def test_the_three_detectors_are_found() -> None:
    """One file each."""
    assert set(detectors()) == {"haar", "yunet", "openvino-ssd"}


@pytest.mark.parametrize("height", [512, 1400])
def test_haar_finds_the_face_and_answers_in_pixels_of_the_frame(height: int) -> None:
    """Whatever the frame's size."""
    factor = height / 512
    image = cv2.resize(astronaut(), (height, height))
    (finder,) = build(["haar"], Search())
    boxes = [tuple(v / factor for v in one.box_px) for one in finder.find(image)]
    assert any(covers(box) for box in boxes)  # type: ignore[arg-type]


def test_yunet_finds_the_face_with_its_eyes() -> None:
    """Eyes lie left and right, in the upper half of the box."""
    (finder,) = build([f"yunet={yunet_file()}"], Search())
    (face,) = finder.find(astronaut())
    assert covers(face.box_px)
    assert face.eyes_px is not None
    left, right = face.eyes_px
    assert face.box_px[0] < left[0] < right[0] < face.box_px[2]
    assert face.box_px[1] < left[1] < (face.box_px[1] + face.box_px[3]) / 2


def test_yunet_takes_frames_of_changing_size() -> None:
    """The network is told each new size."""
    (finder,) = build([f"yunet={yunet_file()}"], Search())
    image = astronaut()
    for size in ((512, 512), (320, 240), (900, 512), (64, 48), (512, 512)):
        finder.find(cv2.resize(image, size))
    assert len(finder.find(image)) == 1


def test_yunet_looks_again_finer_where_it_found_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A face of some fifty pixels in a wide frame is too small for the first look."""
    (finder,) = build([f"yunet={yunet_file()}"], Search())
    frame = np.full((720, 1280, 3), 90, np.uint8)
    frame[300:560, 600:860] = cv2.resize(astronaut(), (260, 260), interpolation=cv2.INTER_AREA)
    (face,) = finder.find(frame)
    assert 600 < face.box_px[0] < face.box_px[2] < 860
    monkeypatch.setattr(yunet, "FINER", 1)
    assert finder.find(frame) == []


def test_haar_looks_as_it_is_told() -> None:
    """Scores, sizes and the side of the reduced picture: a face of a fifth of the frame is found, or not."""
    for search, expected in (
        (Search(), True), (Search(threshold=1.01), False), (Search(smallest=0.5), False), (Search(search_px=64), False),
    ):  # fmt: skip
        (finder,) = build(["haar"], search)
        assert any(covers(face.box_px) for face in finder.find(astronaut())) is expected


def test_the_ssd_adapter_reads_the_rows_above_the_threshold(tmp_path: Path) -> None:
    """Normalised corners become pixels; the list ends at the mark."""
    finder = SSD.open(ssd(tmp_path), Search())
    (face,) = finder.find(np.zeros((200, 400, 3), np.uint8))
    assert face.box_px == (100, 50, 200, 150)
    assert face.score == pytest.approx(0.95, abs=0.001)
    assert len(SSD.open(tmp_path / "ssd.xml", Search(threshold=0.2)).find(np.zeros((200, 400, 3), np.uint8))) == 2
    assert SSD.open(tmp_path / "ssd.xml", Search(smallest=0.6)).find(np.zeros((200, 400, 3), np.uint8)) == []


@pytest.mark.parametrize("kind", ["yunet", "openvino-ssd"])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git-LFS pointer"),
        (b"<!DOCTYPE html>", "web page"), (b"", "empty"), (b"noise" * 5000, "cannot be read|missing"),
    ],
)  # fmt: skip
def test_bad_model_files_are_named(tmp_path: Path, kind: str, content: bytes, why: str) -> None:
    """A pointer, a web page, nothing, noise."""
    path = tmp_path / ("model.onnx" if kind == "yunet" else "model.xml")
    path.write_bytes(content)
    with pytest.raises(InputError, match=why):
        build([f"{kind}={path}"], Search())


def test_a_missing_model_file_is_named() -> None:
    """The path stands in the message."""
    with pytest.raises(NotFound, match=r"nowhere\.onnx"):
        build(["yunet=nowhere.onnx"], Search())


@pytest.mark.parametrize(("text", "why"), [("yunt=x", "did you mean 'yunet'"), ("yunet", "needs its model file")])
def test_a_wrong_detector_is_told(text: str, why: str) -> None:
    """The nearest name, or what is missing."""
    with pytest.raises(InputError, match=why):
        build([text], Search())


def test_auto_takes_the_best_that_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """haar alone on a fresh machine; a configured network before it."""
    monkeypatch.delenv("FER_LAB_YUNET", raising=False)
    monkeypatch.delenv("FER_LAB_SSD", raising=False)
    assert [f.name for f in build(["auto"], Search())] == ["haar"]
    monkeypatch.setenv("FER_LAB_SSD", str(ssd(tmp_path)))
    assert [f.name for f in build(["auto"], Search())] == ["openvino-ssd", "haar"]


def test_the_reduced_image_keeps_its_shape() -> None:
    """Longer side to the limit, small images untouched."""
    small, factor = reduced(np.zeros((720, 1280, 3), np.uint8), 320)
    assert (small.shape, factor) == ((180, 320, 3), 4.0)
    same, factor = reduced(np.zeros((100, 200, 3), np.uint8), 320)
    assert (same.shape, factor) == ((100, 200, 3), 1.0)


def test_two_threads_may_ask_one_detector() -> None:
    """The page's camera and the server's own source share it; two sizes at once ended the process before."""
    (finder,) = build(["haar"], Search())
    pictures = [astronaut(), np.ascontiguousarray(astronaut()[::2, ::2])]
    expected = [len(finder.find(picture)) for picture in pictures]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            assert [len(found) for found in pool.map(finder.find, pictures)] == expected
