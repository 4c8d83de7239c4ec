"""How figures look: one style, colours for light and dark pages, and drawings as SVG or as pictures.

Draws lines, bars and stacks into axes; which numbers they show is `figures.py`'s.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

# Stands for the colour of text: nearly black in a picture, `currentColor` in an SVG.
INK = "#010203"
# Each has a contrast of 3 or more on white and on black, and none has to be told from another by red and green alone.
COLOURS = ("#3987d8", "#d9780b", "#a468d5", "#0c958c", "#a8860a", "#d6569c", "#858585")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)), (0, (2, 2)))
EFFORT_COLOURS = {"low": "#3987d8", "medium": "#a8860a", "high": "#a468d5"}
STYLE: dict[str, Any] = {
    "text.parse_math": False,  # names of runs are text, whatever dollars they have
    "svg.fonttype": "none",
    "svg.hashsalt": "ppp",  # the same figure gives the same file
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color", "xtick.color"), INK),
    **dict.fromkeys(("ytick.color", "hatch.color", "patch.edgecolor"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
}
MAX_LABEL = 40
LEGEND_CHARS = 100  # that stand in a row of a legend, its lines counted as eight

WIDTH = 6.8  # inches, of every figure: text is still read where a page shows it at half its width

Curve = tuple[Sequence[float], Sequence[float]]  # x and y


@dataclass(frozen=True)
class Sketch:
    """A figure that can be drawn: `paint` fills rows x columns of axes; height is in inches."""

    title: str
    caption: str
    rows: int
    columns: int
    height: float
    paint: Callable[[Sequence[Axes]], None]
    width: float = WIDTH


@contextmanager
def drawing(sketch: Sketch) -> Iterator[tuple[Drawing, list[Axes]]]:
    """The empty axes of a figure, in the style of all figures for as long as it is drawn and written."""
    with matplotlib.rc_context(STYLE):
        picture = Drawing(figsize=(sketch.width, sketch.height))
        grid = picture.subplots(sketch.rows, sketch.columns, squeeze=False)
        yield picture, [axes for row in grid for axes in row]


def to_svg(picture: Drawing) -> str:
    """The drawing as an SVG element that takes its ink from the page and has no background."""
    file = io.StringIO()
    picture.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return svg.replace(INK, "currentColor")


def to_picture(picture: Drawing, form: str) -> bytes:
    """The drawing as a file for white paper: png or pdf."""
    file = io.BytesIO()
    options: dict[str, Any] = {"metadata": {"CreationDate": None}} if form == "pdf" else {}
    picture.savefig(file, format=form, facecolor="white", dpi=160, **options)
    return file.getvalue()


def shown(label: str, most: int = MAX_LABEL) -> str:
    """A name as a label: cut in its middle, and not hidden by matplotlib, where a leading underscore is a request."""
    label = label if len(label) <= most else f"{label[: most // 2 - 1]}…{label[-(most // 2) :]}"
    return f" {label}" if label.startswith("_") else label


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred moving mean of `window` values, narrower at both ends; same length."""
    half = window // 2
    spans = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(span) / len(span) for span in spans]


def window_of(values: Sequence[float]) -> int:
    """Over how many values a curve is smoothed: a fifteenth of all."""
    return max(1, len(values) // 15)


def draw_lines(
    axes: Axes,
    curves: Mapping[str, Curve],
    looks: Mapping[str, int],
    *,
    smoothed: bool = False,
    marker: str | None = None,
) -> None:
    """One line per name; smoothed it is a moving mean, over the values in pale.

    Args:
        looks: name -> number of its colour and dashes, the same in all figures.
    """
    for label, (steps, values) in curves.items():
        if not values:
            continue
        colour, dash = look(looks[label])
        if smoothed:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
        line = smooth(values, window_of(values)) if smoothed else values
        axes.plot(steps, line, color=colour, linestyle=dash, marker=marker, markersize=4, label=shown(label))


def draw_histogram(axes: Axes, shares: Mapping[str, Sequence[float]], looks: Mapping[str, int]) -> None:
    """Outlines over 0 to 1, cut into as many parts as there are values."""
    for label, values in shares.items():
        colour, dash = look(looks[label])
        edges = [place / len(values) for place in range(len(values) + 1)]
        axes.stairs(values, edges, color=colour, linestyle=dash, linewidth=1.8, label=shown(label))


def look(number: int) -> tuple[str, Any]:
    """Colour and dashes; after a round of colours the dashes differ."""
    return COLOURS[number % len(COLOURS)], DASHES[(number + number // len(COLOURS)) % len(DASHES)]


def draw_bars(
    axes: Axes,
    names: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    bounds: Mapping[str, Sequence[Any]],
    looks: Mapping[str, int],
) -> None:
    """Horizontal bars, a group per name and a bar per series, with intervals [low, high] where there are some.

    Args:
        looks: series -> number of its colour; those that are not named have that of their place.
    """
    height = 0.8 / len(series)
    for index, (label, values) in enumerate(series.items()):
        places = [row + (index - (len(series) - 1) / 2) * height for row in range(len(names))]
        widths = [0.0 if value is None else value for value in values]
        colour, hatch = look(looks.get(label, index))[0], ("", "///", "...", "xxx")[index % 4]
        axes.barh(
            places, widths, height * 0.9, color=colour, label=shown(label), hatch=hatch, edgecolor=INK, linewidth=0.4
        )
        for place, value, interval in zip(places, values, bounds[label], strict=True):
            if value is None:
                axes.text(1, place, "not measured", va="center", fontsize=8)
            elif interval is not None:
                axes.plot(interval, [place, place], color=INK, linewidth=1.2, solid_capstyle="butt")
    axes.set_yticks(range(len(names)), [shown(name) for name in names])
    axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, 100), xlabel="percent")
    axes.grid(visible=False, axis="y")


def draw_stack(axes: Axes, steps: Sequence[float], layers: Mapping[str, Sequence[float]]) -> None:
    """Layers on one another, each by its moving mean, and the sum of the values as a pale line."""
    colours = [EFFORT_COLOURS[name] for name in layers]
    smoothed = [smooth(values, window_of(values)) for values in layers.values()]
    axes.stackplot(steps, smoothed, labels=list(layers), colors=colours, alpha=0.85)
    sums = [sum(column) for column in zip(*layers.values(), strict=True)]
    axes.plot(steps, sums, color=INK, alpha=0.3, linewidth=0.7)
    axes.set_ylim(bottom=0)


def draw(sketch: Sketch, forms: Sequence[str]) -> dict[str, bytes]:
    """Draw a figure once and give it in each form: svg, png, pdf."""
    with drawing(sketch) as (picture, axes):
        sketch.paint(axes)
        if all(part.get_legend() is None for part in axes):  # panels of different kinds have their own
            add_legend(picture, axes)
        return {form: to_svg(picture).encode() if form == "svg" else to_picture(picture, form) for form in forms}


def share_scale(panels: Sequence[Axes], columns: int) -> None:
    """Panels with the same scale: its numbers stand at the left of each row only."""
    for place, axes in enumerate(panels):
        axes.tick_params(axis="y", labelleft=place % columns == 0)


def add_legend(picture: Drawing, axes: Sequence[Axes]) -> None:
    """One legend above all axes, with every label once."""
    entries: dict[str, Any] = {}
    for part in axes:
        handles, labels = part.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if entries:
        columns = max(1, min(len(entries), LEGEND_CHARS // (8 + max(map(len, entries)))))
        picture.legend(list(entries.values()), list(entries), loc="outside upper left", ncols=columns, fontsize=9)
