"""Every kind of detail is recognised, counted once, and not found in plain prose."""

from __future__ import annotations

import pytest

from ppp.vaguenizer.specifics import KINDS, count_specifics, distinct_specifics, find_specifics

TRACEBACK = """It stops:

Traceback (most recent call last):
  File "/srv/app/main.py", line 12, in run
    parse_all(3, 4)
ValueError: bad value 17

and that is all."""

# text, kind -> the details of that kind
EXAMPLES = {
    "fence": ("Look:\n```python\nx = f(1)\n```\nIt fails.", {"code": ["```python\nx = f(1)\n```"]}),
    "fence_left_open": ("Look:\n```\nx = f(1)\ny = 2", {"code": ["```\nx = f(1)\ny = 2"]}),
    "indented": ("Like this:\n\n    x = f(1)\n    y = g(2)\n\nand so on", {"code": ["x = f(1)\n    y = g(2)"]}),
    "shell": ("I typed\n$ pip install foo==1.2\nand it hung", {"code": ["$ pip install foo==1.2"]}),
    "inline_code": ("Run `pytest -x tests` twice", {"code": ["pytest -x tests"]}),
    "url": ("See https://a.org/b/c.html#L3, please.", {"url": ["https://a.org/b/c.html#L3"]}),
    "message": ('It says "cannot open the file" now', {"message": ["cannot open the file"]}),
    "message_of_an_error": ("OSError: disk is full\nthen nothing", {"message": ["OSError: disk is full"]}),
    "message_curly": ("It says “no such table” now", {"message": ["no such table"]}),
    "path": ("in src/pkg/io.py and /etc/hosts/x and ~/notes", {"path": ["src/pkg/io.py", "/etc/hosts/x", "~/notes"]}),
    "path_of_a_test": ("fails in tests/test_a.py::test_b only", {"path": ["tests/test_a.py::test_b"]}),
    "path_quoted": ('The file "conf.py" is read', {"path": ["conf.py"]}),
    "option": ("with --dry-run or -v it works", {"option": ["--dry-run", "-v"]}),
    "version": ("On Python 3.11 with 2.0.1rc1 and v5", {"version": ["3.11", "2.0.1rc1", "v5"]}),
    "no_version": ("It takes 2.5 seconds", {"number": ["2.5"]}),
    "reference": ("like #123 since 28e8c85", {"reference": ["#123", "28e8c85"]}),
    "snake": ("The get_value helper", {"identifier": ["get_value"]}),
    "camel": ("Both HttpServer and parseLine", {"identifier": ["HttpServer", "parseLine"]}),
    "dotted": ("from os.path it comes", {"identifier": ["os.path"]}),
    "call": ("then run(x, 1) and stop()", {"identifier": ["run(x, 1)", "stop()"]}),
    "dunder": ("its __repr__ is odd", {"identifier": ["__repr__"]}),
    "backticked_word": ("the `clear` button", {"identifier": ["clear"]}),
    "exception": ("a ValueError is raised", {"identifier": ["ValueError"]}),
    "number": ("after 17 of 2,000 rows (85%)", {"number": ["17", "2,000", "85%"]}),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_details_are_found_by_kind_and_nothing_else_is(name: str) -> None:
    text, expected = EXAMPLES[name]
    found = {kind: list(details.values()) for kind, details in distinct_specifics(text).items()}
    assert found == expected


def test_every_kind_has_an_example() -> None:
    assert {kind for _, expected in EXAMPLES.values() for kind in expected} == set(KINDS)


def test_what_a_traceback_holds_is_not_counted_again() -> None:
    assert count_specifics(TRACEBACK) == {"code": 1}


@pytest.mark.parametrize(
    "prose",
    [
        "When a column is taken away, the error that comes up is confusing and/or wrong.",
        "The user's list doesn't show what it's meant to, e.g. after a restart. Is it the cache?",
        "GitHub and macOS are products - nothing else.",
        "Quand je clique, rien ne se passe; c'est étrange.",
    ],
)
def test_prose_has_no_details(prose: str) -> None:
    assert find_specifics(prose) == []


def test_a_detail_that_comes_again_is_counted_once() -> None:
    assert count_specifics("get_value and `get_value()` and GET_VALUE in 3.0.1 and 3.0.1") == {
        "identifier": 1,
        "version": 1,
    }


def test_names_are_details_of_questions_only() -> None:
    question = "Who wrote the Journal of Odd Things after Anna K. Berg moved to Oslo in 1901?"
    assert count_specifics(question) == {"number": 1}
    names = distinct_specifics(question, names=True)["name"]
    assert list(names.values()) == ["Journal of Odd Things", "Anna K. Berg", "Oslo"]


def test_a_capital_at_the_start_of_a_sentence_is_no_name() -> None:
    assert "name" not in count_specifics("Bridges are long. Which one is longest?", names=True)


def test_positions_are_those_of_the_text() -> None:
    text = "In src/a.py the get_value of 3.1.4 fails"
    assert all(text[found.start :].startswith(found.text) for found in find_specifics(text))


HOSTILE = (
    "`",
    "(",
    "a.",
    "    x\n",
    "/a",
    "'",
    "1.",
    "a_",
    '"',
    "A",
    "-",
    "a",
    "a b",
    "Aa ",
    "https://",
    "\n\n",
    "#1",
    "$ a\n",
    "``",
)


@pytest.mark.parametrize("sign", HOSTILE)
def test_a_text_made_to_take_long_does_not(sign: str) -> None:
    """A regular expression that backtracks does not come back from these."""
    assert len(find_specifics(sign * 20_000, names=True)) <= 20_000
