"""The server behind the page: what it answers, and whom it turns away."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_bundle import write
from PIL import Image

from fer_lab.backends.session import Predictor
from fer_lab.live.frames import Found
from fer_lab.live.models import Models, Named
from fer_lab.live.outputs import Outputs
from fer_lab.live.pipeline import Pipeline, Settings
from fer_lab.live.sample import SampleSource
from fer_lab.live.sources import FolderSource
from fer_lab.live.web.guard import MOST_BODY_BYTES
from fer_lab.live.web.server import Page, application


class OneFace:
    """A detector that always finds the middle."""

    name = "middle"
    margin = 1.0
    drop = 0.0

    def find(self, image: np.ndarray) -> list[Found]:
        """A box in the middle."""
        h, w = image.shape[:2]
        return [Found((w / 4, h / 4, w * 3 / 4, h * 3 / 4), 0.9)]


def page(tmp_path: Path, **options: Any) -> Page:
    """A page over the tiny model."""
    models = Models(Named("tiny", 3, Predictor.open(write(tmp_path / "bundle"), "openvino")))
    return Page(models, [OneFace()], Settings(), **options)


def client(one: Page, bound: str = "127.0.0.1", base: str = "http://127.0.0.1:8765") -> Any:
    """A client in the same process."""
    testclient = pytest.importorskip("starlette.testclient")
    return testclient.TestClient(application(one, bound=bound), base_url=base)


def jpeg(gray: int = 100, size: tuple[int, int] = (64, 48)) -> bytes:
    """A flat picture."""
    buffer = io.BytesIO()
    Image.new("L", size, gray).save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_frame_comes_back_as_labelled_boxes(tmp_path: Path) -> None:
    """Boxes in pixels of the frame sent, probabilities in the card's order, the input when asked."""
    web = client(page(tmp_path))
    answer = web.post("/api/frame", content=jpeg(10), headers={"X-Stream": "a", "X-Input": "1"})
    assert answer.status_code == 200
    body = answer.json()
    (face,) = body["faces"]
    assert (body["width"], body["height"], face["box"]) == (64, 48, [16, 12, 48, 36])
    assert face["label"] == "neutral"
    assert sum(face["probs"]) == pytest.approx(1, abs=1e-3)
    assert len(face["input"]) == 48 * 48
    assert abs(np.mean(face["input"]) - 10) < 1


def test_browsers_keep_their_own_tracks_and_no_more_than_sixteen(tmp_path: Path) -> None:
    """The stream's name separates them; memory is bounded."""
    one = page(tmp_path)
    web = client(one)
    for i in range(20):
        tracks = [
            web.post("/api/frame", content=jpeg(), headers={"X-Stream": str(i)}).json()["faces"][0]["track"] for _ in range(2)
        ]
        assert tracks == [1, 1]
    assert len(one._streams) == 16


def test_each_still_picture_is_seen_for_itself(tmp_path: Path) -> None:
    """No track and no average reaches from one to the next, whatever stream they come in."""
    web = client(page(tmp_path))
    for still, expected in (("0", [1, 1]), ("1", [2, 3])):
        headers = {"X-Stream": "a", "X-Still": still}
        answers = [web.post("/api/frame", content=jpeg(), headers=headers).json() for _ in range(2)]
        assert [answer["faces"][0]["track"] for answer in answers] == expected


def test_the_next_detector_looks_at_the_next_frame(tmp_path: Path) -> None:
    """And the first one again after the last."""
    one = page(tmp_path)
    other = OneFace()
    other.name = "other"
    one.finders.append(other)
    web = client(one)
    for expected in ("other", "middle"):
        assert web.post("/api/control", json={"do": "detector"}).json()["said"] == f"detector: {expected}"
        assert web.post("/api/frame", content=jpeg()).json()["detector"] == expected


