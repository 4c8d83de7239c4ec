from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from page_sessions import HOSTILE, failed, hostile, record, report, silent, tokens

from ppp.preferences import PREFERENCES
from ppp.reporting.blocks import BLOCK_CHARS, FACETS, SESSION_MARK, TEXT_MARK, blocks, build_index, visible
from ppp.reporting.content import Session
from ppp.reporting.page import ASSETS, SCRIPTS, page_script, write_page

DATA = re.compile(r'<script type="application/octet-stream" id="([^"]+)">([^<]*)</script>')


def unpacked(packed: str) -> str:
    return zlib.decompress(base64.b64decode(packed)).decode()


def read_back(structure: Any, texts: list[str]) -> Any:
    """What `assets/data.js` does: labels lose their "=", numbers in quotes become texts."""
    if isinstance(structure, str):
        return structure[1:] if structure.startswith("=") else texts[int(structure)]
    if isinstance(structure, dict):
        return {name: read_back(part, texts) for name, part in structure.items()}
    return [read_back(part, texts) for part in structure] if isinstance(structure, list) else structure


def sessions_of(page: str) -> list[Any]:
    found = dict(DATA.findall(page))
    counts = json.loads(unpacked(found["blocks"]))["counts"]
    sessions = []
    for number, count in enumerate(counts):
        texts = unpacked(found[f"block-{number}"]).split(SESSION_MARK)
        assert len(texts) == count
        for text in texts:
            structure, *parts = text.split(TEXT_MARK)
            sessions.append(read_back(json.loads(structure), parts))
    return sessions


def page_of(tmp_path: Path, sessions: list[Session], **changes: Any) -> str:
    path = tmp_path / "page.html"
    write_page(report(sessions, **changes), path)
    return path.read_text(encoding="utf-8")


def test_page_holds_every_session_as_it_was_recorded(tmp_path: Path) -> None:
    records = [record(0), silent(1), failed(2), record(3, prompt="naïve 日本語 🙂 \\ \"'")]
    assert sessions_of(page_of(tmp_path, [Session("run", one) for one in records])) == records


def test_blocks_split_between_sessions_and_lose_none() -> None:
    big = "x" * (BLOCK_CHARS // 2)
    sessions = [Session("run", record(number, prompt=f"{number}{big}")) for number in range(5)]
    sessions.insert(2, Session("run", record(9, prompt=big * 3)))
    counts = [count for count, _, _ in blocks(sessions)]
    assert sum(counts) == 6 and max(counts) == 1


def test_separators_and_half_surrogates_in_a_text_do_not_shift_the_others(tmp_path: Path) -> None:
    (read,) = sessions_of(page_of(tmp_path, [Session("run", record(0, prompt=f"a{SESSION_MARK}b{TEXT_MARK}c\ud800d"))]))
    assert read["prompt"] == "a\u241eb\u241fc\\ud800d"
    assert read["precise_prompt"] == record(0)["precise_prompt"]


def test_numbers_that_json_cannot_hold_become_null(tmp_path: Path) -> None:
    score = {"productivity": float("nan"), "reward": float("inf")}
    page = page_of(tmp_path, [Session("run", record(0, score=score))])
    assert sessions_of(page)[0]["score"] == {"productivity": None, "reward": None}
    assert json.loads(unpacked(dict(DATA.findall(page))["index"]))["reward"] == [None]


@pytest.mark.parametrize(
    ("facet", "expected"),
    [
        ("environment", ["town", "town", "town"]),
        ("preference", ["concise_question", "concise_question", "concise_question"]),
        ("prompt", ["vague", "vague", "precise"]),
        ("outcome", ["solved", "wrong", "failed"]),
        ("asking", ["asked", "silent", "unknown"]),
        ("effort", ["low", "high", "unknown"]),
        ("following", ["followed", "followed", "unknown"]),
        ("mode", ["eval", "train", "eval"]),
    ],
)
def test_index_sorts_sessions_by(facet: str, expected: list[str]) -> None:
    records = [record(0), silent(1, mode="train"), failed(2, is_precise=True)]
    index = build_index([Session("run", one) for one in records])
    (column,) = [column for column in index["facets"] if column["key"] == facet]
    assert [column["values"][code] for code in column["codes"]] == expected


def test_every_facet_is_in_the_index_and_preferences_stand_in_the_order_of_their_table() -> None:
    names = list(reversed(PREFERENCES))
    index = build_index([Session("run", record(n, preference=name)) for n, name in enumerate(names)])
    assert [column["key"] for column in index["facets"]] == ["run", *FACETS]
    assert index["facets"][2]["values"] == list(PREFERENCES)


def test_a_session_keeps_its_key_in_another_report_and_twins_have_two() -> None:
    alone = build_index([Session("after", record(7))])["key"]
    among = build_index([Session("after", record(3)), Session("after", record(7)), Session("after", record(7))])["key"]
    assert among[1] == alone[0] and len(set(among)) == 3
    assert build_index([Session("before", record(7))])["key"] != alone


def test_text_of_models_appears_nowhere_but_in_packed_data(tmp_path: Path) -> None:
    """Also the labels that people and runs give; what Python writes into the page itself is escaped."""
    page = page_of(tmp_path, [Session(HOSTILE, hostile(0), {}, tokens())], title=HOSTILE, label=HOSTILE)
    outside = DATA.sub("", page)
    assert "alert(1)</script>" not in outside and "<img" not in outside and "<iframe" not in outside
    assert "\u202e" not in outside and "\u200b" not in outside and "\x00" not in outside
    assert "⟨U+202E⟩gnp.exe" in outside
    assert len(re.findall(r"<script", outside)) == 2


def test_policy_allows_exactly_the_scripts_of_the_page_and_no_connection(tmp_path: Path) -> None:
    page = page_of(tmp_path, [Session("run", record(0))])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy[1].replace("&#39;", "'").split("; "))
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts]
    assert rules["script-src"].split() == hashes and len(hashes) == 2
    assert rules["default-src"] == "'none'" and "connect-src" not in rules


