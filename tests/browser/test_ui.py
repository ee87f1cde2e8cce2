"""The UI in a real browser: a study's trials stand below it, its pictures show, its charts compare."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tracking_store import fresh_store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.skipif(os.name != "posix", reason="ends the server by a signal"),
]


def fill(home: Path) -> tuple[str, str]:
    """A study of three trials with curves and a picture; returns its experiment and its run."""
    from PIL import Image

    store = fresh_store(home)
    study = store.start_run("quickstart", "quickstart-study", tags={"fer.kind": "study"})
    for number in range(3):
        trial = store.start_run("quickstart", f"trial-{number}", parent=study.id, params={"train.lr": str(10.0**-number)})
        for epoch in range(5):
            trial.log_metrics(epoch, {"val/accuracy": 0.5 + 0.1 * number + 0.05 * epoch, "train/loss": 2.0 - 0.2 * epoch})
        trial.end("KILLED" if number == 1 else "FINISHED")
    picture = home / "importance.png"
    Image.fromarray(np.full((200, 300, 3), (20, 120, 220), np.uint8)).save(picture)
    study.log_metrics(0, {"val/accuracy": 0.9})
    study.log_file(picture, "plots")
    study.end()
    return store.run_info(study.id)["experiment_id"], study.id


@pytest.mark.filterwarnings("ignore")  # playwright's own event loop
def test_the_newest_study_shows_grouped_with_its_pictures(home: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    experiment, study = fill(home)
    shots = Path(os.environ.get("FER_LAB_SCREENSHOTS") or home)
    server = subprocess.Popen(
        [sys.executable, "-m", "fer_lab.ui", "--no-browser"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdout is not None
    try:
        url = re.fullmatch(r"MLflow UI: (\S+)\n", server.stdout.readline()).group(1)  # type: ignore[union-attr]
        assert url.startswith("http://127.0.0.1:")
        assert f"/#/experiments/{experiment}/runs" in url
        assert (
            server.stdout.readline() == f"for MLflow's own commands: export MLFLOW_TRACKING_URI=sqlite:///{home}/mlruns/mlflow.db\n"
        )
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1500, "height": 900})
            page.set_default_timeout(120_000)
            expect.set_options(timeout=120_000)
            page.goto(url)
            expect(page.get_by_text("quickstart-study").first).to_be_visible()
            assert page.get_by_text("trial-0").count() == 0  # grouped: the trials stand folded below their study
            page.get_by_text("quickstart-study").first.locator("xpath=ancestor::*[@role='row'][1]").get_by_role(
                "button"
            ).first.click()
            expect(page.get_by_text("trial-0").first).to_be_visible()
            page.wait_for_timeout(2000)
            page.screenshot(path=shots / "ui-table.png")
            page.goto(f"{url}&compareRunsMode=CHART")
            expect(page.get_by_text("val/accuracy").first).to_be_visible()
            page.wait_for_timeout(5000)
            page.screenshot(path=shots / "ui-charts.png")
            page.goto(url.partition("#")[0] + f"#/experiments/{experiment}/runs/{study}/artifacts/plots/importance.png")
            picture = page.locator("img[src^='blob:']").first
            expect(picture).to_be_visible()
            assert picture.evaluate("image => image.naturalWidth") == 300
            page.wait_for_timeout(2000)
            page.screenshot(path=shots / "ui-picture.png")
            browser.close()
    finally:
        server.send_signal(signal.SIGTERM)
        rest = server.communicate(timeout=60)[0]
    assert rest.splitlines()[-1] == f'{{"url": "{url}", "store": "sqlite:///{home}/mlruns/mlflow.db"}}'
    assert server.returncode == 0
