"""Task rows, their expansion, and the mixing of environments."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from toy import ToyEnvironment, register, toy_rows

from ppp.data import expand, load_task_rows, mix, to_dataset
from ppp.environments import ENVIRONMENTS
from ppp.preferences import PREFERENCES, SEEN
from ppp.types import RecipeError, Task


@pytest.fixture(autouse=True)
def toy_environment() -> Iterator[None]:
    register()
    ENVIRONMENTS["other"] = ToyEnvironment
    yield
    del ENVIRONMENTS["other"]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_task_becomes_twelve_vague_sessions_and_a_precise_one() -> None:
    tasks = expand(toy_rows(1), SEEN, seed=0)
    assert [task.preference for task in tasks[:12]] == list(SEEN)
    assert all(task.prompt == "Fix 0." and not task.is_precise for task in tasks[:12])
    assert len(tasks) == 13 and tasks[12].is_precise
    assert len({task.task_id for task in tasks}) == 13


def test_precise_users_are_drawn_from_all_seen_ones_but_answer_more() -> None:
    precise = [task.preference for task in expand(toy_rows(300), SEEN, seed=0) if task.is_precise]
    assert set(precise) == set(SEEN) - {"answer_more"}
    assert max(Counter(precise).values()) < 60


def test_expansion_depends_on_the_seed_alone() -> None:
    first, again, other = (expand(toy_rows(30), SEEN, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_precise_sessions_of_one_task_have_different_users() -> None:
    tasks = expand(toy_rows(20), SEEN, seed=0, num_precise=5)
    for start in range(0, len(tasks), 17):
        assert len({task.preference for task in tasks[start + 12 : start + 17]}) == 5
    with pytest.raises(RecipeError, match="num_precise_per_task"):
        expand(toy_rows(1), SEEN, seed=0, num_precise=12)


def test_a_task_without_a_vague_form_has_precise_sessions_only() -> None:
    tasks = expand([{**toy_rows(1)[0], "vague_prompt": None}], SEEN, seed=0)
    assert [task.is_precise for task in tasks] == [True]


def test_unseen_preferences_serve_precise_sessions_when_no_seen_one_is_trained_with() -> None:
    assert expand(toy_rows(1), ["capital"], seed=0)[-1].preference == "capital"


@pytest.mark.parametrize("preference", PREFERENCES)
def test_a_task_survives_the_way_through_the_data_set(preference: str) -> None:
    task = expand([{**toy_rows(1)[0], "payload": {"gold": ["f"], "nested": [{"a": None}]}}], [preference], 0, 0)[0]
    dataset = to_dataset([task], lambda task: [{"role": "user", "content": task.prompt}], lambda task: 1, 10)
    assert Task.from_json(dataset[0]["task"]) == task
    assert dataset[0]["prompt"] == [{"role": "user", "content": "Fix 0."}]


def test_mixing_interleaves_by_weight() -> None:
    def tasks(name: str, num: int) -> list[Task]:
        return [Task(f"{name}{index}", name, "p", "q", "no_ask", {}) for index in range(num)]

    mixed = mix({"a": tasks("a", 30), "b": tasks("b", 4)}, {"a": 2, "b": 1}, seed=0)
    assert len(mixed) == 45, "until the environment with the most sessions for its share is through"
    for start in range(0, 45, 3):
        assert Counter(task.environment for task in mixed[start : start + 3]) == {"a": 2, "b": 1}
    assert len({task.task_id for task in mixed}) == 34, "no session is lost"
    again, other = (mix({"a": tasks("a", 30), "b": tasks("b", 4)}, {"a": 2, "b": 1}, seed=seed) for seed in (0, 1))
    assert mixed == again != other


def test_a_prompt_that_is_too_long_is_refused_by_row() -> None:
    tasks = expand(toy_rows(2), ["no_ask"], 0, 0)
    with pytest.raises(RecipeError, match=r"'toy-1/no_ask' \(session 2\): the prompt has 99 tokens; at most 50"):
        to_dataset(tasks, lambda task: [], lambda task: 99 if "1" in task.task_id else 1, 50)


def test_rows_come_from_jsonl_and_parquet(tmp_path: Path) -> None:
    rows = toy_rows(3)
    jsonl = write_jsonl(tmp_path / "tasks.jsonl", rows)
    parquet = tmp_path / "tasks.parquet"
    Dataset.from_list([{**row, "payload": json.dumps(row["payload"])} for row in rows]).to_parquet(str(parquet))
    for path in (jsonl, parquet):
        assert load_task_rows("train_tasks", "toy", {"path": str(path)}) == rows


def test_town_tasks_come_from_their_generator() -> None:
    rows = load_task_rows("train_tasks", "town", {"split": "train", "num": 5})
    assert len(rows) == 5 and {row["environment"] for row in rows} == {"town"}


GOOD = toy_rows(1)[0]
BAD_ROWS = {
    "not JSON": ("{", r"tasks.jsonl, line 2: not a JSON object"),
    "not an object": ("[1]", r"line 2: '\[1\]' is not an object with the fields task_id"),
    "missing field": (json.dumps({"task_id": "t"}), r"line 2: the field 'vague_prompt' is missing"),
    "wrong type": (
        json.dumps({**GOOD, "precise_prompt": 3}),
        r"line 2: precise_prompt is '3'; expected a non-empty str",
    ),
    "empty": (json.dumps({**GOOD, "task_id": ""}), r"line 2: task_id is ''"),
    "other environment": (
        json.dumps({**GOOD, "task_id": "u", "environment": "town"}),
        r"line 2: environment is 'town'",
    ),
    "no gold answer": (json.dumps({**GOOD, "task_id": "u", "payload": {"a": 1}}), r"line 2: payload.gold is missing"),
    "twice": (json.dumps(GOOD), r"line 2: task_id 'toy-0' occurs twice"),
}


@pytest.mark.parametrize(
    ("key", "value"), [("gold", []), ("gold", "f1"), ("gold", [1]), ("details", {}), ("functions", [1]), ("missing", 3)]
)
def test_a_malformed_town_row_is_refused_with_its_line(key: str, value: Any, tmp_path: Path) -> None:
    row = json.loads(json.dumps(load_task_rows("train_tasks", "town", {"split": "train", "num": 1})[0]))
    row["payload"][key] = value
    path = write_jsonl(tmp_path / "tasks.jsonl", [row])
    with pytest.raises(RecipeError, match=rf"line 1: payload\.{key}: .* is not allowed in task .*; allowed: "):
        load_task_rows("train_tasks", "town", {"path": str(path)})


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_malformed_row_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    text, message = BAD_ROWS[name]
    (tmp_path / "tasks.jsonl").write_text(json.dumps(GOOD) + "\n" + text + "\n")
    with pytest.raises(RecipeError, match=message):
        load_task_rows("train_tasks", "toy", {"path": str(tmp_path / "tasks.jsonl")})


BAD_SOURCES = {
    "missing file": ({"path": "nowhere.jsonl"}, r"train_tasks.toy: the file 'nowhere.jsonl' does not exist"),
    "no path": ({}, r"train_tasks.toy: \{\} does not fit; allowed: path"),
    "unknown option": ({"path": "x.jsonl", "lines": 3}, r"allowed: path \(a string\) and split"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_an_unusable_source_is_refused_by_field(name: str) -> None:
    options, message = BAD_SOURCES[name]
    with pytest.raises(RecipeError, match=message):
        load_task_rows("train_tasks", "toy", options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev", "num": 5}, r"^train_tasks.town.split: .*'dev'.*'train', 'test'"),
        ({"split": "train", "num": 0}, r"^train_tasks.town.num: 0 .*at least 1"),
        ({"split": "train", "num": "many"}, r"^train_tasks.town.num: 'many' .*an integer"),
    ],
)
def test_a_bad_generator_option_is_refused_by_field(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_task_rows("train_tasks", "town", options)


@pytest.mark.parametrize("name", ["tasks.jsonl", "tasks.parquet"])
def test_a_file_of_other_bytes_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(RecipeError, match=f"{name}.*not (UTF-8|a parquet file)"):
        load_task_rows("train_tasks", "toy", {"path": str(tmp_path / name)})


def test_unknown_generator_options_are_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"train_tasks.town: .*unexpected keyword argument 'number'.*split, num, seed"
    ):
        load_task_rows("train_tasks", "town", {"split": "train", "num": 5, "number": 5})


def test_an_empty_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="holds no task"):
        load_task_rows("train_tasks", "toy", {"path": str(write_jsonl(tmp_path / "tasks.jsonl", []))})
