"""A file of sessions is read line by line: what cannot be used is told with number and reason, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_records import made_record, write_records

from ppp.evaluation.records import (
    ANSWER_FIELDS,
    CALL_FIELDS,
    FIELDS,
    GROUPS,
    SESSION_FIELDS,
    TURN_FIELDS,
    base_task,
    failed,
    read_records,
)
from ppp.preferences import PREFERENCES
from ppp.types import RecipeError

NOTHING_FITS = ["a", 3, 3]  # no field can hold this but `turns`, whose items are looked at one by one


def reason_of(record: dict[str, Any] | str, folder: Path) -> str:
    """Why the line between two whole ones is damaged."""
    found = read_records(write_records(folder / "results.jsonl", [made_record(), record, made_record("lf")]))
    assert len(found.records) == 2
    (damaged,) = found.damaged
    assert damaged.number == 2 and str(damaged) == f"line 2: {damaged.reason}"
    return damaged.reason


def test_whole_sessions_of_every_kind_are_read_as_they_were_written(tmp_path: Path) -> None:
    records = [
        made_record("lMtuf"),
        made_record("tt", 0.0, precise=True),
        made_record("l", None),
        made_record("hf", 0.25, preference="json"),
        made_record("lf", mode="play"),
    ]
    found = read_records(write_records(tmp_path / "results.jsonl", records))
    assert found.records == records and not found.damaged
    assert [failed(record) for record in found.records] == [False, False, True, False, False]


HOLDERS: list[tuple[str, dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]] = [
    ("", {"metric_version": None, **FIELDS}, lambda record: record),
    ("session.", SESSION_FIELDS, lambda record: record["session"]),
    ("session.effort.", {"low": None, "medium": None, "high": None}, lambda record: record["session"]["effort"]),
    ("score.", {"reward": None}, lambda record: record["score"]),
    ("turns[0].", {**TURN_FIELDS, "question": None}, lambda record: record["turns"][0]),
    ("turns[0].answer.", ANSWER_FIELDS, lambda record: record["turns"][0]["answer"]),
    ("turns[1].call.", CALL_FIELDS, lambda record: record["turns"][1]["call"]),
]
CASES = [(where, name, holder) for where, table, holder in HOLDERS for name in table]


@pytest.mark.parametrize(("where", "name", "holder"), CASES, ids=[f"{where}{name}" for where, name, _ in CASES])
def test_every_field_that_is_missing_or_holds_the_wrong_kind_is_named(
    where: str, name: str, holder: Callable[[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    missing = made_record("lf")
    del holder(missing)[name]
    assert reason_of(missing, tmp_path) == f"{where}{name} is missing"
    wrong = made_record("lf")
    holder(wrong)[name] = NOTHING_FITS
    expected = "turns[0] is not" if name == "turns" else f"{where}{name}: ['a', 3, 3] is not allowed"
    assert reason_of(wrong, tmp_path).startswith(expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"session": None}, "session: must be null in a session that failed, and in no other"),
        ({"score": None}, "score: must be null in a session that failed, and in no other"),
        ({"stop_reason": "error"}, "session: must be null in a session that failed, and in no other"),
        ({"stop_reason": "tired"}, "stop_reason: 'tired' is not allowed"),
        ({"row": True}, "row: True is not allowed"),
        ({"num_policy_tokens": -1}, "num_policy_tokens: -1 is not allowed"),
        ({"task_id": 7 * 10**70}, "task_id: 7e+70 is not allowed"),
        ({"turns": [None]}, "turns[0] is not a JSON object"),
        ({"preference": [*"x" * 90]}, f"preference: {str([*'x' * 90])[:57]}... is not allowed"),
    ],
)
def test_values_that_contradict_each_other_or_make_no_sense_are_named(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    assert reason_of({**made_record("lf"), **change}, tmp_path) == reason


@pytest.mark.parametrize("value", [1.5, -0.1, True, "1"])
def test_a_productivity_outside_of_0_to_1_is_damage(value: Any, tmp_path: Path) -> None:
    record = made_record()
    record["session"]["productivity"] = value
    assert reason_of(record, tmp_path) == f"session.productivity: {value!r} is not allowed"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{\n", "not JSON"),
        ("[1]\n", "not a JSON object"),
        ("null\n", "not a JSON object"),
        ("\x00\x00\x00\n", "not JSON"),
        ('{"metric_version": NaN}\n', "not JSON"),
        ("[" * 100_000 + "\n", "not JSON"),
        ("{" * 3 + "x" * 1_000_000 + "\n", "not JSON"),
    ],
)
def test_a_line_that_is_no_object_is_damage(line: str, reason: str, tmp_path: Path) -> None:
    assert reason_of(line, tmp_path).startswith(reason)


def test_bytes_that_are_no_text_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(json.dumps(made_record()).encode().replace(b"Vague", b"\xff\xfe") + b"\n")
    found = read_records(path)
    assert not found.records and found.damaged[0].reason.startswith("not JSON")


def test_a_last_line_without_its_end_counts_where_it_is_whole_and_is_told_as_cut_off_elsewhere(
    tmp_path: Path,
) -> None:
    whole = json.dumps(made_record())
    found = read_records(write_records(tmp_path / "torn", [made_record(), whole[:-20]]))
    assert len(found.records) == 1
    assert found.damaged[0].number == 2 and found.damaged[0].reason.startswith("cut off, not JSON")
    assert len(read_records(write_records(tmp_path / "whole", [made_record(), whole])).records) == 2


def test_numbers_of_lines_count_empty_ones(tmp_path: Path) -> None:
    found = read_records(write_records(tmp_path / "results.jsonl", ["\n", made_record(), "\n", "{}\n"]))
    assert len(found.records) == 1
    assert [(damaged.number, damaged.reason) for damaged in found.damaged] == [(4, "metric_version is missing")]


def test_an_empty_file_holds_no_session(tmp_path: Path) -> None:
    found = read_records(write_records(tmp_path / "results.jsonl", []))
    assert found.records == [] and found.damaged == []


@pytest.mark.parametrize("version", [0, 2])
def test_sessions_counted_by_other_rules_are_refused_with_their_line(version: int, tmp_path: Path) -> None:
    path = write_records(tmp_path / "results.jsonl", [made_record(), {**made_record(), "metric_version": version}])
    with pytest.raises(RecipeError, match=rf"results.jsonl: line 2: metric_version {version} is not allowed, only 1"):
        read_records(path)


def test_a_file_that_cannot_be_read_is_the_operators_mistake(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(RecipeError, match=f"{path}: cannot be read"):
            read_records(path)


@pytest.mark.parametrize("preference", PREFERENCES)
def test_the_task_behind_a_session_is_the_same_for_every_user_and_prompt(preference: str) -> None:
    made = [made_record(task="repo/issue-1", preference=preference, precise=precise) for precise in (False, True)]
    assert {base_task(record) for record in made} == {"repo/issue-1"}
    assert base_task({**made[1], "task_id": "repo/issue-1/precise"}) == "repo/issue-1"
    # A task may be called like a user, and one from elsewhere need not follow our form.
    assert base_task({**made[0], "task_id": f"{preference}/{preference}"}) == preference
    assert base_task({**made[0], "task_id": "mine"}) == "mine"
    assert base_task({**made[0], "task_id": "a/precise"}) == "a/precise"


def test_groups_hold_the_users_and_prompts_that_they_are_named_for() -> None:
    members = {
        group: {
            (preference, precise)
            for preference in PREFERENCES
            for precise in (False, True)
            if belongs(made_record(preference=preference, precise=precise))
        }
        for group, belongs in GROUPS.items()
    }
    numbers = {"vague": 20, "vague_seen": 12, "vague_unseen": 8, "vague_penalty": 18, "precise": 20}
    assert {group: len(found) for group, found in members.items()} == numbers
    assert all(precise == (group == "precise") for group, found in members.items() for _, precise in found)
    assert members["vague_seen"] | members["vague_unseen"] == members["vague"]
    left_out = {name for name, _ in members["vague"] - members["vague_penalty"]}
    assert left_out == {"no_preference", "professional"}


def test_a_user_who_is_in_no_table_is_read_and_counts_as_vague_alone() -> None:
    record = {**made_record(), "preference": "polite"}
    assert [group for group, belongs in GROUPS.items() if belongs(record)] == ["vague"]
