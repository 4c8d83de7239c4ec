"""The page of a report in a real browser: its filters, its search, its sessions, and how it follows a run."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from browser_pages import DESKTOP, open_first
from page_sessions import failed, record, report, silent, tokens

from ppp.reporting import watch
from ppp.reporting.content import Session

OPTION_COUNTS = """(select) => [...select.options]
  .filter((option) => option.value && !option.value.startsWith("~"))
  .map((option) => Number(option.textContent.match(/\\((\\d+)\\)$/)[1]))"""


@pytest.fixture
def many() -> list[Session]:
    sessions = [Session("before" if n % 2 else "after", record(n)) for n in range(30)]
    sessions += [Session("before", silent(n, preference="json")) for n in range(30, 40)]
    sessions += [Session("after", failed(n, environment="func_loc")) for n in range(40, 45)]
    sessions += [Session("after", record(n, is_precise=True, mode="train")) for n in range(45, 48)]
    return sessions


def found(page: Any) -> str:
    return str(page.inner_text("#found"))


def searched(page: Any, query: str) -> str:
    page.fill("#query", query)
    page.wait_for_function("(query) => document.getElementById('found').dataset.query === query", arg=query.strip())
    return found(page)


@pytest.mark.parametrize(
    ("facet", "value", "count"),
    [
        ("run", "before", 25),
        ("environment", "func_loc", 5),
        ("preference", "json", 10),
        ("preference", "~unseen", 10),
        ("preference", "~seen", 38),
        ("prompt", "precise", 3),
        ("outcome", "wrong", 10),
        ("asking", "silent", 10),
        ("effort", "high", 10),
        ("following", "unknown", 5),
        ("mode", "train", 3),
    ],
)
def test_filter_leaves_the_sessions_of(show: Any, many: list[Session], facet: str, value: str, count: int) -> None:
    page = show(many)
    assert found(page) == "48 sessions"
    page.select_option(f"#facet-{facet}", value)
    assert found(page) == f"{count} of 48 sessions"
    chosen = page.eval_on_selector(f"#facet-{facet}", "select => select.selectedOptions[0].textContent")
    assert chosen.endswith(f"({count})")
    assert sum(page.eval_on_selector(f"#facet-{facet}", OPTION_COUNTS)) == 48, (
        "the other values tell what they would give"
    )
    page.click("#clear")
    page.wait_for_function("() => document.getElementById('found').textContent === '48 sessions'")


def test_sessions_with_a_token_view_are_found_among_the_others(show: Any, many: list[Session]) -> None:
    assert show(many).query_selector("#facet-tokens") is None, "no session has one"
    page = show([*many, Session("after", record(48), {}, tokens())])
    page.select_option("#facet-tokens", "shown")
    assert found(page) == "1 of 49 sessions"


def test_filters_work_together_and_a_link_to_them_shows_the_same(show: Any, many: list[Session]) -> None:
    page = show(many)
    page.select_option("#facet-run", "before")
    page.select_option("#facet-outcome", "solved")
    assert searched(page, '"number 7?"') == "1 of 48 sessions"
    open_first(page)
    page.select_option("#order", "reward-up")
    title, address = page.inner_text(".session h3"), page.evaluate("location.hash")
    again = show(many, address)
    again.wait_for_selector(".session")
    assert again.inner_text(".session h3") == title == "task-7/concise_question"
    assert found(again) == "1 of 48 sessions" and again.input_value("#query") == '"number 7?"'
    assert again.input_value("#facet-run") == "before" and again.input_value("#order") == "reward-up"


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("number 3", 3),  # both words, anywhere
        ('"number 3?"', 1),
        ("ROUTER/merging.PY", 43),
        ("endpoint", 5),
        ("task-46", 1),
        ("follows_preference", 0),  # the name of a field is no text of a session
        ("   ", 48),
    ],
)
def test_search_finds(show: Any, many: list[Session], query: str, count: int) -> None:
    assert searched(show(many), query) == ("48 sessions" if count == 48 else f"{count} of 48 sessions")


def test_a_longer_search_and_a_shorter_one_again_find_the_same_as_at_once(show: Any, many: list[Session]) -> None:
    page = show(many)
    counts = [searched(page, query) for query in ("number", "number 1", "number 12", "number 1", "number")]
    assert counts[0] == counts[4] and counts[1] == counts[3]
    assert counts[2] == searched(show(many), "number 12")


def test_order_puts_sessions_without_the_value_last(show: Any, many: list[Session]) -> None:
    page = show(many)
    for order, first in (("reward-up", "0.00"), ("reward-down", "1.00")):
        page.select_option("#order", order)
        assert page.inner_text("#list .row:first-child .row-reward") == first
        page.evaluate("document.getElementById('list').scrollTop = 1e6")
        page.wait_for_function(
            "() => document.querySelector('#list .row:last-child').getAttribute('aria-posinset') === '48'"
        )
        assert page.inner_text("#list .row:last-child .row-reward") == "\u2013"


def test_keyboard_goes_through_sessions_to_the_search_and_back(show: Any, many: list[Session]) -> None:
    page = show(many)
    titles = []
    for key in ("j", "j", "k"):
        page.keyboard.press(key)
        page.wait_for_selector(".session")
        page.wait_for_timeout(50)
        titles.append(page.inner_text(".session h3"))
    assert titles == [f"task-{n}/concise_question" for n in (0, 1, 0)]
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.type("jk")
    assert page.input_value("#query") == "jk"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") != "query"
    page.keyboard.press("Escape")
    page.wait_for_selector(".guide")
    page.focus("#list")
    searched(page, "")
    page.focus("#list")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector(".session")
    selected = page.get_attribute("#list", "aria-activedescendant")
    assert page.get_attribute(f"#{selected}", "aria-selected") == "true"


def test_session_shows_the_conversation_with_its_verdicts_and_its_reward(show: Any) -> None:
    weights = {"productivity": 1.0, "proactivity": 2.0, "personalization": 0.0}
    page = show([Session("after", record(0), weights)])
    open_first(page)
    text = page.inner_text(".session")
    for part in (
        "Somewhere, merging is broken.",
        "In router, merging the key is broken.",
        "Which module is it, number 0?",
        "It is the router.",
        "low effort",
        "decided by evidence",
        "open_file",
        "Functions: key f57",
        "clipped down from 1.10",
        "+0.05 as every answer was low effort",
        "Ended: finished",
    ):
        assert part in text, part
    rows = [row.inner_text().split("\t") for row in page.query_selector_all(".reward tbody tr")]
    assert [row[2:] for row in rows] == [["× 1", "+1.00"], ["× 2", "+0.10"], ["× 0", "+0.00"]]
    assert text.count("Which module is it") == 1


def test_a_failed_session_tells_what_failed_and_has_no_reward(show: Any) -> None:
    page = show([Session("after", failed(0))])
    open_first(page)
    assert "the user's endpoint is down" in page.inner_text(".session .end")
    assert page.query_selector(".reward") is None


def test_token_view_tells_own_tokens_from_masked_ones(show: Any) -> None:
    page = show([Session("after", record(0), {}, tokens()), Session("after", record(1))])
    open_first(page)
    page.keyboard.press("t")
    page.wait_for_selector(".tokens")
    classes = [token.get_attribute("class") for token in page.query_selector_all(".token")]
    assert classes[:6] == [f"token own p{n}" for n in range(5)] + ["token masked"]
    assert "↵" in page.inner_text(".token:nth-child(2)") and page.inner_text(".token:nth-child(3)") == "∅"
    page.hover(".token:nth-child(4)")
    assert "log-probability −3.200 · probability 4.08 %" in page.inner_text(".readout")
    page.focus(".token:nth-child(1)")
    page.keyboard.press("ArrowRight")
    assert page.inner_text(".readout").startswith("token 2 of 7")
    page.keyboard.press("j")
    page.wait_for_function("() => document.querySelector('.session h3').textContent.startsWith('task-1/')")
    assert page.query_selector(".tokens") is None and page.query_selector(".turns") is not None


def test_a_watched_page_updates_itself_and_keeps_what_is_looked_at(
    browser: Any, tmp_path: Path, many: list[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "CHECK_S", 0.05)
    log = tmp_path / "log.jsonl"
    log.write_text("40")
    watcher_of = partial(
        watch.Watcher, lambda: report(many[: int(log.read_text())]), [tmp_path], tmp_path / "page.html"
    )

    async def serve() -> None:
        tasks.append(asyncio.ensure_future(watch.serve_page(watcher_of(), listening)))
        await asyncio.gather(*tasks, return_exceptions=True)

    tasks: list[asyncio.Future[None]] = []
    with watch.open_socket("127.0.0.1", 0) as listening:
        loop = asyncio.new_event_loop()
        server = threading.Thread(target=loop.run_until_complete, args=(serve(),))
        server.start()
        page = browser.new_page(viewport=DESKTOP)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(f"http://127.0.0.1:{listening.getsockname()[1]}/")
        page.select_option("#facet-outcome", "solved")
        page.evaluate("document.getElementById('list').scrollTop = 900")
        page.click("#list .row:nth-child(12)")
        page.wait_for_selector(".session")
        title, top = page.inner_text(".session h3"), page.evaluate("list.scrollTop")
        log.write_text("48")
        page.wait_for_function("() => document.getElementById('found').textContent === '33 of 48 sessions'")
        page.wait_for_selector(".session")
        assert page.inner_text(".session h3") == title
        assert page.evaluate("list.scrollTop") == top > 0
        loop.call_soon_threadsafe(tasks[0].cancel)
        server.join()
        page.wait_for_selector("#live.lost")
        assert page.is_visible(".session")
        page.close()
    loop.close()
    assert all("ERR_CONNECTION_REFUSED" in complaint for complaint in complaints)


def test_a_link_to_a_session_that_is_gone_says_so(show: Any) -> None:
    page = show([Session("after", record(0))], "#session=0123456789")
    assert "not in this file" in page.inner_text("#view")
