"""What stands in rows of software issues, and how they become tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_func_loc import git

from ppp.data import expand, load_task_rows
from ppp.preferences import SEEN
from ppp.swe.rows import EVALUATION, check_issue, find_repository, func_loc_task_rows, make_task_row
from ppp.types import RecipeError
from ppp.vaguenizer.gold_names import find_gold, gold_names

PATCH = "--- a/core.py\n+++ b/core.py\n@@ -2 +2 @@\n-    return 1\n+    return SecretFixMarker()\n"


@pytest.fixture
def repositories(tmp_path: Path) -> Path:
    folder = tmp_path / "repositories" / "acme__widgets"
    folder.mkdir(parents=True)
    git(folder, "init", "-q")
    (folder / "core.py").write_text("def run():\n    return 1\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "old")
    git(folder, "tag", "old")
    return folder.parent


def issue(**changes: Any) -> dict[str, Any]:
    return {
        "instance_id": "acme__widgets-1",
        "repo": "acme/widgets",
        "base_commit": "old",
        "problem_statement": "run() fails.",
        "vague_statement": "It fails.",
        "hints_text": "It is the return.",
        "patch": PATCH,
        "test_patch": "--- a/t.py\n+++ b/t.py\n@@ -1 +1 @@\n-x\n+SecretTestMarker\n",
        "FAIL_TO_PASS": '["t.py::SecretTestName"]',
        "PASS_TO_PASS": ["t.py::other"],
        **changes,
    }


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def task_row(repositories: Path | None, **changes: Any) -> dict[str, Any]:
    source = None if repositories is None else str(repositories / "acme__widgets")
    return make_task_row(check_issue(issue(**changes)), ["core.py:run"], source)


def test_a_task_row_loads_by_its_path_and_becomes_thirteen_sessions(tmp_path: Path, repositories: Path) -> None:
    path = write(tmp_path / "train.jsonl", task_row(repositories))
    (row,) = load_task_rows("train_tasks", "func_loc", {"path": str(path)})
    tasks = expand([row], SEEN, seed=0)
    assert len(tasks) == 13 and [task.is_precise for task in tasks].count(True) == 1
    assert {task.prompt for task in tasks} == {"It fails.", "run() fails."}
    assert tasks[0].payload["gold_functions"] == ["core.py:run"]


def test_the_fix_and_its_tests_stay_in_the_file(tmp_path: Path, repositories: Path) -> None:
    row = task_row(repositories)
    assert row["payload"][EVALUATION]["patch"] == PATCH
    assert row["payload"][EVALUATION]["FAIL_TO_PASS"] == ["t.py::SecretTestName"]
    outside = {**row, "payload": {name: value for name, value in row["payload"].items() if name != EVALUATION}}
    assert "Secret" not in json.dumps(outside)
    for given in (row, issue(edited_functions=["core.py:run"])):
        path = write(tmp_path / "train.jsonl", given)
        options = {"path": str(path), "repositories": str(repositories)}
        (loaded,) = load_task_rows("train_tasks", "func_loc", options)
        for task in expand([loaded], SEEN, seed=0):
            assert "Secret" not in task.to_json()


def test_the_names_in_the_fix_are_kept_out_of_vague_prompts(repositories: Path) -> None:
    patch = PATCH.replace("    return SecretFixMarker()", "def secret_fix_helper():")
    names = gold_names(task_row(repositories, patch=patch))
    assert find_gold("I would add secret_fix_helper there.", names)
    assert not find_gold("It fails.", names)


def test_repositories_named_in_the_recipe_win_over_those_in_the_row(tmp_path: Path, repositories: Path) -> None:
    row = task_row(repositories)
    row["payload"]["source"] = "/gone/with/the/machine"
    path = write(tmp_path / "train.jsonl", row, task_row(None, instance_id="two"))
    loaded = list(func_loc_task_rows(path, repositories))
    assert {one["payload"]["source"] for one in loaded} == {str(repositories / "acme__widgets")}


def test_a_row_that_does_not_say_where_its_repository_is_needs_repositories(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", task_row(None))
    with pytest.raises(RecipeError, match=r"^train_tasks\.func_loc\.repositories: missing; .*line 1 is of 'acme/wid"):
        load_task_rows("train_tasks", "func_loc", {"path": str(path)})


def test_issues_and_task_rows_may_stand_in_one_file(tmp_path: Path, repositories: Path) -> None:
    path = write(tmp_path / "all.jsonl", task_row(None), issue(instance_id="two", edited_functions=["core.py:run"]))
    rows = list(func_loc_task_rows(path, repositories))
    assert [row["task_id"] for row in rows] == ["acme__widgets-1", "two"]
    assert rows[0]["payload"] == rows[1]["payload"]


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "payload": ({"task_id": "t", "payload": 3}, "payload is '3'"),
    "no gold": ({"task_id": "t", "payload": {}}, "payload.gold_functions is None"),
    "gold is a text": ({"task_id": "t", "payload": {"gold_functions": "a.py:f"}}, "payload.gold_functions is 'a.py:f'"),
    "no path": ({"task_id": "t", "payload": {"gold_functions": ["f"]}}, r"payload.gold_functions is \['f'\]"),
    "empty gold": ({"task_id": "t", "payload": {"gold_functions": []}}, "edited_functions is empty"),
    "no repo": ({"task_id": "t", "payload": {"gold_functions": ["a.py:f"]}}, "payload.repo is None"),
    "tests": (issue(FAIL_TO_PASS="t.py::test"), "FAIL_TO_PASS is 't.py::test'"),
    "tests of numbers": (issue(PASS_TO_PASS=[1]), r"PASS_TO_PASS is \[1\]"),
    "added": (issue(added_functions="f"), "added_functions is 'f'"),
    "patch": (issue(patch=["x"]), r"patch is \['x'\]"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_refused_by_line_and_field(name: str, tmp_path: Path, repositories: Path) -> None:
    row, message = BAD_ROWS[name]
    path = write(tmp_path / "rows.jsonl", task_row(None), row)
    with pytest.raises(RecipeError, match=f"line 2: {message}"):
        list(func_loc_task_rows(path, repositories))


def test_rows_without_a_function_are_left_out_on_demand(tmp_path: Path, repositories: Path) -> None:
    empty = task_row(repositories, instance_id="two")
    empty["payload"]["gold_functions"] = []
    path = write(tmp_path / "rows.jsonl", empty, task_row(repositories))
    assert [row["task_id"] for row in func_loc_task_rows(path, skip_empty_gold=True)] == ["acme__widgets-1"]


@pytest.mark.parametrize("repo", ["../secret", "/etc", "acme/../../secret", ".."])
def test_the_name_of_a_repository_leads_nowhere_else(repo: str, repositories: Path) -> None:
    (repositories.parent / "secret" / ".git").mkdir(parents=True)
    with pytest.raises(RecipeError, match="is not a repository's name"):
        find_repository(repo, repositories)
