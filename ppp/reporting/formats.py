"""A table as text: Markdown, LaTeX (booktabs), CSV and HTML.

The layout is tabulate's and csv's; here is what keeps a cell from being more than text: names of runs, agents and
users come from files and command lines. What stands in the tables is `tables.py`.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Sequence

from tabulate import tabulate

from ppp.reporting.content import Table

MISSING = "-"
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_MARKDOWN = re.compile(r"([\\`*\[\]|~]|(?<!\w)[_#]|_(?!\w))")
_FORMULA = ("=", "+", "-", "@")


class Estimate(str):
    """A cell with an interval: text like "56.3 (51.2 to 61.0)", and the three numbers for those who compute on."""

    __slots__ = ("high", "low", "value")

    value: str
    low: str
    high: str

    def __new__(cls, value: str, low: str, high: str) -> Estimate:
        cell = super().__new__(cls, f"{value} ({low} to {high})")
        cell.value, cell.low, cell.high = value, low, high
        return cell


def number(value: float | None, digits: int = 1, *, sign: bool = False) -> str:
    """A number as a cell; `MISSING` for None. A rounded zero has no minus."""
    if value is None:
        return MISSING
    return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"


def estimate(
    value: float | None, interval: Sequence[float] | None, digits: int = 1, *, sign: bool = False, scale: float = 1.0
) -> str:
    """A number with its interval, where there is one."""
    cell = number(None if value is None else value * scale, digits, sign=sign)
    if value is None or interval is None:
        return cell
    low, high = (number(bound * scale, digits, sign=sign) for bound in interval)
    return Estimate(cell, low, high)


def plain(text: str) -> str:
    """Text on one line in which nothing is invisible: controls and characters that steer the layout are spelt out."""
    shown = (
        f"\\u{ord(sign):04x}" if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else sign
        for sign in text
    )
    return "".join(shown)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Markdown that reads well as plain text too: padded columns, the first `left` of them aligned to the left."""
    return _tabulate(header, rows, left, "pipe", _markdown_cell)


def _tabulate(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: int, form: str, write: Callable[[str], str]
) -> str:
    sides = ["left" if column < left else "right" for column in range(len(header))]
    cells = [[write(cell) for cell in row] for row in rows]
    titles = [write(cell) for cell in header]
    # Without rows tabulate asks for as many sides as there are columns in none.
    return tabulate(cells, titles, tablefmt=form, colalign=sides if rows else None, disable_numparse=True)


def _markdown_cell(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def to_markdown(table: Table) -> str:
    parts = [f"**{_markdown_cell(table.title)}**", markdown_table(table.header, table.rows, table.num_left)]
    return "\n\n".join([*parts, _markdown_cell(table.note)] if table.note else parts) + "\n"


def to_latex(table: Table) -> str:
    """A tabular for the package booktabs, with its title as a comment: captions and floats are the document's."""
    body = _tabulate(table.header, table.rows, table.num_left, "latex_booktabs", plain)
    # A row that begins with a bracket would be an argument of the line break before it.
    body = re.sub(r"(?m)^(\s*)\[", r"\1{}[", body)
    return "\n".join([*(f"% {plain(text)}" for text in (table.title, table.note) if text), body]) + "\n"


def to_html(table: Table) -> str:
    return _tabulate(table.header, table.rows, table.num_left, "html", plain) + "\n"


def to_csv(table: Table) -> str:
    """Numbers as numbers, nothing where there is none; a column of intervals becomes three columns."""
    spread = [any(isinstance(row[column], Estimate) for row in table.rows) for column in range(len(table.header))]
    header: list[str] = []
    for title, with_interval in zip(table.header, spread, strict=True):
        header += [title, f"{title}, low", f"{title}, high"] if with_interval else [title]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_csv_cell(cell) for cell in header])
    for row in table.rows:
        cells: list[str] = []
        for cell, with_interval in zip(row, spread, strict=True):
            if isinstance(cell, Estimate):
                cells += [cell.value, cell.low, cell.high]
            else:
                cells += [cell, "", ""] if with_interval else [cell]
        writer.writerow([_csv_cell(cell) for cell in cells])
    return file.getvalue()


def _csv_cell(text: str) -> str:
    """Text that a spreadsheet takes for text: what would begin a formula gets an apostrophe before it."""
    text = "" if text == MISSING else plain(text)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


# name, which is also the ending of files -> how a table is written
FORMATS: dict[str, Callable[[Table], str]] = {"md": to_markdown, "tex": to_latex, "csv": to_csv}
