"""Figures of trainings, from their `metrics.jsonl`: scores, questions, unseen preferences. Source: PPP section 5.

Each function gives a sketch, or says what is missing. Lines and colours are in `plots.py`, figures of evaluations in
`figures_sessions.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from matplotlib.axes import Axes

from ppp.preferences import UNSEEN
from ppp.reporting.plots import Curve, Sketch, draw_lines, draw_stack, look, share_scale, shown
from ppp.reporting.run_types import SCORES, Runs, Training, series
from ppp.types import Effort

MAX_CURVES = 7  # that can be told apart in one panel
MAX_PANELS = 4
TITLE_CHARS = 76  # that stand beside each other over the panels
EVALUATED = "eval_"  # prefix of what a training measured on its held-out sessions

# Sessions of the diamonds among the curves: those that are like the sessions of training, if there are some.
EVALUATED_GROUPS = {
    "vague_seen": "held-out tasks, preferences as in training",
    "vague_unseen": "held-out tasks, held-out preferences",
}

EFFORT_KEYS = {effort.label: f"effort/{effort.label}" for effort in Effort}
ASK_KEYS = {"vague prompts": "ask_ratio/vague", "precise prompts": "ask_ratio/precise"}
ASK_LOOKS = {"vague prompts": 1, "precise prompts": 0}
SCORE_LOOKS = {score: number for number, score in enumerate(SCORES)}


def curves_of(trainings: Sequence[Training], key: str) -> dict[str, Curve]:
    return {run.name: series(run.metrics, key) for run in trainings}


def having(runs: Runs, key: str, most: int) -> list[Training]:
    """The first trainings that logged a metric."""
    return [run for run in runs.trainings if series(run.metrics, key)[1]][:most]


def learning_curves(runs: Runs) -> Sketch | str:
    """The three scores over training, a curve for PPP and for each ablation. Source: PPP section 5, figure 5."""
    trainings = having(runs, "productivity", MAX_CURVES)
    if not trainings:
        return "no training run with scores"
    groups = [name for name in EVALUATED_GROUPS if having(runs, f"{EVALUATED}{name}/productivity", 1)]
    group = groups[0] if groups else ""
    users = EVALUATED_GROUPS.get(group, "")

    def paint(panels: Sequence[Axes]) -> None:
        for axes, score in zip(panels, SCORES, strict=True):
            draw_lines(axes, curves_of(trainings, score), runs.looks, smoothed=True)
            for name, (steps, values) in curves_of(trainings, f"{EVALUATED}{group}/{score}").items():
                axes.plot(steps, values, "D", color=look(runs.looks[name])[0], markersize=4)
            axes.set(title=score, xlabel="training step", ylim=(-2, 102))
        share_scale(panels, len(panels))
        panels[0].set_ylabel("percent")

    text = f"Vague prompts. Lines: moving mean over the sessions of training.{f' Diamonds: {users}.' if group else ''}"
    return Sketch("Scores over training", text, 1, 3, 3.0, paint)


def ask_curves(run: Training) -> dict[str, Curve]:
    return {label: series(run.metrics, key) for label, key in ASK_KEYS.items()}


def ask_ratios(runs: Runs) -> Sketch | str:
    """The share of sessions with a question over training, vague and precise prompts. Source: PPP section 5."""
    trainings = having(runs, ASK_KEYS["vague prompts"], MAX_PANELS)
    if not trainings:
        return "no training run with ask ratios"

    def paint(panels: Sequence[Axes]) -> None:
        for axes, run in zip(panels, trainings, strict=True):
            draw_lines(
                axes, {label: series(run.metrics, key) for label, key in ASK_KEYS.items()}, ASK_LOOKS, smoothed=True
            )
            axes.set(title=shown(run.name, TITLE_CHARS // len(trainings)), xlabel="training step", ylim=(-2, 102))
        share_scale(panels, len(panels))
        panels[0].set_ylabel("percent")

    text = "Share of the sessions with at least one question."
    return Sketch("Ask ratio over training", text, 1, len(trainings), 2.9, paint)


def complete_efforts(run: Training) -> tuple[list[int], dict[str, list[float]]]:
    """Steps at which all efforts were measured, and the questions per session of each."""
    whole = [record for record in run.metrics if all(series([record], key)[1] for key in EFFORT_KEYS.values())]
    return [record["step"] for record in whole], {name: series(whole, key)[1] for name, key in EFFORT_KEYS.items()}


def efforts(runs: Runs) -> Sketch | str:
    """Questions per session, stacked by effort, over training. Source: PPP section 5, figure 7."""
    trainings = [run for run in having(runs, EFFORT_KEYS["low"], len(runs.trainings)) if complete_efforts(run)[0]]
    trainings = trainings[:MAX_PANELS]
    if not trainings:
        return "no training run with questions by effort"

    def paint(panels: Sequence[Axes]) -> None:
        highest = 0.0
        for axes, run in zip(panels, trainings, strict=True):
            draw_stack(axes, *complete_efforts(run))
            axes.set(title=shown(run.name, TITLE_CHARS // len(trainings)), xlabel="training step")
            highest = max(highest, axes.get_ylim()[1])
        for axes in panels:
            axes.set_ylim(0, highest)
        share_scale(panels, len(panels))
        panels[0].set_ylabel("questions per session")

    text = "Vague prompts; moving mean. The pale line is the sum, unsmoothed."
    return Sketch("Questions per session by effort", text, 1, len(trainings), 2.9, paint)


def unseen_preferences(runs: Runs) -> Sketch | str:
    """Personalization on each held-out preference while training on the others. Source: PPP section 5, figure 8."""
    keys = {name: f"{EVALUATED}preference/{name}/personalization" for name in UNSEEN}
    trainings = [run for run in runs.trainings if any(series(run.metrics, key)[1] for key in keys.values())][
        :MAX_CURVES
    ]
    measured = {name: key for name, key in keys.items() if any(series(run.metrics, key)[1] for run in trainings)}
    if not measured:
        return "no training run that evaluated on held-out preferences as it went (eval_strategy: steps)"
    columns = min(4, len(measured))
    rows = -(-len(measured) // columns)

    def paint(panels: Sequence[Axes]) -> None:
        for axes, preference in zip_longest(panels, measured):
            if preference is None:
                axes.set_axis_off()
                continue
            draw_lines(axes, curves_of(trainings, measured[preference]), runs.looks, marker="o")
            axes.set(title=preference, ylim=(-4, 104))
        share_scale(panels, columns)
        for place in range(0, len(panels), columns):
            panels[place].set_ylabel("percent")
        for axes in panels[-columns:]:
            axes.set_xlabel("training step")

    text = "Vague prompts: share of the held-out sessions with a question that follow the preference."
    return Sketch("Personalization on held-out preferences", text, rows, columns, 0.8 + 1.8 * rows, paint)


def overview(run: Training) -> Sketch:
    """One training in three panels: scores, ask ratios, questions by effort."""

    def paint(panels: Sequence[Axes]) -> None:
        scores, asks, stack = panels
        draw_lines(scores, {score: series(run.metrics, score) for score in SCORES}, SCORE_LOOKS, smoothed=True)
        scores.set(title="Scores, vague prompts", ylabel="percent", ylim=(-2, 102))
        draw_lines(asks, ask_curves(run), ASK_LOOKS, smoothed=True)
        asks.set(title="Sessions with at least one question", ylabel="percent", ylim=(-2, 102))
        steps, layers = complete_efforts(run)
        if steps:
            draw_stack(stack, steps, layers)
        stack.set(title="Questions per session by effort, vague prompts", ylabel="questions per session")
        for axes in panels:
            axes.set_xlabel("training step")
            if axes.get_legend_handles_labels()[0]:
                axes.legend()

    return Sketch(f"Training of {run.name}", "", 1, 3, 4.4, paint, width=15.0)
