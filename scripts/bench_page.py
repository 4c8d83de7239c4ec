"""How fast the page of a report is with many sessions: python scripts/bench_page.py [--sessions 20000] [--chars 2048].

Writes a page of synthetic sessions, opens it in the Chromium of this machine, pinned to two cores, and prints medians:
seconds from the address to a list that can be used, milliseconds from the change of a filter or a search to the
new list on the screen, and from the choice of a session to its conversation.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from ppp.preferences import PREFERENCES
from ppp.reporting.content import Headline, Report, Session
from ppp.reporting.page import write_page

# Waits for the frame after the one in which the change was made, so that layout and painting count as well.
TIMED = """async ([kind, name, value]) => {
  const painted = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve, 0)));
  await painted();
  const found = document.getElementById("found");
  const start = performance.now();
  if (kind === "filter") {
    const select = document.getElementById(name);
    select.value = value;
    select.dispatchEvent(new Event("change", { bubbles: true }));
  } else {
    const input = document.getElementById("query");
    input.value = value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
    while (found.dataset.query !== value) await painted();
  }
  await painted();
  return performance.now() - start;
}"""
MARKS = """[
  performance.getEntriesByName("usable")[0].startTime,
  performance.timing.loadEventEnd - performance.timing.navigationStart,
]"""
OPEN_SESSION = """async (row) => {
  const start = performance.now();
  row.click();
  while (!document.querySelector("#view .session") || document.querySelector("#view .session").dataset.seen) {
    await new Promise((resolve) => setTimeout(resolve, 0));
  }
  document.querySelector("#view .session").dataset.seen = "yes";
  return performance.now() - start;
}"""


class Words:
    """Text with the word frequencies of a language: a few words make up most of it."""

    def __init__(self, rng: random.Random, size: int = 30_000) -> None:
        letters = "etaoinshrdlucmfwypvbgkjqxz"
        self.rng = rng
        self.words = ["".join(rng.choices(letters, range(26, 0, -1), k=rng.randint(2, 10))) for _ in range(size)]
        # Drawing a million words one by one is slow; slices of one long text are different enough.
        chosen = rng.choices(self.words, [1 / (rank + 2) for rank in range(size)], k=1_000_000)
        self.text = " ".join(chosen)

    def take(self, chars: int) -> str:
        start = self.rng.randrange(len(self.text) - chars)
        return self.text[start : start + chars]


def synthetic_record(number: int, words: Words, turns: int, chars: int) -> dict[str, Any]:
    """A session whose turns have `chars` characters each, with a question in every other one."""
    rng = words.rng
    preference = list(PREFERENCES)[number % len(PREFERENCES)]
    played: list[dict[str, Any]] = []
    for turn in range(turns):
        entry: dict[str, Any] = {"text": words.take(chars // 3), "is_error": rng.random() < 0.1, "truncated": False}
        if turn == 1:
            question, answer = words.take(chars // 6), words.take(chars // 6)
            entry |= {"call": {"name": "ask_user", "arguments": json.dumps({"query": question})}, "question": question}
            verdict = {"effort": rng.choice(["low", "medium", "high"]), "follows_preference": rng.random() < 0.7}
            entry |= {"answer": {"text": answer, **verdict, "decided_by": "rule"}, "observation": answer}
        else:
            entry |= {"call": {"name": "search", "arguments": json.dumps({"query": words.take(20)})}}
            entry["observation"] = words.take(chars - chars // 3)
        played.append(entry)
    solved = rng.choice([0.0, 0.5, 1.0])
    effort = {"low": 0, "medium": 0, "high": 0} | {played[1]["answer"]["effort"]: 1}
    return {
        "step": number // 128,
        "mode": "eval" if number % 16 == 0 else "train",
        "row": number // 8,
        "copy": number % 8,
        "task_id": f"task-{number // 8}/{preference}",
        "environment": ("town", "func_loc", "deep_research")[number % 3],
        "preference": preference,
        "is_precise": number % 13 == 0,
        "prompt": words.take(200),
        "stop_reason": "finished",
        "final_answer": words.take(40),
        "error": None,
        "error_kind": None,
        "score": {
            "productivity": solved,
            "proactivity": -0.1,
            "personalization": 0.05,
            "reward": max(0, solved - 0.05),
        },
        "session": {
            "productivity": solved,
            "session_effort": played[1]["answer"]["effort"],
            "follows_preference": played[1]["answer"]["follows_preference"],
            "num_questions": 1,
            "effort": effort,
        },
        "num_policy_tokens": rng.randint(100, 4000),
        "timings": {"generate": 3.2, "tool": 0.4, "total": 3.7},
        "turns": played,
    }


def synthetic_report(num_sessions: int, turns: int, chars_per_turn: int) -> Report:
    words = Words(random.Random(0))
    runs = ("before", "after", "ablation/without_r_pers")
    records = (synthetic_record(number, words, turns, chars_per_turn) for number in range(num_sessions))
    sessions = [Session(runs[number % 3], record, {"productivity": 1.0}) for number, record in enumerate(records)]
    headlines = [Headline(name, 62.0, 58.0, 66.0, 40.0) for name in ("Productivity", "Proactivity", "Personalization")]
    return Report("Synthetic sessions", headlines, [], [], sessions, num_sessions)


def open_times(browser: Any, address: str, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds until the list can be used, and until the whole file is read."""
    usable, whole = [], []
    for _ in range(repeats):
        page = browser.new_page()
        page.goto(address, wait_until="load")
        page.wait_for_selector("html[data-ready]")
        marks = page.evaluate(MARKS)
        usable.append(marks[0] / 1000)
        whole.append(marks[1] / 1000)
        page.close()
    return usable, whole


