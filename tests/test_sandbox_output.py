"""How output is made fit to be shown."""

from __future__ import annotations

import pytest

from ppp.environments.sandbox_output import Captured, clean, shorten, show

CLEANED = {  # bytes -> text
    b"plain\n\ttext": "plain\n\ttext",
    b"a\r\nb\rc": "a\nb\nc",
    b"\x1b[31mred\x07\x00": "\\x1b[31mred\\x07\\x00",
    b"\xff\xfe": "��",
    "ä€😀".encode(): "ä€😀",
    "a\u202eb\u2028c\x9b\ufeff".encode(): "a\\u202eb\\u2028c\\x9b\\ufeff",
}


@pytest.mark.parametrize("data", CLEANED)
def test_bytes_become_harmless_text(data: bytes) -> None:
    assert clean(data) == CLEANED[data]


def test_text_that_fits_stays_as_it_is() -> None:
    text = "a\n\nb\nb\nb\n\n\n\n\nc"
    assert shorten(text, 100, 50).text == text
    assert shorten("", 100, 50).text == ""
    assert shorten("x" * 100, 100, 100).num_cut_chars == 51  # one line leaves room for another from the other end


def test_repeated_lines_are_folded_and_counted() -> None:
    shown = shorten("a\n" + "same\n" * 100 + "b", 1000, 100)
    assert shown.text == "a\nsame\n[the line above comes 99 more times]\nb"
    assert shown.num_cut_chars == 99 * len("same")


def test_long_line_is_cut_with_its_size() -> None:
    shown = shorten("short\n" + "x" * 1_500, 1000, 100)
    assert shown.text == "short\n" + "x" * 100 + " [1,400 more characters in this line]"
    assert shown.num_cut_chars == 1_400


def test_head_and_tail_are_kept_with_a_note_of_what_is_not() -> None:
    text = "\n".join(f"line {number:04d}" for number in range(1000))
    shown = shorten(text, 200, 100)
    lines = shown.text.split("\n")
    assert lines[:2] == ["line 0000", "line 0001"] and lines[-1] == "line 0999"
    assert lines[10] == "[980 lines with 9,800 characters are left out here]"
    assert len([line for line in lines if line.startswith("line")]) == 20
    assert shown.num_cut_chars == 9_800


def test_gap_of_bytes_is_part_of_the_note() -> None:
    head, tail = b"first\n" * 2 + b"second\n", b"last but one\nlast\n"
    shown = show(Captured(head, tail, 10_000, 500), 1000, 100)
    assert shown.text == (
        "first\nfirst\nsecond\n\n[500 lines with 10,000 characters are left out here]\nlast but one\nlast"
    )
    assert shown.num_cut_chars == 10_000


@pytest.mark.parametrize("max_chars", [1, 2, 10, 333])
@pytest.mark.parametrize("text", ["x" * 5_000, "ab\n" * 2_000, "\n" * 5_000, "\n".join(map(str, range(2_000)))])
def test_any_text_stays_within_its_limit_but_for_the_notes(text: str, max_chars: int) -> None:
    shown = shorten(text, max_chars, 100)
    own = [line for line in shown.text.split("\n") if not line.startswith("[")]
    assert sum(len(line.partition(" [")[0]) for line in own) <= max_chars
    assert shown.num_cut_chars >= len(text) - max_chars - text.count("\n")