def test_the_model_says_what_it_is(tmp_path: Path) -> None:
    """Card, version, runtime, colours."""
    body = client(page(tmp_path)).get("/model").json()
    assert (body["name"], body["version"], body["runtime"], body["precision"]) == ("tiny", 3, "openvino", "f32")
    assert body["card"]["labels"][0] == "neutral"
    assert body["colours"]["anger"].startswith("#")


def test_the_page_and_its_files_are_served_under_a_strict_policy(tmp_path: Path) -> None:
    """Nothing inline, nothing from elsewhere."""
    web = client(page(tmp_path))
    for path in ("/", "/static/app.js", "/static/style.css", "/health"):
        answer = web.get(path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    text = web.get("/").text
    assert "<script>" not in text
    assert "style=" not in text
    assert "http" not in text.replace("http-equiv", "")


@pytest.mark.parametrize("path", ["/static/../server.py", "/static/%2e%2e/server.py", "/openapi.json", "/docs", "/etc/passwd"])
def test_nothing_else_is_served(tmp_path: Path, path: str) -> None:
    """No source, no listing."""
    assert client(page(tmp_path)).get(path).status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 400), ({"Host": "127.0.0.1.evil.example"}, 400), ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://["}, 403), ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403), ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://127.0.0.1:8765"}, 200), ({"Host": "localhost:8765", "Origin": "http://localhost:8765"}, 200),
    ],
)  # fmt: skip
def test_other_sites_are_turned_away(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    """DNS rebinding and cross-site POSTs."""
    assert client(page(tmp_path)).post("/api/frame", content=jpeg(), headers=headers).status_code == status


def test_a_token_is_asked_for_when_others_may_connect(tmp_path: Path) -> None:
    """By header or address; health stays open; the files hold no secret."""
    web = client(page(tmp_path, token="s3cret"), bound="0.0.0.0", base="http://192.0.2.7:8765")
    assert web.get("/model").status_code == 401
    assert web.get("/model", headers={"X-Token": "wrong"}).status_code == 401
    assert web.get("/model", headers={"X-Token": "s3cret"}).status_code == 200
    assert web.get("/?token=s3cret").status_code == 200
    assert web.get("/health").status_code == 200
    assert web.get("/model", headers={"Host": "rebound.example", "X-Token": "s3cret"}).status_code == 400


def test_a_body_too_large_is_refused_by_length_and_by_count(tmp_path: Path) -> None:
    """Also when the length is not announced."""
    web = client(page(tmp_path))
    assert web.post("/api/frame", content=b"x" * (MOST_BODY_BYTES + 1)).status_code == 413

    def endless() -> Any:
        for _ in range(12):
            yield b"x" * 1_000_000

    assert web.post("/api/frame", content=endless()).status_code == 413


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", jpeg()[:80]])
def test_what_is_no_image_is_told(tmp_path: Path, data: bytes) -> None:
    """422 with a sentence, and the next frame works; the summary counts it."""
    one = page(tmp_path)
    web = client(one)
    answer = web.post("/api/frame", content=data)
    assert answer.status_code == 422
    assert answer.json()["error"]
    assert web.post("/api/frame", content=jpeg()).status_code == 200
    assert (one.result()["frames"], one.result()["bad_frames"]) == (1, 1)


def test_an_image_of_too_many_pixels_is_refused(tmp_path: Path) -> None:
    """A small file of 8000 × 4000 pixels."""
    buffer = io.BytesIO()
    Image.new("1", (8000, 4000)).save(buffer, "PNG")
    answer = client(page(tmp_path)).post("/api/frame", content=buffer.getvalue())
    assert (answer.status_code, "8000×4000" in answer.json()["error"]) == (422, True)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"do": "explode"}', b"\xff", b'{"do": "pause"}'])
def test_a_wrong_control_is_told(tmp_path: Path, content: bytes) -> None:
    """No source of the server: pause has nothing to pause."""
    assert client(page(tmp_path)).post("/api/control", content=content).status_code == 422


