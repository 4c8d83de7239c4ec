"""What is promised about the tables of a report: their cells are the scores of the sessions, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_runs import (
    LOW,
    MEDIUM,
    hand_made,
    session,
    training_metrics,
    write_evaluation,
    write_quickstart,
    write_training,
)
from report_runs import checkpoint as checkpoint_of

from ppp.preferences import PREFERENCES
from ppp.reporting.content import Table
from ppp.reporting.formats import Estimate
from ppp.reporting.runs import find_runs
from ppp.reporting.tables import make_tables


def tables_of(*folders: Path | str) -> dict[str, Table]:
    return {table.name: table for table in make_tables(find_runs([str(folder) for folder in folders]))}


def row(table: Table, *labels: str) -> list[str]:
    """The cells of the row that starts with these labels, without their intervals."""
    found = [line for line in table.rows if list(line[: len(labels)]) == list(labels)]
    assert len(found) == 1, f"{len(found)} rows {labels} in {table.rows}"
    return [cell.value if isinstance(cell, Estimate) else cell for cell in found[0][len(labels) :]]


@pytest.mark.parametrize(
    ("group", "town"),
    [
        # Each preference counts alike: productivity (0.5 + 0.5 + 1) / 3; low effort in half of the concise sessions,
        # none and all: 1.5 / 3; of the sessions with a question a concise one (half of its preference) and a capital.
        ("", ["66.7", "50.0", "33.3"]),
        ("_seen", ["75.0", "75.0", "100.0"]),
        ("_unseen", ["50.0", "0.0", "0.0"]),
        ("_penalty", ["50.0", "25.0", "33.3"]),
    ],
)
def test_table_2_has_the_three_scores_of_each_domain(tmp_path: Path, group: str, town: list[str]) -> None:
    tables = tables_of(write_evaluation(tmp_path / "agent", hand_made()))
    table = tables[f"table_2{group}"]
    scores = [f"{domain} {score}" for domain in ("func_loc", "town") for score in SCORES]
    assert list(table.header) == ["method", "Avg", *scores, "sessions"]
    elsewhere = ["100.0"] * 3 if group != "_unseen" else ["-"] * 3
    # The mean over all six scores; where one is missing it would be the mean of something else.
    exact = {"": "75.0", "_seen": "91.7", "_unseen": "-", "_penalty": "68.1"}[group]
    number = {"": "5", "_seen": "4", "_unseen": "1", "_penalty": "4"}[group]
    assert row(table, "agent") == [exact, *elsewhere, *town, number]


SCORES = ("productivity", "proactivity", "personalization")


def test_intervals_hold_their_values(tmp_path: Path) -> None:
    records = [session(n, "concise_question", n % 2, [(LOW, n % 3 > 0)]) for n in range(40)]
    table = tables_of(write_evaluation(tmp_path / "agent", records))["table_2"]
    cells = [cell for cell in table.rows[0] if isinstance(cell, Estimate)]
    assert len(cells) == 3
    for cell in cells:
        assert float(cell.low) <= float(cell.value) <= float(cell.high)
    # A share of one half in 40 sessions is known to about 1.96 * 50 / sqrt(40) = 15.5 points.
    assert cells[0].value == "50.0" and 12 < float(cells[0].high) - 50 < 19


def test_ablations_have_the_papers_names_in_the_papers_order(tmp_path: Path) -> None:
    table = tables_of(write_quickstart(tmp_path / "q"))["table_2"]
    assert [line[0] for line in table.rows] == ["always_ask", "before", "PPP", "PPP w/o R_proact", "PPP w/o both"]
    assert row(table, "before") == ["-", "0.0", "0.0", "-", "4"]
    assert row(table, "PPP") == ["100.0", "100.0", "100.0", "100.0", "4"]


def test_a_quickstart_that_was_moved_is_named_all_the_same(tmp_path: Path) -> None:
    write_quickstart(tmp_path / "q").rename(tmp_path / "elsewhere")
    table = tables_of(tmp_path / "elsewhere")["table_2"]
    assert [line[0] for line in table.rows] == ["always_ask", "before", "PPP", "PPP w/o R_proact", "PPP w/o both"]


def test_runs_of_the_same_kind_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        train = write_training(tmp_path / name / "train", training_metrics(4))
        write_evaluation(tmp_path / name / "after", hand_made(), agent=checkpoint_of(train))
    names = [line[0] for line in tables_of(tmp_path)["table_2"].rows]
    assert names == ["PPP (a/after)", "PPP (b/after)", "PPP (c/after)"]
    names = [line[0] for line in tables_of(tmp_path / "a", f"second={tmp_path / 'b'}")["table_2"].rows]
    assert names == ["PPP", "second"]


def test_other_weights_are_no_ablation_of_the_paper(tmp_path: Path) -> None:
    train = write_training(tmp_path / "q" / "train", training_metrics(4), {"proactivity": 0.5})
    write_evaluation(tmp_path / "q" / "after", hand_made(), agent=checkpoint_of(train))
    assert [line[0] for line in tables_of(tmp_path / "q")["table_2"].rows] == ["after"]


def test_table_3_has_the_same_agent_with_other_users(tmp_path: Path) -> None:
    agent = {"kind": "endpoint", "name": "agent-8b"}
    for name, solved in (("gpt-5", 1.0), ("gpt-4o", 0.5)):
        records = [session(n, "concise_question", solved, [(LOW, True)]) for n in range(3)]
        write_evaluation(tmp_path / name, records, agent=agent, user={"kind": "llm", "model": name})
    write_evaluation(tmp_path / "other", hand_made())
    table = tables_of(tmp_path)["table_3"]
    assert len(table.rows) == 2
    assert row(table, "agent-8b", "gpt-5", "town") == ["100.0", "100.0", "100.0", "3"]
    assert row(table, "agent-8b", "gpt-4o", "town") == ["50.0", "100.0", "100.0", "3"]


def test_one_user_makes_no_table_3(tmp_path: Path) -> None:
    assert "table_3" not in tables_of(write_evaluation(tmp_path / "agent", hand_made()))


def test_a_row_for_each_preference(tmp_path: Path) -> None:
    records = [session(n, name, n / 19, [(LOW, n > 9)] if n else []) for n, name in enumerate(PREFERENCES)]
    table = tables_of(write_evaluation(tmp_path / "agent", records))["preferences"]
    assert [line[0] for line in table.rows] == list(PREFERENCES)
    assert row(table, "no_preference", "seen") == ["0.0", "0.0", "-", "0.0", "1"]
    assert row(table, "length", "unseen") == ["100.0", "100.0", "100.0", "100.0", "1"]
    assert row(table, "amateur", "seen")[2] == "0.0"


def test_settings_with_and_without_interaction(tmp_path: Path) -> None:
    agent = {"kind": "checkpoint", "name": "models/agent"}
    mute = [session(n, "detail_question", 0.25) for n in range(2)]
    mute += [session(n, "detail_question", 0.75, precise=True) for n in range(2)]
    # Other preferences do not count here.
    mute += [session(9, "capital", 1.0), session(9, "capital", 1.0, precise=True)]
    talking = [session(n, "detail_question", 0.5, [(LOW, True)]) for n in range(2)] + [session(9, "capital", 1.0)]
    write_evaluation(tmp_path / "mute", mute, agent=agent, interaction=False, user=None)
    write_evaluation(tmp_path / "talking", talking, agent=agent)
    tables = tables_of(tmp_path)
    assert row(tables["settings"], "talking") == ["75.0", "25.0", "50.0"]
    assert [line[0] for line in tables["table_2"].rows] == ["talking"]
    alone = tables_of(tmp_path / "mute")
    assert row(alone["settings"], "agent") == ["75.0", "25.0", "-"]
    assert [line[0] for line in alone["table_2"].rows] == ["mute, no interaction"]


def test_evaluations_for_one_figure_stand_in_no_table_of_methods(tmp_path: Path) -> None:
    folder = write_quickstart(tmp_path / "q")
    one = [session(n, "detail_question", 1.0, [(LOW, True)]) for n in range(3)]
    agent = checkpoint_of(folder / "train")
    write_evaluation(folder / "figure4" / "asking", one, agent=agent, preferences=["detail_question"])
    write_evaluation(folder / "figure4" / "silent", one, agent=agent, interaction=False, user=None)
    tables = tables_of(folder)
    assert [line[0] for line in tables["table_2"].rows][2:] == ["PPP", "PPP w/o R_proact", "PPP w/o both"]
    assert row(tables["settings"], "PPP") == ["-", "100.0", "100.0"]
    assert {"figure4/asking", "figure4/silent, no interaction"} <= {line[0] for line in tables["runs"].rows}


def test_before_and_after_are_paired_session_by_session(tmp_path: Path) -> None:
    before = [session(n, "concise_question", 0.0, [(MEDIUM, False)]) for n in range(4)]
    # The fifth session was not played before: it is in the scores after, and not in the change.
    after = [session(n, "concise_question", n / 4, [(LOW, n < 2)]) for n in range(5)]
    write_evaluation(tmp_path / "q" / "before", before)
    write_evaluation(tmp_path / "q" / "after", after)
    table = tables_of(tmp_path / "q")["before_after"]
    assert row(table, "vague", "productivity") == ["0.0", "50.0", "+37.5"]
    assert row(table, "vague", "proactivity") == ["0.0", "100.0", "+100.0"]
    assert row(table, "vague", "personalization") == ["0.0", "40.0", "+50.0"]
    assert row(table, "vague", "questions, medium effort") == ["1.00", "0.00", "-1.00"]
    assert row(table, "vague", "sessions") == ["4", "5", "4 pairs"]


def test_a_baseline_inside_an_evaluation_is_what_it_is_compared_with(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "agent", [session(1, "capital", 1.0), session(2, "capital", 1.0)])
    write_evaluation(tmp_path / "agent" / "baseline", [session(1, "capital", 0.0), session(2, "capital", 1.0)])
    tables = tables_of(tmp_path / "agent")
    assert row(tables["before_after"], "vague", "productivity") == ["50.0", "100.0", "+50.0"]


def test_failed_sessions_are_counted_and_count_for_nothing(tmp_path: Path) -> None:
    tables = tables_of(write_evaluation(tmp_path / "agent", hand_made()))
    assert row(tables["runs"], "agent", "evaluation", str(tmp_path / "agent"), "scripted")[:2] == ["8", "1"]
    behaviour = row(tables["behaviour"], "agent", "vague")
    assert behaviour[-2:] == ["5", "1"]
    # Of concise_question in the town and elsewhere two in three, of capital all, of no_preference none.
    assert behaviour[0] == "55.6"


def test_a_training_in_numbers(tmp_path: Path) -> None:
    table = tables_of(write_training(tmp_path / "train", training_metrics(20)))["training"]
    assert [line[0] for line in table.rows][:2] == ["1-2", "3-4"]
    assert row(table, "1-2") == ["1.5", "3.0", "50.0", "80.0", "10.0", "1.00", "0.50", "0.25"]


def test_a_score_that_was_not_measured_is_a_dash_and_not_a_zero(tmp_path: Path) -> None:
    table = tables_of(write_evaluation(tmp_path / "agent", [session(1, "capital", 1.0)]))["table_2"]
    assert row(table, "agent") == ["-", "100.0", "100.0", "-", "1"]


def test_nothing_measured_makes_no_tables_but_the_list_of_runs(tmp_path: Path) -> None:
    assert list(tables_of(write_evaluation(tmp_path / "agent", []))) == ["runs"]
