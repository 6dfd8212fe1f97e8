"""The page in a real browser: what people see, in both themes and languages, live, and with hostile names."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

from playwright.sync_api import Browser, Page, expect

from scheduler.domain.changes import LogRow
from scheduler.domain.reasons import Reason
from tests.status_page.scenario import Afternoon, FakeInventory, FakeLoop, advance
from tests.status_page.screenshots import CHROMIUM, PHONE, afternoon_page, browser, open_page
from tests.status_page.serving import served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.access(CHROMIUM, os.X_OK), reason=f"no {CHROMIUM}: bash tests/install-browser"),
]
PATIENCE_MS = 60_000
HOSTILE = '<img src=x onerror="window.struck=1"><script>window.struck=1</script>"\'&amp;'


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


class Watched:
    """A page whose complaints are kept."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)


def watch(chromium: Browser, url: str, **options: object) -> Watched:
    page = open_page(chromium, url, **options)  # type: ignore[arg-type]
    watched = Watched(page)
    page.reload()  # so that nothing it says while it loads is missed
    page.wait_for_selector(".link[data-link=live]", timeout=PATIENCE_MS)
    return watched


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_busy_afternoon(chromium: Browser, tmp_path: Path, scheme: str) -> None:
    with afternoon_page() as url:
        watched = watch(chromium, url, scheme=scheme)
        page = watched.page
        expect(page.locator(".figure")).to_have_count(5)
        expect(page.locator(".map .cell")).to_have_count(200)
        expect(page.locator("tbody.job")).to_have_count(9)
        expect(page.locator(".area")).not_to_have_count(0)
        expect(page.locator("#unplaced li")).to_have_count(3)
        expect(page.locator("#unplaced .remedy").first).to_contain_text("lower width.min to 16")
        expect(page.locator("#events .event").first).to_contain_text("yuan-m32-pretrain")
        expect(page.locator("#welcome")).to_be_hidden()
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(json.loads(dark.replace("rgb(", "[").replace(")", "]"))) < 120) == (scheme == "dark")
        picture = tmp_path / f"{scheme}.png"
        page.screenshot(path=str(picture), full_page=True)
        assert picture.stat().st_size > 20_000
        assert watched.complaints == []
        page.context.close()


def test_an_empty_page_teaches_the_first_steps(chromium: Browser, tmp_path: Path) -> None:
    with served(FakeLoop(FakeInventory())) as empty:
        watched = watch(chromium, empty.url)
        page = watched.page
        expect(page.locator("#welcome")).to_contain_text("fallow agent --node")
        expect(page.locator("#welcome")).to_contain_text("fallow submit examples/train-moe.yaml")
        expect(page.locator("#capacity-panel")).to_be_hidden()
        page.screenshot(path=str(tmp_path / "empty.png"))
        assert watched.complaints == []
        page.context.close()


def test_chinese_by_the_browsers_language_and_by_the_button(chromium: Browser, tmp_path: Path) -> None:
    with afternoon_page() as url:
        page = watch(chromium, url, locale="zh-CN").page
        expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
        expect(page.locator("#jobs-title")).to_have_text("作业")
        page.screenshot(path=str(tmp_path / "zh.png"))
        page.click("#language")
        expect(page.locator("#jobs-title")).to_have_text("Jobs")
        page.reload()
        expect(page.locator("#jobs-title")).to_have_text("Jobs")
        page.context.close()


def test_both_languages_have_the_same_words(chromium: Browser) -> None:
    with served(FakeLoop(FakeInventory())) as empty:
        page = open_page(chromium, empty.url)
        source = page.evaluate("fetch('assets/strings.js').then((answer) => answer.text())")
        page.context.close()
    english, chinese = (part.split("};")[0] for part in source.split(" = {\n")[1:3])
    keys = [sorted(word.split(":")[0].strip() for word in _entries(part)) for part in (english, chinese)]
    assert keys[0] == keys[1]
    assert len(keys[0]) > 100


def _entries(dictionary: str) -> list[str]:
    outside = "".join(piece for i, piece in enumerate(dictionary.replace('\\"', "").split('"')) if i % 2 == 0)
    return [entry for entry in outside.split(",") if ":" in entry]


