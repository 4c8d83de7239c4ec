"""What is promised about the report of a run: nothing is invented, nothing is lost, and a picture comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image

from ppp import report
from ppp.types import RecipeError


def scores(productivity: float) -> dict[str, Any]:
    return {
        "productivity": productivity,
        "proactivity": 40.0,
        "personalization": None,
        "ask_ratio": 50.0,
        "ask_ratio_willing": 55.0,
        "num_sessions": 240,
        "effort": {"low": 0.25, "medium": 0.5, "high": 0.0},
    }


def summary(productivity: float) -> dict[str, Any]:
    return {name: scores(productivity) for name in report.SLICES} | {"metric_version": 1}


def write_metrics(folder: Path, num_steps: int = 40) -> None:
    keys = (*report.SCORE_KEYS, *report.ASK_KEYS, *report.EFFORT_KEYS)
    with (folder / report.METRICS_FILE).open("w", encoding="utf-8") as file:
        for step in range(1, num_steps + 1):
            file.write(json.dumps({"step": step, **{key: step / num_steps for key in keys}}) + "\n")
        # Nothing was asked in the last batch of vague sessions, or there was none.
        file.write(json.dumps({"step": num_steps + 1, **dict.fromkeys(keys), "effort/low": 0.5}) + "\n")


def cells(table: str, *start: str) -> list[str]:
    """The cells of the first row of a Markdown table that starts with these."""
    for line in table.splitlines():
        row = [cell.strip() for cell in line.strip("|").split("|")]
        if row[: len(start)] == list(start):
            return row[len(start) :]
    raise AssertionError(f"no row {start} in\n{table}")


def test_before_after_table_shows_both_and_the_difference() -> None:
    table = report.before_after_table(summary(28.25), summary(88.0), {"always ask": summary(95.0)})
    seen = report.SLICES["vague_seen"]
    assert cells(table, seen, "productivity") == ["28.2", "88.0", "+59.8", "95.0"]
    assert cells(table, seen, "questions, effort medium") == ["0.50", "0.50", "+0.00", "0.50"]
    assert cells(table, seen, "sessions") == ["240", "240", "", "240"]


def test_a_score_that_was_not_measured_is_a_dash_and_not_a_zero() -> None:
    table = report.before_after_table(summary(1), summary(2))
    assert cells(table, report.SLICES["precise"], "personalization") == ["-", "-", ""]


def test_table_is_aligned_as_plain_text() -> None:
    lines = report.before_after_table(summary(1), summary(100)).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_a_resumed_run_counts_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / report.METRICS_FILE
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 2, "a": 3}\n{"step": 2, "b": 4}\n')
    assert report.read_metrics(path) == [{"step": 1, "a": 1}, {"step": 2, "a": 3, "b": 4}]


def test_a_line_cut_by_a_kill_is_left_out_but_a_broken_one_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / report.METRICS_FILE
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a"')
    assert [record["step"] for record in report.read_metrics(path)] == [1]
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a"\n{"step": 3}\n')
    with pytest.raises(RecipeError, match="line 2"):
        report.read_metrics(path)


def test_smoothing_keeps_length_and_constants() -> None:
    assert report.smooth([3.0] * 7, 4) == [3.0] * 7
    assert report.smooth([0.0, 3.0, 6.0], 3) == [1.5, 3.0, 4.5]


def test_steps_without_a_measurement_are_gaps() -> None:
    metrics = [
        {"step": 1, "a": 0.5},
        {"step": 2},
        {"step": 3, "a": None},
        {"step": 4, "a": float("nan")},
        {"step": 5, "a": 1},
    ]
    assert report.series(metrics, "a") == ([1, 5], [0.5, 1.0])


def test_run_report_writes_a_picture_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train").mkdir()
    write_metrics(tmp_path / "train")
    (tmp_path / report.SUMMARY_FILE).write_text(json.dumps({"before": summary(10), "after": summary(20)}))
    assert report.main([str(tmp_path)]) == 0
    picture = image.imread(tmp_path / report.CURVES_FILE)
    assert picture.shape[0] > 300
    assert len({tuple(pixel) for pixel in picture[::7, ::7, :3].reshape(-1, 3)}) > 10, "an empty picture"
    out = capsys.readouterr().out
    assert cells(out, report.SLICES["vague_seen"], "productivity") == ["10.0", "20.0", "+10.0"]
    assert len(cells(out, "1-4")) == len((*report.SCORE_KEYS, *report.ASK_KEYS, *report.EFFORT_KEYS))


def test_a_folder_without_a_run_is_the_operators_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
