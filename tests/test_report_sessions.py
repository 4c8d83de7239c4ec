"""Which sessions a page shows: a share of every run, evenly over it, and with tokens where there are some."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from report_runs import LOW, session, training_metrics, write_evaluation, write_quickstart, write_training

from ppp.reporting.runs import find_runs
from ppp.reporting.sessions import MAX_TOKENS, choose_sessions, even_places, shares
from ppp.token_log import TOKENS_FILE


@pytest.mark.parametrize(
    ("sizes", "room", "expected"),
    [
        ([5, 5], 100, [5, 5]),
        ([100, 2, 100], 21, [10, 2, 9]),
        ([0, 10], 4, [0, 4]),
        ([3], 0, [0]),
        ([], 5, []),
        ([1, 1, 1], 2, [1, 1, 0]),
    ],
)
def test_room_is_shared_among_runs(sizes: list[int], room: int, expected: list[int]) -> None:
    assert shares(sizes, room) == expected


def test_places_are_even_and_hold_both_ends() -> None:
    assert list(even_places(5, 9)) == [0, 1, 2, 3, 4]
    assert list(even_places(101, 5)) == [0, 25, 50, 75, 100]
    assert list(even_places(7, 1)) == [6]
    assert list(even_places(7, 0)) == []


def test_evaluations_come_first_and_trainings_are_sampled_evenly(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "evaluated", [session(n, "capital", 1.0) for n in range(10)])
    played = [session(0, "capital", 1.0, step=step, mode="train") for step in range(1001)]
    write_training(tmp_path / "train", training_metrics(3), {"proactivity": 0.5}, played)
    chosen = choose_sessions(find_runs([str(tmp_path)]), 21)
    assert [s.run for s in chosen.sessions] == ["evaluated"] * 10 + ["train, training"] * 11
    assert [s.record["step"] for s in chosen.sessions[10:]] == list(range(0, 1001, 100))
    assert chosen.num_sessions == 1011
    assert chosen.sessions[-1].weights == {"productivity": 1.0, "proactivity": 0.5, "personalization": 1.0}


def test_the_evaluation_at_the_top_of_the_report_comes_first(tmp_path: Path) -> None:
    chosen = choose_sessions(find_runs([str(write_quickstart(tmp_path))]), 100)
    assert list(dict.fromkeys(session.run for session in chosen.sessions))[:3] == ["PPP", "always_ask", "before"]


def test_sessions_with_tokens_are_shown_with_them(tmp_path: Path) -> None:
    played = [session(n, "capital", 1.0, step=n // 10, mode="train") for n in range(100)]
    train = write_training(tmp_path / "train", training_metrics(3), {}, played)
    key = {name: played[50][name] for name in ("step", "mode", "row", "copy")}
    line = {**key, "pieces": ["a", "b"], "own": [1, 0], "logprobs": [-0.1, None]}
    strange = [{"own": [1]}, {"own": [1, "q"]}, {"pieces": ["a", None]}, {"logprobs": ["x", None]}, {"pieces": "ab"}]
    lines = [line, *({**line, **change} for change in strange)]
    (train / TOKENS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    chosen = choose_sessions(find_runs([str(train)]), 5)
    assert [s.record["row"] for s in chosen.sessions if s.tokens is not None] == [50]
    assert len(chosen.sessions) == 5
    assert [f"line {number}: " in problem for number, problem in enumerate(chosen.problems, start=2)] == [True] * 5


def test_a_page_has_tokens_of_at_most_two_hundred_sessions(tmp_path: Path) -> None:
    for name in ("a", "b"):
        records = [session(n, "capital", 1.0, [(LOW, True)]) for n in range(150)]
        folder = write_evaluation(tmp_path / name, records)
        lines = [
            {"step": 0, "mode": "eval", "row": n, "copy": 0, "pieces": [], "own": [], "logprobs": []}
            for n in range(150)
        ]
        (folder / TOKENS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    chosen = choose_sessions(find_runs([str(tmp_path)]), 300)
    assert sum(s.tokens is not None for s in chosen.sessions) == MAX_TOKENS == 200


def test_a_long_training_log_does_not_fill_the_memory(tmp_path: Path) -> None:
    record = {**session(1, "capital", 1.0, mode="train"), "prompt": "x" * 10_000}
    train = write_training(tmp_path / "train", training_metrics(3))
    with (train / "trajectories.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({**record, "step": step}) + "\n" for step in range(3000))
    runs = find_runs([str(train)])
    tracemalloc.start()
    chosen = choose_sessions(runs, 50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(chosen.sessions) == 50 and chosen.num_sessions == 3000
    assert peak < 5_000_000, "the file has 30 MB"