def test_a_phone_shows_everything_without_scrolling_sideways(chromium: Browser, tmp_path: Path) -> None:
    with afternoon_page() as url:
        watched = watch(chromium, url, size=PHONE)
        page = watched.page
        expect(page.locator("tbody.job")).to_have_count(9)
        page.screenshot(path=str(tmp_path / "phone.png"), full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        assert watched.complaints == []
        page.context.close()


def test_news_arrives_without_a_reload(chromium: Browser) -> None:
    loop = Afternoon(time.time()).build()
    with served(loop) as page_of:
        watched = watch(chromium, page_of.url)
        page = watched.page
        page.evaluate("window.sameDocument = true")
        advance(loop.inventory, "j-0002", 111, 0.987)
        expect(page.locator("tbody.job").nth(1)).to_contain_text("3,325 of 4,000", timeout=PATIENCE_MS)
        expect(page.locator("tbody.job").nth(1)).to_contain_text("0.987")
        job = loop.inventory.jobs["j-0001"]
        loop.inventory.jobs["j-0001"] = replace(job, message="brand new", rescales=())
        assert page.evaluate("window.sameDocument") is True
        assert watched.complaints == []
        page.context.close()


def test_hostile_names_stay_text(chromium: Browser) -> None:
    now_s = time.time()
    afternoon = Afternoon(now_s)
    loop = afternoon.build()
    for job_id, job in loop.inventory.jobs.items():
        loop.inventory.jobs[job_id] = replace(
            job, name=HOSTILE, user=HOSTILE, message=HOSTILE, output=HOSTILE, endpoint="javascript:window.struck=1"
        )
    loop.unplaced = {"j-0006": Reason(HOSTILE, HOSTILE, HOSTILE)}
    for name in ("gpu001", "r001"):
        node = loop.inventory.nodes[name]
        loop.inventory.nodes[name] = replace(node, source=HOSTILE, reason=HOSTILE)
    loop.say(LogRow(99, now_s, HOSTILE, HOSTILE, HOSTILE, job=HOSTILE, node=HOSTILE))
    with served(loop) as page_of:
        watched = watch(chromium, page_of.url)
        page = watched.page
        expect(page.locator(".job-name").first).to_have_text(HOSTILE)
        page.locator(".job-name").first.click()
        page.locator(".map .cell").first.hover()
        expect(page.locator("#tooltip")).to_contain_text("onerror", timeout=PATIENCE_MS)
        expect(page.locator("#events .event").first).to_contain_text("<script>", timeout=PATIENCE_MS)
        expect(page.locator("#unplaced li").first).to_contain_text("<script>")
        assert page.evaluate("window.struck") is None
        assert page.locator("main img, main script, main a[href^=javascript]").count() == 0
        assert watched.complaints == []
        page.context.close()


def test_the_keyboard_reaches_time_nodes_and_jobs(chromium: Browser) -> None:
    with afternoon_page() as url:
        page = watch(chromium, url).page
        page.locator("#map").focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#announcer")).to_contain_text("gpu001")
        expect(page.locator("#tooltip")).to_be_visible()
        page.locator("#capacity svg").focus()
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#announcer")).to_contain_text("Borrowed")
        page.locator("#ranges [aria-checked=true]").focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#ranges [aria-checked=true]")).to_have_text("2 h")
        expect(page.locator("#ranges [aria-checked=true]")).to_be_focused()
        page.locator(".job-name").first.focus()
        page.keyboard.press("Enter")
        expect(page.locator(".job-name").first).to_have_attribute("aria-expanded", "true")
        expect(page.locator(".rescales li")).to_have_count(5)
        page.context.close()


def test_what_is_written_has_enough_contrast(chromium: Browser) -> None:
    with served(FakeLoop(FakeInventory())) as empty:
        for scheme in ("light", "dark"):
            page = open_page(chromium, empty.url, scheme)
            for text, ground in WRITTEN_ON:
                ratio = page.evaluate(CONTRAST, [text, ground])
                assert ratio >= 4.5, f"{scheme}: --{text} on --{ground} has a contrast of {ratio:.2f}"
            page.context.close()


WRITTEN_ON = (
    ("ink", "panel"),
    ("muted", "panel"),
    ("muted", "paper"),
    ("muted", "track"),
    ("good", "panel"),
    ("bad", "panel"),
    ("accent", "accent-soft"),
    ("on-useful", "useful-deep"),
    ("on-joining", "joining"),
    ("ink", "idle"),
    ("ink", "owner"),
)

CONTRAST = """([text, ground]) => {
  const probe = document.body.appendChild(document.createElement("i"));
  const light = (name) => {
    probe.style.color = `var(--${name})`;
    const parts = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
    const [r, g, b] = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [high, low] = [light(text), light(ground)].sort((a, b) => b - a);
  probe.remove();
  return (high + 0.05) / (low + 0.05);
}"""


def test_a_scheduler_that_is_gone_is_said_to_be_gone_and_found_again(chromium: Browser) -> None:
    loop = Afternoon(time.time()).build()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with served(loop, port=port) as page_of:
        page = watch(chromium, page_of.url).page
    expect(page.locator("#banner")).to_contain_text("Connection lost since", timeout=PATIENCE_MS)
    expect(page.locator("tbody.job")).to_have_count(9)  # the last that was known stays
    with served(Afternoon(time.time()).build(), port=port):
        expect(page.locator(".link")).to_have_attribute("data-link", "live", timeout=PATIENCE_MS)
        expect(page.locator("#banner")).to_be_hidden()
        page.context.close()


def test_a_page_that_may_no_longer_look_says_so(chromium: Browser) -> None:
    allowed = {"yes": True}
    loop = Afternoon(time.time()).build()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with served(loop, lambda token, local: allowed["yes"], port=port) as page_of:
        page = watch(chromium, page_of.url).page
    allowed["yes"] = False
    with served(loop, lambda token, local: allowed["yes"], port=port):
        expect(page.locator("#banner")).to_contain_text("fallow token create --role viewer", timeout=PATIENCE_MS)
        page.reload()
        expect(page.locator("h1")).to_have_text("This page needs a viewer token")
        page.context.close()