def test_a_source_of_the_server_is_streamed_and_controlled(tmp_path: Path) -> None:
    """State, MJPEG, pause, snapshot, recording."""
    one = page(tmp_path)
    pipeline = Pipeline(SampleSource(), [OneFace()], one.models, Settings(known_boxes=True))
    one.pipeline, one.outputs = pipeline, Outputs(pipeline, folder=tmp_path)
    web = client(one)
    assert web.get("/api/state").json()["source"] == "sample"
    results = pipeline.results()
    one.latest = next(results)
    one.outputs.take(one.latest)
    body = web.get("/api/state").json()
    assert (body["frames"], len(body["result"]["faces"]), body["result"]["detector"]) == (1, 1, "known boxes")
    assert web.post("/api/control", json={"do": "record"}).json()["said"].startswith("recording to")
    assert web.post("/api/control", json={"do": "snapshot"}).status_code == 200
    assert web.post("/api/control", json={"do": "pause"}).json()["said"] == "paused"
    results.close()
    one.stopping.set()
    one.outputs.close()
    assert len(list(tmp_path.glob("fer-*.png"))) == 1


def test_the_stream_is_of_a_size_for_the_page_and_ends_with_its_source(tmp_path: Path) -> None:
    """A picture of 4000 × 3000 pixels is sent reduced; nothing waits for another one."""
    Image.new("L", (4000, 3000), 100).save(tmp_path / "large.jpg")
    one = page(tmp_path)
    pipeline = Pipeline(FolderSource(tmp_path / "large.jpg"), [OneFace()], one.models, Settings())
    one.pipeline, one.outputs = pipeline, Outputs(pipeline, folder=tmp_path)
    one.run_source()
    body = client(one).get("/api/stream.mjpeg").content
    assert body.count(b"--frame") == 1
    with Image.open(io.BytesIO(body[body.index(b"\r\n\r\n") + 4 :])) as picture:
        assert picture.size == (960, 720)


def test_a_flood_does_not_grow_memory_or_slow_an_honest_client(tmp_path: Path) -> None:
    """A hundred bad bodies, then a good one within two seconds."""
    web = client(page(tmp_path))
    for _ in range(100):
        web.post("/api/frame", content=b"x" * 100_000)
    start = time.perf_counter()
    assert web.post("/api/frame", content=jpeg()).status_code == 200
    assert time.perf_counter() - start < 2


def test_a_named_proxy_may_ask_and_nobody_else(tmp_path: Path) -> None:
    """TLS before the page: under its own name, and with a Host that the proxy wrote anew."""
    web_of = page(tmp_path, token="s3cret")
    testclient = pytest.importorskip("starlette.testclient")
    web = testclient.TestClient(application(web_of, names=["Demo.example.org"]), base_url="http://127.0.0.1:8765")
    for host in ("demo.example.org", "127.0.0.1:8765"):
        headers = {"Host": host, "Origin": "https://demo.example.org", "X-Token": "s3cret"}
        assert web.post("/api/frame", content=jpeg(), headers=headers).status_code == 200
    refused = web.post("/api/frame", content=jpeg(), headers={"Host": "other.example.org", "X-Token": "s3cret"})
    assert (refused.status_code, "--allow-host" in refused.json()["error"]) == (400, True)
    headers = {"Host": "demo.example.org", "Origin": "https://evil.example", "X-Token": "s3cret"}
    assert web.post("/api/frame", content=jpeg(), headers=headers).status_code == 403


def test_a_lost_camera_leaves_no_face_on_the_page(tmp_path: Path) -> None:
    """What was seen before is not what is there now."""
    one = page(tmp_path)
    pipeline = Pipeline(SampleSource(), [OneFace()], one.models, Settings(known_boxes=True))
    one.pipeline, one.outputs = pipeline, Outputs(pipeline, folder=tmp_path)
    results = pipeline.results()
    one.latest = next(results)
    assert "result" in one.state()
    pipeline.source.status = "camera 0: no signal, trying again (attempt 1)"
    assert "result" not in one.state()
    pipeline.source.status = ""
    assert "result" in one.state()
    results.close()
