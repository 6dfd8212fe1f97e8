"""Pictures of the page for the documents: python -m tests.status_page.screenshots [FOLDER]."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from scheduler.status_page import app as app_module
from scheduler.status_page.feed import Feed
from tests.status_page.scenario import Afternoon, FakeInventory, FakeLoop, loss_curve
from tests.status_page.serving import served

CHROMIUM = "/usr/bin/chromium"
ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-dev-shm-usage",
]  # fmt: skip
DESKTOP = (1440, 1100)
PHONE = (390, 844)


@contextmanager
def browser() -> Iterator[Browser]:
    """Debian's Chromium, without a screen."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        try:
            yield chromium
        finally:
            chromium.close()


def open_page(
    chromium: Browser,
    url: str,
    scheme: str = "light",
    size: tuple[int, int] = DESKTOP,
    locale: str = "en-GB",
) -> Page:
    """The page, once it shows its first state."""
    context = chromium.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if scheme == "dark" else "light",
        locale=locale, timezone_id="Europe/Berlin", reduced_motion="reduce",
    )  # fmt: skip
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("body.loaded", timeout=60_000)
    page.wait_for_selector(".link[data-link=live]", timeout=60_000)
    return page


class PastFeed(Feed):
    """A feed that has been watching an afternoon for a while."""

    afternoon: Afternoon
    seconds = 7_100

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        for sample in self.afternoon.samples(self.seconds):
            self.history.add(sample)
        rng = random.Random(3)
        for job in self.afternoon.inventory.jobs.values():
            for step, value in loss_curve(job, 60, rng) if job.progress.step else ():
                trace = self.traces._by_job.setdefault(job.id, self.traces.of(job.id))
                speed = job.progress.rate if job.progress.rate_unit == "items/s" else 2.2
                trace.add(self.afternoon.now_s - (job.progress.step - step) / speed, step, value)


@contextmanager
def afternoon_page() -> Iterator[str]:
    """The address of the busy afternoon."""
    afternoon = Afternoon(time.time())
    loop = afternoon.build()
    PastFeed.afternoon = afternoon
    original = app_module.Feed
    app_module.Feed = PastFeed  # type: ignore[misc]
    try:
        with served(loop) as page:
            yield page.url
    finally:
        app_module.Feed = original  # type: ignore[misc]


def take(folder: Path) -> None:
    """Write the three pictures that the documents show."""
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as chromium:
        with afternoon_page() as url:
            for scheme in ("light", "dark"):
                page = open_page(chromium, url, scheme)
                page.evaluate("localStorage.setItem('fallow-span', '7200')")
                page.reload()
                shoot(page, folder / f"status-page-{scheme}.png")
        with served(FakeLoop(FakeInventory())) as empty:
            page = open_page(chromium, empty.url, size=(1440, 900))
            shoot(page, folder / "status-page-empty.png")


def shoot(page: Page, path: Path) -> None:
    """Let a second update arrive, then take the visible part."""
    page.wait_for_selector(".link[data-link=live]")
    page.wait_for_timeout(2_500)
    page.screenshot(path=str(path))
    page.context.close()
    if shutil.which("optipng"):
        subprocess.run(["optipng", "-quiet", "-o2", str(path)], check=True)


if __name__ == "__main__":
    take(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"))