def filter_times(page: Page, repeats: int) -> dict[str, list[float]]:
    """Milliseconds for each filter, switched on and off, and for searches; the first search decodes the file."""
    times: dict[str, list[float]] = {}
    times["search at once, nothing decoded"] = [page.evaluate(TIMED, ["search", "", "xylo"])]
    page.evaluate("location.hash = ''")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    page.focus("#query")
    page.wait_for_timeout(1000)
    times["search a second after the field was entered"] = [page.evaluate(TIMED, ["search", "", "xylo"])]
    selects = page.eval_on_selector_all(
        "#facets select", "all => all.map((s) => [s.id, [...s.options].map((o) => o.value)])"
    )
    for repeat in range(repeats):
        for word in (f"{'etaoinshr'[repeat % 9]}n", "the search for", f"task-{repeat}17"):
            times.setdefault("search, later", []).append(page.evaluate(TIMED, ["search", "", word]))
        page.evaluate(TIMED, ["search", "", ""])
        for name, values in selects:
            for value in (values[1 + repeat % (len(values) - 1)], ""):
                taken = page.evaluate(TIMED, ["filter", name, value])
                times.setdefault(name.replace("facet-", "filter "), []).append(taken)
        taken = page.evaluate(TIMED, ["filter", "order", "reward-down" if repeat % 2 == 0 else ""])
        times.setdefault("order", []).append(taken)
    return times


def session_times(page: Page, repeats: int) -> list[float]:
    """Milliseconds from a click to a conversation, each time in another block."""
    times = []
    for repeat in range(repeats):
        page.evaluate("(top) => { document.getElementById('list').scrollTop = top; }", repeat * 76 * 997)
        page.wait_for_timeout(100)
        times.append(page.evaluate(OPEN_SESSION, page.query_selector("#list .row:nth-child(8)")))
    return times


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--sessions", type=int, default=20_000)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--chars", type=int, default=340, help="characters per turn: 340 make 2 KB a session")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="write the page here and leave it")
    own = parser.parse_args(argv)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    report = synthetic_report(own.sessions, own.turns, own.chars)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        path = own.keep or Path(folder) / "page.html"
        started = time.perf_counter()
        write_page(report, path)
        print(f"{own.sessions} sessions, {own.turns} turns of {own.chars} characters; load {os.getloadavg()[0]:.1f}")
        print(f"written in {time.perf_counter() - started:.1f} s: {path.stat().st_size / 1e6:.1f} MB")
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        usable, whole = open_times(browser, path.resolve().as_uri(), own.repeats)
        print(f"list usable after {statistics.median(usable):.2f} s, file read after {statistics.median(whole):.2f} s")
        page = browser.new_page()
        page.goto(path.resolve().as_uri())
        page.wait_for_selector("html[data-ready]")
        for name, times in filter_times(page, own.repeats).items():
            print(f"{name}: median {statistics.median(times):.0f} ms, worst {max(times):.0f} ms of {len(times)}")
        times = session_times(page, own.repeats)
        print(f"session opened: median {statistics.median(times):.0f} ms, worst {max(times):.0f} ms")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
