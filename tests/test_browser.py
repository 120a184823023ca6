"""A night as a radiologist meets it: in MLflow, in a real browser, from the command that the README names.

`MEDREC_SCREENSHOTS` names a folder in which the pages stay, to be looked at.
"""

import os
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
from mlflow.tracking import MlflowClient
from playwright.sync_api import FrameLocator, Locator, Page, sync_playwright

from medrec import verification
from medrec.home import Home
from medrec.phantom import Known
from medrec.store import Store

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


RUNS = "/#/experiments/1/runs"
VIEW = "workflowType=machine_learning"
WIDTHS = "all => all.map(e => e.naturalWidth)"
# An SVG's <image> has no naturalWidth: what its bytes decode to, in the frame itself.
DECODED = """async all => await Promise.all(all.map(async e => {
    const image = new Image(); image.src = e.getAttribute('href'); await image.decode(); return image.naturalWidth;
}))"""


def kept(folder: Path, name: str) -> Path:
    place = Path(os.environ.get("MEDREC_SCREENSHOTS", folder))
    place.mkdir(parents=True, exist_ok=True)
    return place / f"{name}.png"


def test_a_radiologist_finds_the_night_reads_its_pages_and_a_report_and_leaves_a_review(
    demo: tuple[Path, tuple[Known, ...]], run_night: RunNight, tmp_path: Path
) -> None:
    summary = run_night(demo[0])
    case = next(c for c in summary.cases if c.verdict == "finding")
    with ui(tmp_path / "home") as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1600, "height": 950})
        page.set_default_timeout(60_000)

        # The list: the night, and her studies under its "+".
        page.goto(f"{address}{RUNS}?{VIEW}")
        night = page.get_by_role("row").filter(has_text=f"night {summary.batch[:4]}-").first
        night.wait_for()
        page.get_by_role("button", name="Close").first.click()  # MLflow's assistant; a browser remembers that
        night.get_by_role("button").first.click()
        for each in summary.cases:
            page.get_by_text(f"{each.study[:8]} {each.verdict or each.status}").first.wait_for()
        page.screenshot(path=kept(tmp_path, "1-runs"))

        # The night: its description leads to the contact sheet, the worklist and each report.
        page.get_by_text(f"night {summary.batch[:4]}-").first.click()
        link = page.get_by_role("link", name="Contact sheet")
        link.wait_for()
        page.screenshot(path=kept(tmp_path, "2-night"))
        sheet = followed(page, link)
        frame = sheet.frame_locator("iframe").first
        frame.locator("h1").wait_for()
        shown = frame.locator("img").evaluate_all(WIDTHS)
        assert len(shown) == sum(c.verdict is not None for c in summary.cases)
        assert all(width > 100 for width in shown)
        assert frame.locator("h2").all_inner_texts()[0].split()[0] == "Finding"
        assert frame.locator("h2").first.bounding_box()["y"] < 950  # type: ignore[index]  # without scrolling
        assert_inside(frame)
        sheet.screenshot(path=kept(tmp_path, "3-contact-sheet"))
        sheet.set_viewport_size({"width": 620, "height": 950})
        assert_inside(frame)
        sheet.screenshot(path=kept(tmp_path, "4-contact-sheet-narrow"))
        listed = followed(page, page.get_by_role("link", name="worklist"))
        listed.get_by_text(case.study[:8], exact=True).first.wait_for()
        assert listed.get_by_text("View as table").is_visible()
        listed.screenshot(path=kept(tmp_path, "5-worklist"))

        # The report: verdict and pictures inside MLflow's frame, really decoded.
        page.get_by_text("Show more").click()
        report = followed(page, page.get_by_role("link", name=case.study[:8], exact=True))
        frame = report.frame_locator("iframe").first
        frame.locator("h1").wait_for()
        assert frame.locator("h1").inner_text().strip().lower() == "finding"
        assert frame.locator("h1").bounding_box()["y"] < 500  # type: ignore[index]  # without scrolling
        widths = frame.locator("svg image").evaluate_all(DECODED)
        assert len(widths) > 20
        assert all(width > 0 for width in widths)
        assert all(w > 0 for w in frame.locator("image").evaluate_all(BOXES))
        report.screenshot(path=kept(tmp_path, "6-report"))

        # Her word, where she is: a tag that `review sync` will read.
        page.goto(f"{address}{RUNS}/{case.mlflow_run_id}?{VIEW}")
        page.get_by_role("button", name="Edit tags").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("combobox").fill("review.status")
        page.keyboard.press("Enter")
        dialog.get_by_label("Value").fill("accepted")
        dialog.get_by_role("button", name="Add tag").click()
        page.screenshot(path=kept(tmp_path, "7-review"))
        dialog.get_by_role("button", name="Save tags").click()
        dialog.wait_for(state="hidden")
        page.get_by_text(": accepted").first.wait_for()
        page.screenshot(path=kept(tmp_path, "8-reviewed"))
        browser.close()
    home = Home(tmp_path / "home")
    read = MlflowClient(f"sqlite:///{home.mlflow_database}").get_run(str(case.mlflow_run_id))
    assert read.data.tags["review.status"] == "accepted"
    with Store.open(home.store_url) as store:  # people may write such tags
        assert [str(p) for p in verification.verify_mlflow(home, store, "medrec")] == []


BOXES = "all => all.map(e => e.getBoundingClientRect().width)"


def followed(page: Page, link: Locator) -> Page:
    """The page that a link of a description opens beside this one."""
    with page.expect_popup() as opened:
        link.click()
    opened.value.locator("[class*=artifact], iframe").first.wait_for()
    return opened.value


def assert_inside(frame: FrameLocator) -> None:
    """Nothing sticks out to the right: one scrolls in one direction only."""
    wide = frame.locator("html").evaluate("e => e.scrollWidth - e.clientWidth")
    assert wide <= 0
