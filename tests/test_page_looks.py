"""The page of a report in a real browser: what hostile and long texts do to it, phones, themes, and contrast."""

from __future__ import annotations

from typing import Any

import pytest
from browser_pages import DESKTOP, PHONE, open_first
from page_sessions import HOSTILE, hostile, record, silent, tokens

from ppp.reporting.content import Session

# Every text and every attribute that the page shows, data elements excepted.
TEXTS = """[...document.querySelectorAll("body *:not(script)")].flatMap((element) => [
  ...[...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data),
  ...[...element.attributes].filter((attribute) => attribute.name !== "value").map((attribute) => attribute.value),
]).join("")"""

CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => ((c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
    if (!text || !element.checkVisibility() || element.closest(".sr, script, style, noscript, svg")) continue;
    const [a, b] = [luminance(rgba(getComputedStyle(element).color)), luminance(ground(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push(`${element.className || element.tagName}: ${text.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("view", ["", "&view=tokens"])
def test_a_hostile_session_stays_text_everywhere(show: Any, view: str) -> None:
    """In every field, in the labels of runs, tables and figures, and in the pieces of tokens."""
    sessions = [Session(HOSTILE, hostile(0), {"productivity": 1.0}, tokens()), Session("plain", record(1))]
    page = show(sessions, f"#{view}", title=HOSTILE, label=HOSTILE)
    open_first(page)
    for button in page.query_selector_all("#view .more:visible"):
        button.click()
    for summary in page.query_selector_all("details:not([open]) > summary:visible"):
        summary.click()
    page.select_option("#facet-run", index=1)
    page.wait_for_timeout(200)
    injected = "img, iframe, base, object, embed, form:not(#filters), [onload], [onerror], a[href^='javascript']"
    assert page.eval_on_selector_all(injected, "all => all.map((one) => one.outerHTML)") == []
    assert page.evaluate("document.querySelectorAll('script:not([type])').length") == 2
    assert page.evaluate("document.querySelectorAll('style').length") == 1
    text = page.evaluate("document.body.innerText")
    assert "⟨U+202E⟩gnp.exe" in text and "<img src=x onerror=alert(2)>" in text
    shown = page.evaluate(TEXTS)
    assert not set("\u202e\u2066\u200b\u200d\ufeff\x1b") & set(shown)


@pytest.mark.parametrize("line", ["x" * 1_000_000, "שלום " * 200_000, "\u202e" * 1_000_000])
def test_a_line_of_a_megabyte_is_shown_in_parts(show: Any, line: str) -> None:
    made = record(0, prompt=line)
    made["turns"][1]["observation"] = line
    page = show([Session("after", made)])
    open_first(page)
    assert page.evaluate("document.querySelector('.session').textContent.length") < 40_000
    more = page.query_selector(".prompt .more")
    assert "1,000,000 characters" in more.inner_text()
    more.click()
    assert "characters left" in more.inner_text()
    page.click(".prompt .more:not([hidden]) ~ .more")
    assert "Show all" in page.inner_text(".prompt .more")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_page_never_scrolls_sideways(show: Any, scheme: str, size: Any) -> None:
    long = record(0, task_id="x" * 300, prompt="y" * 900, final_answer="z" * 900)
    page = show([Session("a" * 200, long, {}, tokens()), Session("b", record(1))], size=size, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    open_first(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert page.evaluate("document.getElementById('view').scrollWidth <= document.getElementById('view').clientWidth")
    clipped = "all => all.filter((piece) => piece.scrollWidth > piece.clientWidth).map((piece) => piece.textContent)"
    assert page.eval_on_selector_all("#view .piece", clipped) == []


def test_on_a_phone_a_session_covers_the_list_and_going_back_leads_to_it(show: Any) -> None:
    page = show([Session("after", record(n)) for n in range(30)], size=PHONE)
    open_first(page)
    assert page.is_visible(".session") and page.evaluate("getComputedStyle(view).position") == "fixed"
    page.go_back()
    page.wait_for_function("() => !document.querySelector('.session')")
    open_first(page)
    page.click(".back")
    page.wait_for_function("() => !document.querySelector('.session')")
    assert page.is_visible("#list")


def test_theme_follows_the_system_until_it_is_switched_and_then_the_address(show: Any) -> None:
    page = show([Session("after", record(0))], scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.click("#theme")
    light = page.evaluate(ground)
    assert light != dark and "theme=light" in page.evaluate("location.hash")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate(ground) == light


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_small_text_stands_out_from_its_ground(show: Any, scheme: str) -> None:
    """WCAG's contrast of 4.5 for every text of a session and of the list, whatever lies behind it."""
    page = show([Session("after", record(0), {}, tokens()), Session("b", silent(1))], scheme=scheme)
    open_first(page)
    assert page.evaluate(CONTRAST) == []
    page.keyboard.press("t")
    page.wait_for_selector(".tokens")
    assert page.evaluate(CONTRAST) == []
