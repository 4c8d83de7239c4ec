"""A real browser for the tests of the page, and what they do with one. The fixtures are known to every test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_sessions import report

from ppp.reporting.content import Session
from ppp.reporting.page import write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")  # an event loop runs as long as it is there, in which no other test could run its own
def browser() -> Iterator[Any]:
    """A Chromium of this machine; tests are skipped where there is none."""
    from playwright.sync_api import sync_playwright  # the environment with vLLM has none, and no test of a page

    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Writes a page and opens it; afterwards it must have been silent and must have asked for nothing but itself."""
    complaints: list[str] = []
    asked: list[str] = []
    opened = []

    def open_page(
        sessions: list[Session], hash: str = "", *, size: Any = DESKTOP, scheme: str = "light", **of: Any
    ) -> Any:
        path = tmp_path / "page.html"
        write_page(report(sessions, **of), path)
        context = browser.new_context(viewport=size, color_scheme=scheme)
        page = context.new_page()
        page.set_default_timeout(10_000)
        opened.append(context)
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri() + hash)
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_page
    for context in opened:
        context.close()
    assert complaints == []
    assert {url.split("#")[0] for url in asked if not url.startswith("data:")} == {(tmp_path / "page.html").as_uri()}


def open_first(page: Any) -> None:
    page.click("#list .row:first-child")
    page.wait_for_selector(".session")
