"""What is promised about tables as files: what is in a cell stays text, in every format, and numbers stay numbers."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser

import pytest

from ppp.reporting.content import Table
from ppp.reporting.formats import FORMATS, Estimate, estimate, number, plain, to_csv, to_html, to_latex, to_markdown

HOSTILE = (
    "a & b",
    "50 % of $x^2$",
    "C:\\run_1#{x}~y",
    "[x] first in its row",
    "<script>alert(1)</script>",
    "a | b",
    "*bold* _under_ `code` [link](http://x)",
    "=1+cmd|' /C calc'!A0",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1+1",
    "two\nlines\rand \u2028more",
    "\u202egnihton\u202c\u200b",
    "\\input{/etc/passwd}",
    "$$",
    "",
)


def table_of(*labels: str) -> Table:
    rows = [[label, estimate(50.0, [40.0, 60.0]), number(-3.25)] for label in labels]
    return Table("name", "A title & more", ["run_1", "score", "change"], rows, note="100 % of them")


def latex_cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)&", line.removesuffix(r"\\"))


@pytest.mark.parametrize("label", HOSTILE)
def test_latex_has_balanced_braces_and_only_our_commands(label: str) -> None:
    text = to_latex(table_of("plain", label, "last"))
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    bare = re.sub(r"\\[{}]", "", body)
    assert bare.count("{") == bare.count("}")
    depth = 0
    for sign in bare:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    known = {"begin", "end", "toprule", "midrule", "bottomrule", "textbackslash", "textasciitilde", "ensuremath"}
    assert set(re.findall(r"(?<!\\)\\([a-zA-Z]+)", body.replace(r"\\", " "))) <= known
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4, "header and three rows"
    for line in rows:
        assert len(latex_cells(line)) == 3
        assert not line.lstrip().startswith("["), "an argument of the line break before it"
        assert not re.search(r"(?<!\\)[$#%_]", line), "neither a comment, nor mathematics, nor a subscript"


@pytest.mark.parametrize("label", HOSTILE)
def test_csv_reads_back_and_no_label_is_a_formula(label: str) -> None:
    header, *rows = csv.reader(io.StringIO(to_csv(table_of("plain", label, "last"))))
    assert header == ["run_1", "score", "score, low", "score, high", "change"]
    assert [row[0] for row in rows][::2] == ["plain", "last"]
    read = rows[1][0]
    assert read.removeprefix("'") == plain(label)
    assert not read.lstrip().startswith(("=", "+", "-", "@"))
    for row in rows:
        assert list(map(float, row[1:])) == [50.0, 40.0, 60.0, -3.2]


def test_csv_leaves_numbers_and_gaps_alone() -> None:
    rows = [["a", "-", "+2.5"], ["b", "-1.0", "-"]]
    assert list(csv.reader(io.StringIO(to_csv(Table("t", "t", ["run", "x", "y"], rows)))))[1:] == [
        ["a", "", "+2.5"],
        ["b", "-1.0", ""],
    ]


@pytest.mark.parametrize("label", HOSTILE)
def test_markdown_rows_stay_rows(label: str) -> None:
    lines = to_markdown(table_of("plain", label, "last")).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 5, "header, rule and three rows"
    assert len({len(line) for line in rows}) == 1, "aligned as plain text"
    for line in rows:
        assert len(re.findall(r"(?<!\\)\|", line)) == 4
    # What is left of markup is escaped.
    cell = re.split(r"(?<!\\)\|", rows[3])[1]
    assert not re.search(r"(?<!\\)[*`<>\[\]]", cell)


class Cells(HTMLParser):
    """The tags of a document and the text of its cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


@pytest.mark.parametrize("label", HOSTILE)
def test_html_shows_the_label_and_no_tag_of_it(label: str) -> None:
    found = Cells(to_html(table_of(label)))
    assert found.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    assert found.cells[0].strip() == plain(label).strip()


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_has_every_cell(form: str) -> None:
    text = FORMATS[form](table_of("alpha", "beta"))
    for part in ("alpha", "beta", "50.0", "40.0", "60.0", "-3.2"):
        assert part in text


def test_plain_text_hides_nothing() -> None:
    assert plain("a\u202eb\x00c\u200bd\ne") == "a\\u202eb\\u0000c\\u200bd\\u000ae"
    assert plain("Übung 東京 🙂") == "Übung 東京 🙂"


def test_numbers_as_cells() -> None:
    assert number(None) == "-"
    assert number(-0.04) == "0.0", "a rounded zero has no minus"
    assert number(2.0, sign=True) == "+2.0"
    assert estimate(None, [1, 2]) == "-"
    assert estimate(1.0, None) == "1.0"
    cell = estimate(0.5, [0.25, 0.75], 2, sign=True)
    assert isinstance(cell, Estimate)
    assert (cell, cell.value, cell.low, cell.high) == ("+0.50 (+0.25 to +0.75)", "+0.50", "+0.25", "+0.75")
