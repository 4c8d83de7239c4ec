"""Which figures a report has, and their files. Source: PPP section 5, figures 4 to 8.

What they show is in `figures_training.py` and `figures_sessions.py`, how they look in `plots.py`. A figure without data
is left out, with a sentence why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ppp.reporting.content import Figure
from ppp.reporting.figures_sessions import precise_and_vague, question_positions, score_by_turns, three_settings
from ppp.reporting.figures_training import ask_ratios, efforts, learning_curves, overview, unseen_preferences
from ppp.reporting.plots import Sketch, draw
from ppp.reporting.run_types import Runs, Training

PICTURES = ("svg", "png", "pdf")

# name of the figure and of its file -> what draws it; in the order of a report, where two of about the
# same height stand side by side.
FIGURES: dict[str, Callable[[Runs], Sketch | str]] = {
    "learning_curves": learning_curves,
    "ask_ratios": ask_ratios,
    "precise_and_vague": precise_and_vague,
    "unseen_preferences": unseen_preferences,
    "efforts": efforts,
    "three_settings": three_settings,
    "question_positions": question_positions,
    "score_by_turns": score_by_turns,
}


@dataclass(frozen=True)
class Drawn:
    """A figure for the page, and its files by their ending."""

    figure: Figure
    files: dict[str, bytes]


def make_figures(runs: Runs, forms: Sequence[str] = ()) -> tuple[list[Drawn], dict[str, str]]:
    """All figures that the runs have data for, and of each of the others what it lacks.

    Args:
        forms: of `PICTURES`, those to have as files.
    """
    drawn: list[Drawn] = []
    left_out: dict[str, str] = {}
    for name, sketch_of in FIGURES.items():
        sketch = sketch_of(runs)
        if isinstance(sketch, str):
            left_out[name] = sketch
            continue
        files = draw(sketch, ["svg", *(form for form in forms if form != "svg")])
        figure = Figure(name, sketch.title, files["svg"].decode(), sketch.caption)
        drawn.append(Drawn(figure, {form: files[form] for form in forms}))
    return drawn, left_out


def write_overview(run: Training, path: Path) -> None:
    """One training as a picture of three panels, for a README."""
    path.write_bytes(draw(overview(run), ["png"])["png"])
