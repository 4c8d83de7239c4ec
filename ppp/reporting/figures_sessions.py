"""Figures of evaluations: precise against vague prompts, with and without interaction, when questions come.

Each function gives a sketch, or says what is missing. Numbers with intervals are those of the tables
(`tables_scores.py`); lines and bars are in `plots.py`. Source: PPP section 5, figures 4 and 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ppp.evaluation.records import failed
from ppp.reporting.plots import COLOURS, Curve, Sketch, draw_bars, draw_histogram, draw_lines, share_scale
from ppp.reporting.run_types import SETTING_PREFERENCE, Evaluation, Runs
from ppp.reporting.tables_scores import SETTINGS, by_setting

MAX_BARS = 12  # runs in a figure of bars
MAX_CURVES = len(COLOURS)
MAX_TURNS = 12  # sessions that are longer stand together
MIN_SESSIONS = 5  # behind a point of a curve

Scores = Mapping[str, Any]


def bars_of(found: Mapping[str, Scores | None], metric: str) -> tuple[list[float | None], list[Any]]:
    """Values and intervals of a metric, one per run."""
    values = [None if scores is None else scores[metric] for scores in found.values()]
    intervals = [None if scores is None else scores["intervals"].get(metric) for scores in found.values()]
    return values, intervals


def paint_bars(
    axes: Axes, groups: Mapping[str, Mapping[str, Scores | None]], metric: str, looks: Mapping[str, int]
) -> None:
    """Bars of a metric: series -> name -> scores."""
    pairs = {label: bars_of(found, metric) for label, found in groups.items()}
    names = list(next(iter(groups.values())))
    values = {label: pair[0] for label, pair in pairs.items()}
    draw_bars(axes, names, values, {label: pair[1] for label, pair in pairs.items()}, looks)


def precise_and_vague(runs: Runs) -> Sketch | str:
    """Productivity and ask ratio on precise and on vague prompts, for each run. Source: PPP section 5, figure 6."""
    both = [run for run in runs.compared if {"vague", "precise"} <= run.groups.keys()][-MAX_BARS:]
    if not both:
        return "no evaluation with both precise and vague prompts"
    groups = {
        "precise prompts": {run.name: run.groups["precise"] for run in both},
        "vague prompts": {run.name: run.groups["vague"] for run in both},
    }

    def paint(panels: Sequence[Axes]) -> None:
        for axes, metric in zip(panels, ("productivity", "ask_ratio"), strict=True):
            paint_bars(axes, groups, metric, {})
            axes.set_title(metric.replace("_", " "))
        share_scale(panels, 2)

    text = "Thin lines: 95 % intervals."
    return Sketch("Precise and vague prompts", text, 1, 2, 1.3 + 0.5 * len(both), paint)


def three_settings(runs: Runs) -> Sketch | str:
    """Productivity with and without interaction. Source: PPP section 5, figure 4."""
    found = by_setting(runs)
    if not found:
        return "no evaluation without interaction (interaction: false)"
    agents = list(found)[:MAX_CURVES]
    groups = {agent: {name: found[agent].get(name) for name in SETTINGS} for agent in agents}

    def paint(panels: Sequence[Axes]) -> None:
        paint_bars(panels[0], groups, "productivity", runs.looks)
        panels[0].set_title("productivity")

    text = f"Preference fixed to {SETTING_PREFERENCE}. Thin lines: 95 % intervals."
    return Sketch("With and without interaction", text, 1, 1, 1.3 + 0.35 * 3 * len(agents), paint)


def question_positions(runs: Runs) -> Sketch | str:
    """In which tenth of a session questions come: one learned early is worth more than one learned late."""
    asking = {
        run.name: run.groups["vague"]["question_tenths"]
        for run in runs.compared
        if sum(run.groups.get("vague", {}).get("question_tenths", ())) > 0
    }
    if not asking:
        return "no evaluation in which a question was asked"
    shares = {
        name: [100 * count / sum(tenths) for count in tenths] for name, tenths in list(asking.items())[-MAX_CURVES:]
    }

    def paint(panels: Sequence[Axes]) -> None:
        draw_histogram(panels[0], shares, runs.looks)
        panels[0].set(xlim=(0, 1), ylim=(0, 102), ylabel="percent of questions", xlabel="position in the session")

    text = "Vague prompts, by tenths of a session. 0 is the first turn, 1 the end of the session."
    return Sketch("When questions are asked", text, 1, 1, 3.2, paint)


def score_by_turns(runs: Runs) -> Sketch | str:
    """Productivity of sessions by how many turns they took."""
    curves = {run.name: turn_curve(run) for run in runs.compared}
    curves = dict(list({name: curve for name, curve in curves.items() if len(curve[0]) > 1}.items())[-MAX_CURVES:])
    if not curves:
        return f"no evaluation with {MIN_SESSIONS} sessions each of different lengths"

    def paint(panels: Sequence[Axes]) -> None:
        draw_lines(panels[0], curves, runs.looks, marker="o")
        panels[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set(ylim=(-2, 102), ylabel="productivity, percent", xlabel="turns of the session")

    text = f"Vague prompts; points of at least {MIN_SESSIONS} sessions. {MAX_TURNS} stands for {MAX_TURNS} or more."
    return Sketch("Productivity by the length of a session", text, 1, 1, 3.2, paint)


def turn_curve(run: Evaluation) -> Curve:
    """Number of turns -> mean productivity of the vague sessions that took as many."""
    by_turns: dict[int, list[float]] = {}
    for record in run.records:
        if not failed(record) and not record["is_precise"]:
            by_turns.setdefault(min(len(record["turns"]), MAX_TURNS), []).append(record["session"]["productivity"])
    enough = {turns: values for turns, values in sorted(by_turns.items()) if len(values) >= MIN_SESSIONS}
    return list(enough), [100 * sum(values) / len(values) for values in enough.values()]
