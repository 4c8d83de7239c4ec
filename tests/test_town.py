"""What is promised about the town: towns that come again, unseen test tasks, answers that must be read."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from typing import Any

import pytest

from ppp.data import expand
from ppp.environments.town import (
    DETAILS,
    FUNCTIONS_PER_FILE,
    MODULES,
    NUM_FUNCTION_NAMES,
    OBJECTS,
    OPERATIONS,
    TownEnvironment,
    file_path,
    town_task_rows,
)
from ppp.types import Observation, RecipeError, Task, ToolCall

NUM_ROWS = 3000
TRAIN = list(town_task_rows("train", NUM_ROWS))
TEST = list(town_task_rows("test", 1000))
VALUES = {"module": MODULES, "operation": OPERATIONS, "object": OBJECTS}


def task_of(row: dict[str, Any], preference: str = "no_preference") -> Task:
    return expand([row], [preference], seed=0, num_precise=0)[0]


def place(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row["payload"]["details"][detail] for detail in DETAILS)


def use(row: dict[str, Any], name: str, **arguments: str) -> Observation:
    async def session() -> Observation:
        async with TownEnvironment(task_of(row)) as environment:
            return await environment.step(ToolCall(name, arguments))

    return asyncio.run(session())


def score(row: dict[str, Any], answer: str | None) -> float:
    return asyncio.run(TownEnvironment(task_of(row)).score(answer))


def test_rows_are_a_function_of_split_seed_and_number() -> None:
    assert list(town_task_rows("train", 20)) == TRAIN[:20], "fewer rows are the first ones of many"
    assert list(town_task_rows("train", 20, seed=1)) != TRAIN[:20]
    assert [use(TRAIN[0], "open_file", path=file_path(m, o)).text for m in MODULES for o in OPERATIONS] == [
        use(TRAIN[0], "open_file", path=file_path(m, o)).text for m in MODULES for o in OPERATIONS
    ]


def test_no_combination_of_details_is_in_both_splits() -> None:
    train, test = ({place(row) for row in rows} for rows in (TRAIN, TEST))
    assert train.isdisjoint(test)
    assert len(train) > 400 and len(test) > 110, "of 480 and 120"
    for number, detail in enumerate(DETAILS):
        assert {names[number] for names in train} == {names[number] for names in test} == set(VALUES[detail])


def test_task_ids_are_unique_and_every_row_passes_its_own_check() -> None:
    assert len({row["task_id"] for row in TRAIN + TEST}) == len(TRAIN + TEST)
    for row in TEST[:50]:
        TownEnvironment.check_task(task_of(row))


@pytest.mark.parametrize("key", ["town_seed", "details", "missing", "functions", "gold"])
def test_payload_without_one_of_its_parts_is_refused_by_name(key: str) -> None:
    row = TRAIN[0]
    payload = {name: value for name, value in row["payload"].items() if name != key}
    with pytest.raises(RecipeError, match=rf"payload\.{key}\b"):
        TownEnvironment.check_task(task_of({**row, "payload": payload}))


def test_unknown_split_and_option_are_refused() -> None:
    with pytest.raises(RecipeError, match="split: unknown value 'dev'; allowed: 'train', 'test'"):
        list(town_task_rows("dev", 1))
    with pytest.raises(RecipeError, match=r"environment_options\.town: unknown option 'size'"):
        TownEnvironment.check_options({"size": 3})


@pytest.mark.parametrize("row", TEST[:100], ids=lambda row: row["task_id"])
def test_precise_prompt_names_all_details_and_the_vague_one_lacks_just_the_missing(row: dict[str, Any]) -> None:
    details = row["payload"]["details"]
    assert all(details[detail] in row["precise_prompt"] for detail in DETAILS)
    lacking = [detail for detail in DETAILS if details[detail] not in row["vague_prompt"]]
    assert lacking == row["payload"]["missing"] != []
    for detail in lacking:
        assert not any(value in row["vague_prompt"].lower().split() for value in VALUES[detail]), "nor names another"


def test_one_two_or_three_details_are_missing_each_often_enough() -> None:
    numbers = Counter(len(row["payload"]["missing"]) for row in TRAIN)
    assert set(numbers) == {1, 2, 3} and numbers[1] > numbers[2] > numbers[3] > 0.12 * NUM_ROWS
    missing = Counter(detail for row in TRAIN for detail in row["payload"]["missing"])
    assert max(missing.values()) < 1.1 * min(missing.values())


def test_answer_cannot_be_guessed_from_what_the_prompt_says() -> None:
    for keys in (("object",), ("module", "operation"), ("module", "operation", "object")):
        names: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for row in TRAIN:
            names[tuple(row["payload"]["details"][key] for key in keys)][row["payload"]["gold"][0]] += 1
        # The best guess by prompt would be the commonest name; one time of its counts is the row itself.
        hits = sum(max(counter.values()) - 1 for counter in names.values())
        assert hits / NUM_ROWS < 0.2
        assert len({name for counter in names.values() for name in counter}) == NUM_FUNCTION_NAMES
    by_object: dict[str, set[str]] = defaultdict(set)
    for row in TRAIN:
        by_object[row["payload"]["details"]["object"]].add(row["payload"]["gold"][0])
    assert all(len(names_of_object) > 0.9 * NUM_FUNCTION_NAMES for names_of_object in by_object.values())


def test_answer_stands_anywhere_in_its_listing_and_once() -> None:
    positions: Counter[int] = Counter()
    for row in TRAIN:
        pairs = row["payload"]["functions"]
        assert len({name for _, name in pairs}) == len({obj for obj, _ in pairs}) == FUNCTIONS_PER_FILE
        positions[[obj for obj, _ in pairs].index(row["payload"]["details"]["object"])] += 1
    assert len(positions) == FUNCTIONS_PER_FILE and max(positions.values()) < 1.2 * min(positions.values())


def test_listing_of_the_right_file_holds_object_and_answer_together() -> None:
    for row in TEST[:30]:
        module, operation, obj = place(row)
        path = file_path(module, operation)
        assert path in use(row, "list_files", module=module).text
        listing = use(row, "open_file", path=path)
        assert f"{obj} {row['payload']['gold'][0]}" in listing.text and not listing.is_error


def test_same_path_holds_other_names_in_another_town() -> None:
    texts = {use(row, "open_file", path="parser/loading.py").text for row in TRAIN[:20]}
    assert len(texts) == 20


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *(("list_files", {"module": module}) for module in ("", "nowhere", "parser/loading.py", "Parser")),
        *(
            ("open_file", {"path": path})
            for path in ("", "/", "parser", "parser/", "parser/loading", "parser/loading.txt", "parser/loading.py.py")
        ),
        *(
            ("open_file", {"path": path})
            for path in ("../parser/loading.py", "nowhere/loading.py", "parser/nothing.py")
        ),
    ],
)
def test_mistake_with_a_tool_is_an_observation(name: str, arguments: dict[str, str]) -> None:
    observation = use(TRAIN[0], name, **arguments)
    assert observation.is_error and observation.text in ("No such file", "No such module")


def test_score_is_f1_with_one_item_a_line() -> None:
    row = TRAIN[0]
    gold = row["payload"]["gold"][0]
    wrong = next(name for _, name in row["payload"]["functions"] if name != gold)
    assert score(row, gold) == score(row, f"\n  {gold} \n\n{gold}") == 1.0
    assert score(row, f"{gold}\n{wrong}") == pytest.approx(2 / 3)
    assert score(row, f"{gold} {wrong}") == score(row, f"{gold}, {wrong}") == 0.0, "one item a line"
    assert score(row, wrong) == score(row, "") == score(row, None) == 0.0