def test_only_a_watched_page_may_ask_its_server(tmp_path: Path) -> None:
    versions = [write_page(report([]), tmp_path / "page.html", watch=True) for _ in range(2)]
    page = (tmp_path / "page.html").read_text()
    assert "connect-src &#39;self&#39;" in page and f'data-version="{versions[1]}"' in page
    assert versions[0] != versions[1]
    assert write_page(report([]), tmp_path / "page.html") == ""


def test_the_same_report_gives_the_same_file(tmp_path: Path) -> None:
    assert page_of(tmp_path, [Session("run", record(0))]) == page_of(tmp_path, [Session("run", record(0))])


def test_ids_of_two_figures_stay_apart(tmp_path: Path) -> None:
    page = page_of(tmp_path, [])
    assert page.count('id="one-p"') == page.count('href="#one-p"') == page.count('href="#two-p"') == 1
    assert "<?xml" not in page


def test_page_of_no_sessions_says_so(tmp_path: Path) -> None:
    assert "There are no sessions in this report." in page_of(tmp_path, [])


def test_page_that_holds_a_sample_says_of_how_many(tmp_path: Path) -> None:
    whole = report([Session("run", record(0))])
    write_page(whole, tmp_path / "whole.html")
    write_page(replace(whole, num_sessions=25_600), tmp_path / "sample.html")
    assert "A sample:" not in (tmp_path / "whole.html").read_text()
    assert "this file holds 1 of 25,600 sessions" in (tmp_path / "sample.html").read_text()


def test_a_page_that_cannot_be_made_leaves_the_old_one_and_no_other_file(tmp_path: Path) -> None:
    before = page_of(tmp_path, [Session("run", record(0))])
    broken = record(1)
    del broken["turns"]
    with pytest.raises(KeyError):
        write_page(report([Session("run", broken)]), tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    "character",
    ["\u202e", "\u200b", "\u200f", "\u2066", "\ufeff", "\x00", "\x1b", "\x7f", "\x9b", "\xad", "\U000e0041"],
)
def test_a_character_that_shows_nothing_is_written_out(character: str) -> None:
    assert visible(f"a{character}b") == f"a⟨U+{ord(character):04X}⟩b"


def test_ordinary_text_of_any_language_is_left_alone() -> None:
    text = "naïve\n\tعربي עברית हिन्दी 日本語 🙂"
    assert visible(text) == text


def test_the_script_cannot_end_its_element_and_every_file_of_it_is_in_use() -> None:
    assert "</script" not in page_script().lower() and "<!--" not in page_script()
    files = {path.name for path in ASSETS.iterdir()}
    assert files == {*SCRIPTS, "theme.js", "page.css", "session.css", "page.html.jinja"}


def test_the_script_never_reads_text_as_markup() -> None:
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage"):
        assert word not in page_script(), word
