"""A report as a radiologist meets it: in MLflow, in a real browser, from the command that the README names."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import RunNight
from playwright.sync_api import sync_playwright

from medrec.phantom import Known

CHROMIUM = shutil.which("chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")]


@contextmanager
def ui(home: Path) -> Iterator[str]:
    """`medrec ui` on a free port; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "medrec", "ui", "--home", home, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 90
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)
        with socket.socket() as probe:  # MLflow's own processes ended with the command
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_radiologist_finds_the_night_opens_a_study_and_sees_verdict_and_pictures(
    demo: tuple[Path, tuple[Known, ...]], run_night: RunNight, tmp_path: Path
) -> None:
    summary = run_night(demo[0])
    case = next(c for c in summary.cases if c.verdict == "finding")
    with ui(tmp_path / "home") as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1600, "height": 950})
        page.goto(f"{address}/#/experiments/1/runs?workflowType=machine_learning")
        page.get_by_text(f"night {summary.batch[:4]}-").first.wait_for(timeout=60_000)
        page.goto(f"{address}/#/experiments/1/runs/{case.mlflow_run_id}")
        page.get_by_text("FINDING", exact=True).first.wait_for(timeout=60_000)  # the description says it first
        page.goto(f"{address}/#/experiments/1/runs/{case.mlflow_run_id}/artifacts/report.html")
        page.locator("iframe").first.wait_for(timeout=60_000)
        frame = page.frame_locator("iframe").first
        frame.locator("h1").wait_for(timeout=60_000)
        assert frame.locator("h1").inner_text().strip().lower() == "finding"
        assert frame.locator("h1").bounding_box()["y"] < 500  # type: ignore[index]  # without scrolling
        sizes = frame.locator("image, img").evaluate_all(
            "all => all.map(e => e.naturalWidth ?? e.getBoundingClientRect().width)"
        )
        assert len(sizes) > 20
        assert all(size > 0 for size in sizes)
        page.screenshot(path=tmp_path / "report.png")
        browser.close()
