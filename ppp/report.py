"""What a run looks like afterwards: training curves as a picture, and the scores before and after as a table.

Reads what the trainer and `evaluate.py` wrote, `metrics.jsonl` and `summary.json`; loads no model and plays no session.
Names of metrics are in one table below. The command line is in `cli.py`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # a run is reported on machines without a display
from matplotlib import pyplot

from ppp.run_log import METRICS_FILE
from ppp.types import RecipeError

logger = logging.getLogger(__name__)

SUMMARY_FILE = "summary.json"
CURVES_FILE = "curves.png"
TABLE_FILE = "table.md"

# What is plotted: panel -> key in metrics.jsonl -> (label, colour). Colours tell apart also without red and green.
SCORE_KEYS = {
    "productivity": ("productivity", "#0072b2"),
    "proactivity": ("proactivity", "#d55e00"),
    "personalization": ("personalization", "#009e73"),
}
ASK_KEYS = {
    "ask_ratio/vague": ("vague prompts", "#0072b2"),
    "ask_ratio/precise": ("precise prompts", "#d55e00"),
}
EFFORT_KEYS = {
    "effort/low": ("low", "#a6cee3"),
    "effort/medium": ("medium", "#e6ab02"),
    "effort/high": ("high", "#b2182b"),
}

SLICES = {
    "vague_seen": "vague, seen preferences",
    "vague_unseen": "vague, unseen preferences",
    "precise": "precise",
}
TABLE_ROWS = ("productivity", "proactivity", "personalization", "ask_ratio", "ask_ratio_willing")
EFFORTS = ("low", "medium", "high")

Summary = Mapping[str, Any]  # slice -> scores, as `ppp evaluate` writes them


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read `metrics.jsonl` in the order of steps; of a step that a resumed run repeated, the later line counts per key.

    Raises:
        RecipeError: no such file, or a line other than the last (which a killed run may have cut) is not JSON.
    """
    if not path.is_file():
        raise RecipeError(
            f"run folder: {str(path)!r} does not exist; allowed is a folder in which a run left {METRICS_FILE}"
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    by_step: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                logger.warning("%s: the last line was cut off and is left out", path)
                break
            raise RecipeError(
                f"{path}, line {number}: not JSON ({error.msg}); allowed is one JSON object a line"
            ) from None
        by_step.setdefault(int(record["step"]), {}).update(record)
    return [by_step[step] for step in sorted(by_step)]


def series(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, without the steps at which it was not measured."""
    pairs = [(record["step"], record[key]) for record in metrics if isinstance(record.get(key), int | float)]
    pairs = [(step, value) for step, value in pairs if math.isfinite(value)]
    return [step for step, _ in pairs], [float(value) for _, value in pairs]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred moving mean of `window` values, narrower at both ends; same length."""
    half = window // 2
    spans = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(span) / len(span) for span in spans]


def plot_curves(metrics: Sequence[Mapping[str, Any]], path: Path, title: str = "PPP training") -> None:
    """Draw the three scores, the ask ratios, and the questions per session stacked by effort, over training steps."""
    window = max(1, len(metrics) // 15)
    style = {
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
    }
    with pyplot.rc_context(style):
        figure, (scores, asks, efforts) = pyplot.subplots(
            1, 3, figsize=(15, 4.4), facecolor="white", layout="constrained"
        )
        _draw_lines(scores, metrics, SCORE_KEYS, window)
        scores.set(title="Scores, vague prompts", ylabel="percent", ylim=(-2, 102))
        _draw_lines(asks, metrics, ASK_KEYS, window)
        asks.set(title="Sessions with at least one question", ylabel="percent", ylim=(-2, 102))
        _draw_stack(efforts, metrics, window)
        efforts.set(title="Questions per session by effort, vague prompts", ylabel="questions per session")
        for axes in (scores, asks, efforts):
            axes.set_xlabel("training step")
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False)
        figure.suptitle(f"{title} (lines: moving mean of {window} steps)", fontsize=12)
        figure.savefig(path, dpi=130)
        pyplot.close(figure)


def _draw_lines(
    axes: Any, metrics: Sequence[Mapping[str, Any]], keys: Mapping[str, tuple[str, str]], window: int
) -> None:
    for key, (label, colour) in keys.items():
        steps, values = series(metrics, key)
        if values:
            axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
            axes.plot(steps, smooth(values, window), color=colour, linewidth=2, label=label)


def _draw_stack(axes: Any, metrics: Sequence[Mapping[str, Any]], window: int) -> None:
    complete = [record for record in metrics if all(series([record], key)[1] for key in EFFORT_KEYS)]
    if not complete:
        return
    raw = [series(complete, key)[1] for key in EFFORT_KEYS]
    steps = [record["step"] for record in complete]
    labels, colours = zip(*EFFORT_KEYS.values(), strict=True)
    axes.stackplot(steps, [smooth(values, window) for values in raw], labels=labels, colors=colours, alpha=0.9)
    axes.plot(steps, [sum(column) for column in zip(*raw, strict=True)], color="black", alpha=0.2, linewidth=0.8)
    axes.set_ylim(bottom=0)


def training_table(metrics: Sequence[Mapping[str, Any]], num_parts: int = 10) -> str:
    """The same curves in numbers: the mean of each metric over successive parts of the training, as Markdown."""
    keys = {**SCORE_KEYS, **{key: (f"asks, {label}", "") for key, (label, _) in ASK_KEYS.items()}}
    keys |= {key: (f"{label} effort", "") for key, (label, _) in EFFORT_KEYS.items()}
    measured = [record for record in metrics if any(key in record for key in keys)]
    num_parts = min(num_parts, len(measured))
    rows = []
    for part in range(num_parts):
        span = measured[part * len(measured) // num_parts : (part + 1) * len(measured) // num_parts]
        cells = [f"{span[0]['step']}-{span[-1]['step']}"]
        for key in keys:
            values = series(span, key)[1]
            digits = 2 if key in EFFORT_KEYS else 1
            cells.append(f"{sum(values) / len(values):.{digits}f}" if values else "-")
        rows.append(cells)
    return markdown_table(["steps", *(label for label, _ in keys.values())], rows)


def before_after_table(before: Summary, after: Summary, others: Mapping[str, Summary] | None = None) -> str:
    """The scores before and after training, their difference, and those of other policies beside them, as Markdown.

    Args:
        before, after: slice -> scores, in percent; effort in questions per session.
        others: name of a policy -> its scores on the same sessions.
    """
    others = others or {}
    rows = []
    for name, label in SLICES.items():
        columns = [summary.get(name) for summary in (before, after, *others.values())]
        if columns[0] is None or columns[1] is None:
            continue
        for row in (*TABLE_ROWS, *(f"effort.{effort}" for effort in EFFORTS), "num_sessions"):
            values = [_lookup(column, row) for column in columns]
            digits = 0 if row == "num_sessions" else 2 if row.startswith("effort.") else 1
            cells = ["-" if value is None else f"{value:.{digits}f}" for value in values]
            first, second = values[:2]
            change = "" if first is None or second is None or row == "num_sessions" else f"{second - first:+.{digits}f}"
            title = row.replace("effort.", "questions, effort ").replace("num_sessions", "sessions").replace("_", " ")
            rows.append([label, title, cells[0], cells[1], change, *cells[2:]])
    return markdown_table(["sessions", "metric", "before", "after", "change", *others], rows, left=2)


def _lookup(scores: Any, row: str) -> float | None:
    for key in row.split("."):
        scores = None if scores is None else scores.get(key)
    return None if scores is None else float(scores)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Markdown that reads well as plain text too: padded columns, the first `left` of them aligned to the left."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = (("-" * width) if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths))
    return "\n".join([line(header), f"| {' | '.join(rule)} |", *(line(row) for row in rows)])


def report_run(run_dir: Path) -> str:
    """Write the plots and tables of a run into its folder and return the tables as text.

    A quickstart's folder holds its training run in `train/`; a training run's folder is accepted as it is.

    Raises:
        RecipeError: the folder holds no `metrics.jsonl` and no `summary.json` with scores before and after.
    """
    train_dir = run_dir if (run_dir / METRICS_FILE).is_file() else run_dir / "train"
    summary_path = run_dir / SUMMARY_FILE
    summary = json.loads(summary_path.read_text(encoding="utf-8")) if summary_path.is_file() else {}
    parts = []
    if "before" in summary and "after" in summary:
        parts.append(before_after_table(summary["before"], summary["after"], summary.get("policies")))
    if (train_dir / METRICS_FILE).is_file() or not parts:
        metrics = read_metrics(train_dir / METRICS_FILE)
        plot_curves(metrics, run_dir / CURVES_FILE)
        parts.append(training_table(metrics))
    text = "\n\n".join(parts) + "\n"
    (run_dir / TABLE_FILE).write_text(text, encoding="utf-8")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """`ppp report RUN_DIR`: write plots and tables, and show the tables. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="ppp report", description="Plots and tables of a run.")
    parser.add_argument("run_dir", type=Path, help="folder of a training run or of a quickstart")
    arguments = parser.parse_args(argv)
    try:
        text = report_run(arguments.run_dir)
    except RecipeError as error:
        sys.stderr.write(f"ppp report: {error}\n")
        return 2
    sys.stdout.write(text)
    sys.stdout.write(f"\nwritten: {arguments.run_dir / TABLE_FILE}\n")
    if (arguments.run_dir / CURVES_FILE).is_file():
        sys.stdout.write(f"curves: {arguments.run_dir / CURVES_FILE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
