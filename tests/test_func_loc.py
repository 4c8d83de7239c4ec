from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from git_history import git

from ppp.environments import environment_class
from ppp.environments.func_loc import TOOLSETS, FuncLocEnvironment, func_loc_f1
from ppp.environments.func_loc_read import LIMITS, FuncLocRead
from ppp.environments.source_tree import _cached_tree
from ppp.prompts import load_prompt
from ppp.swe.rows import find_repository, func_loc_task_rows, load_func_loc_tasks
from ppp.types import InfrastructureError, Observation, RecipeError, Task, ToolCall

CORE = "class Core:\n    def run(self):\n        raise ValueError('frobnication failed')\n"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with an old commit (tag `old`) that the agent is to read, a newer one, and a dirty work tree."""
    folder = tmp_path_factory.mktemp("repositories") / "acme+widgets"
    (folder / "src").mkdir(parents=True)
    git(folder, "init", "-q")
    (folder / "src/core.py").write_text(CORE)
    (folder / "src/many.py").write_text("".join(f"value_{number} = {number}\n" for number in range(1, 451)))
    (folder / "src/wide.py").write_text("wide = '" + "x" * 1000 + "'\n")
    (folder / "src/empty.py").write_text("")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "old")
    git(folder, "tag", "old")
    (folder / "src/core.py").write_text("def fixed():\n    pass\n")
    git(folder, "commit", "-q", "-a", "-m", "new")
    (folder / "src/core.py").write_text("dirty = True\n")
    return folder


def make_task(**payload: Any) -> Task:
    return Task("t", "func_loc", "It fails.", "core.py fails.", "no_preference", payload)


def play(task: Task, call: ToolCall, options: Mapping[str, Any] | None = None) -> Observation:
    async def session() -> Observation:
        async with FuncLocRead(task, options) as environment:
            return await environment.step(call)

    return asyncio.run(session())


@pytest.fixture
def task(repository: Path) -> Task:
    return make_task(source=str(repository), commit="old", gold_functions=["src/core.py:Core.run"])


# ---------------------------------------------------------------- score


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("a.py:f", ["a.py:f"], 1.0),
        ("a.py:f\nb.py:g", ["a.py:f"], 2 / 3),
        ("a.py:f", ["a.py:f", "b.py:C.g"], 2 / 3),
        ("a.py:f\na.py:f\n\n", ["a.py:f"], 1.0),
        ("a.py:g", ["a.py:f"], 0.0),
        ("a.py:F", ["a.py:f"], 0.0),
        ("a.py", ["a.py:f"], 0.0),
        ("a.py:f, b.py:g", ["a.py:f", "b.py:g"], 0.0),
        ("  a.py:f\t\r\n", ["a.py:f"], 1.0),
        ("/a.py:f", ["a.py:f"], 1.0),
        ("///a.py:f", ["a.py:f"], 1.0),
        ("/testbed/a.py:f", ["a.py:f"], 1.0),
        ("testbed//a.py:f", ["a.py:f"], 1.0),
        ("workspace/a.py:f", ["a.py:f"], 1.0),
        ("testbed/testbed/a.py:f", ["a.py:f"], 0.0),
        ("testbed/testbed/a.py:f", ["testbed/testbed/a.py:f"], 1.0),
        ("workspace/testbed/a.py:f", ["a.py:f"], 0.0),
        ("testbed/workspace/a.py:f", ["a.py:f"], 0.0),
        ("mytestbed/a.py:f", ["a.py:f"], 0.0),
        ("./a.py:f", ["a.py:f"], 1.0),
        ("p//q/../a.py:f", ["p/a.py:f"], 1.0),
        ("../a.py:f", ["a.py:f"], 0.0),
        ("", [], 1.0),
        (" \n \n", [], 1.0),
        ("", ["a.py:f"], 0.0),
        ("a.py:f", [], 0.0),
        (None, ["a.py:f"], 0.0),
        (None, [], 0.0),
    ],
)
@pytest.mark.parametrize("accept_bullets", [True, False])
def test_score_is_the_exact_f1_of_normalised_lines(
    answer: str | None, gold: list[str], expected: float, accept_bullets: bool
) -> None:
    assert func_loc_f1(answer, gold, accept_bullets) == pytest.approx(expected)


@pytest.mark.parametrize(
    "answer",
    ["- a.py:f", "* a.py:f", "• a.py:f", "1. a.py:f", "12) a.py:f", "`a.py:f`", "- `a.py:f`", "1. `/testbed/a.py:f`",
     "```\na.py:f\n```", "`- a.py:f`"],
)  # fmt: skip
def test_bullets_and_backticks_count_only_where_they_are_accepted(answer: str) -> None:
    assert func_loc_f1(answer, ["a.py:f"]) == 1.0
    assert func_loc_f1(answer, ["a.py:f"], accept_bullets=False) < 1.0


def test_a_name_that_begins_like_a_bullet_is_left_alone() -> None:
    names = ["-dash.py:f", "1.py:f", "*star.py:f"]
    assert func_loc_f1("\n".join(names), names) == 1.0


def test_the_environment_scores_by_its_option(task: Task) -> None:
    for options, expected in (({}, 1.0), ({"accept_bullets": False}, 0.0)):
        assert asyncio.run(FuncLocRead(task, options).score("- src/core.py:Core.run")) == expected
    assert asyncio.run(FuncLocRead(task).score(None)) == 0.0


# ---------------------------------------------------------------- tools


def test_the_tools_read_the_old_commit_and_not_the_dirty_work_tree(task: Task) -> None:
    listing = play(task, ToolCall("list_dir", {"path": "."}))
    assert listing == Observation("src/")
    found = play(task, ToolCall("search_code", {"query": "frobnication"}))
    assert found == Observation("src/core.py:3: raise ValueError('frobnication failed')")
    seen = play(task, ToolCall("view", {"path": "/src/core.py"}))
    lines = [f"{number:>5} {line}" for number, line in enumerate(CORE.splitlines(), start=1)]
    assert seen == Observation("\n".join(["src/core.py, lines 1 to 3 of 3", *lines]))


def test_a_folder_is_read_as_it_is(repository: Path) -> None:
    task = make_task(source=str(repository), gold_functions=["a.py:f"])
    assert "dirty = True" in play(task, ToolCall("view", {"path": "src/core.py"})).text
    assert play(task, ToolCall("list_dir", {"path": ""})).text == "src/"


@pytest.mark.parametrize(
    ("arguments", "first", "last", "note"),
    [
        ({}, 1, 200, "[lines 1 to 200 of 450; at most 200 are shown]"),
        ({"start_line": 300}, 300, 450, None),
        ({"start_line": 300.0, "end_line": 301.0}, 300, 301, None),
        ({"start_line": 7, "end_line": 7}, 7, 7, None),
        ({"start_line": 440, "end_line": 9999}, 440, 450, None),
        ({"start_line": 10, "end_line": 400}, 10, 209, "[lines 10 to 209 of 450; at most 200 are shown]"),
    ],
)
def test_view_shows_the_lines_asked_for_up_to_a_limit(
    task: Task, arguments: dict[str, Any], first: int, last: int, note: str | None
) -> None:
    seen = play(task, ToolCall("view", {"path": "src/many.py", **arguments}))
    header, *lines = seen.text.split("\n")
    notes = [line for line in lines if line.startswith("[")]
    assert not seen.is_error
    assert header == f"src/many.py, lines {first} to {last} of 450"
    assert notes == ([] if note is None else [note])
    assert [line.split()[0] for line in lines if line not in notes] == [str(n) for n in range(first, last + 1)]


@pytest.mark.parametrize("name", LIMITS)
def test_every_tool_keeps_to_its_limit_and_says_what_it_left_out(task: Task, name: str) -> None:
    call = {
        "max_view_lines": ToolCall("view", {"path": "src/many.py"}),
        "max_search_results": ToolCall("search_code", {"query": "value_"}),
        "max_list_entries": ToolCall("list_dir", {"path": "src"}),
    }[name]
    lines = [line for line in play(task, call, {name: 3}).text.split("\n") if ", lines 1" not in line]
    assert len(lines) == 4
    assert lines[-1].startswith("[")


def test_a_wide_line_is_cut_with_a_note(task: Task) -> None:
    for call in (ToolCall("view", {"path": "src/wide.py"}), ToolCall("search_code", {"query": "xxx"})):
        seen = play(task, call).text
        assert len(seen) < 400
        assert "[709 more]" in seen


@pytest.mark.parametrize(
    "call",
    [
        ToolCall("view", {"path": "src/none.py"}),
        ToolCall("view", {"path": "../secret"}),
        ToolCall("view", {"path": "src"}),
        ToolCall("view", {"path": "src/core.py", "start_line": 0}),
        ToolCall("view", {"path": "src/core.py", "start_line": -5, "end_line": -1}),
        ToolCall("view", {"path": "src/core.py", "start_line": 3, "end_line": 2}),
        ToolCall("view", {"path": "src/core.py", "start_line": 4}),
        ToolCall("list_dir", {"path": "src/core.py"}),
        ToolCall("list_dir", {"path": "/.."}),
        ToolCall("search_code", {"query": ""}),
        ToolCall("search_code", {"query": "two\nlines"}),
        ToolCall("search_code", {"query": "x", "path": "nowhere"}),
    ],
)
def test_the_agents_mistake_is_an_observation(task: Task, call: ToolCall) -> None:
    seen = play(task, call)
    assert seen.is_error
    assert seen.text
    specs = {spec.name: spec for spec in FuncLocRead.tools}
    jsonschema.validate(dict(call.arguments), dict(specs[call.name].parameters))


def test_nothing_found_and_nothing_there_are_no_mistakes(task: Task) -> None:
    assert play(task, ToolCall("search_code", {"query": "nothing like it"})) == Observation("[no matches]")
    assert not play(task, ToolCall("view", {"path": "src/empty.py"})).is_error


def test_missing_git_is_infrastructure_and_never_an_observation(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    _cached_tree.cache_clear()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InfrastructureError):
        play(task, ToolCall("list_dir", {"path": ""}))


def test_many_sessions_at_once_share_one_tree(task: Task) -> None:
    async def session(number: int) -> tuple[int, str]:
        async with FuncLocRead(task) as environment:
            seen = await environment.step(ToolCall("view", {"path": "src/many.py", "start_line": number}))
            return id(environment._tree), seen.text.split("\n")[1].split()[1]

    async def sessions() -> list[tuple[int, str]]:
        return await asyncio.gather(*(session(number) for number in range(1, 21)))

    _cached_tree.cache_clear()
    results = asyncio.run(sessions())
    assert len({tree for tree, _ in results}) == 1
    assert [name for _, name in results] == [f"value_{number}" for number in range(1, 21)]


# ---------------------------------------------------------------- what is checked before training


def test_the_environment_is_in_the_table_and_its_prompt_exists() -> None:
    assert environment_class("func_loc", {"toolset": "read"}) is FuncLocRead
    for toolset in TOOLSETS:
        found = environment_class("func_loc", {"toolset": toolset})
        assert issubclass(found, FuncLocEnvironment)
        assert "$preference" in load_prompt(found.system_prompt)
    assert environment_class("func_loc") is environment_class("func_loc", {"toolset": "shell"})
    with pytest.raises(
        RecipeError, match=r"environment_options\.func_loc\.toolset: 'pen' is unknown; allowed: shell, read"
    ):
        environment_class("func_loc", {"toolset": "pen"})


@pytest.mark.parametrize("name", [*LIMITS, "accept_bullets"])
@pytest.mark.parametrize("value", [0, -1, "5", 2.5, None])
def test_a_bad_option_is_refused_by_name_and_value(name: str, value: object) -> None:
    with pytest.raises(RecipeError, match=rf"environment_options\.func_loc\.{name}: {value!r}.*allowed"):
        FuncLocEnvironment.check_options({"toolset": "read", name: value})


def test_options_that_are_no_options_are_refused_and_good_ones_pass() -> None:
    FuncLocEnvironment.check_options({"toolset": "read", **dict.fromkeys(LIMITS, 1), "accept_bullets": False})
    with pytest.raises(RecipeError, match=r"max_view_line: unknown option; allowed .*max_view_lines"):
        FuncLocEnvironment.check_options({"toolset": "read", "max_view_line": 3})
    with pytest.raises(RecipeError, match="max_view_lines"):
        FuncLocEnvironment.check_options({"toolset": "read", "max_view_lines": True})
    with pytest.raises(RecipeError, match="max_view_lines: unknown option"):
        FuncLocEnvironment.check_options({"max_view_lines": 3})


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("source", {"source": None}),
        ("source", {"source": "/nowhere/at/all"}),
        ("commit", {"commit": "f" * 40}),
        ("commit", {"commit": ""}),
        ("commit", {"commit": None}),
        ("commit", {"commit": 7}),
        ("gold_functions", {"gold_functions": None}),
        ("gold_functions", {"gold_functions": []}),
        ("gold_functions", {"gold_functions": "a.py:f"}),
        ("gold_functions", {"gold_functions": ["a.py"]}),
    ],
)
def test_a_task_that_cannot_be_played_is_refused_by_field(task: Task, field: str, change: dict[str, Any]) -> None:
    FuncLocEnvironment.check_task(task)
    with pytest.raises(RecipeError, match=rf"task 't'.*payload\.{field}.*allowed"):
        FuncLocEnvironment.check_task(make_task(**{**task.payload, **change}))


# ---------------------------------------------------------------- real issues


def issue(**changes: Any) -> dict[str, Any]:
    return {
        "instance_id": "acme__widgets-1",
        "repo": "acme/widgets",
        "base_commit": "old",
        "problem_statement": "frobnication fails in Core.run",
        "vague_statement": "Something fails.",
        "hints_text": "",
        "edited_functions": ["src/core.py:Core.run"],
        **changes,
    }


@pytest.fixture
def write_issues(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: object) -> Path:
        path = tmp_path / "issues.jsonl"
        texts = [row if isinstance(row, str | bytes) else json.dumps(row) for row in rows]
        path.write_bytes(b"".join((text if isinstance(text, bytes) else text.encode()) + b"\n" for text in texts))
        return path

    return write


def test_an_issue_becomes_a_row_with_both_prompts(write_issues: Callable[..., Path], repository: Path) -> None:
    path = write_issues(issue(), "", issue(instance_id="acme__widgets-2", vague_statement=None))
    first, second = func_loc_task_rows(path, repository.parent)
    assert first == {
        "task_id": "acme__widgets-1",
        "environment": "func_loc",
        "vague_prompt": "Something fails.",
        "precise_prompt": "frobnication fails in Core.run",
        "payload": {
            "source": str(repository),
            "commit": "old",
            "gold_functions": ["src/core.py:Core.run"],
            "hints_text": "",
            "repo": "acme/widgets",
        },
    }
    assert second["vague_prompt"] is None


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [("both", "1:precise 1:vague 2:precise"), ("vague", "1:vague"), ("precise", "1:precise 2:precise")],
)
def test_tasks_are_loaded_and_can_be_played(
    write_issues: Callable[..., Path], repository: Path, prompts: str, expected: str
) -> None:
    path = write_issues(issue(), issue(instance_id="acme__widgets-2", vague_statement=None))
    tasks = load_func_loc_tasks(path, {"acme/widgets": str(repository)}, prompts=prompts)
    assert [task.task_id for task in tasks] == [f"acme__widgets-{name}" for name in expected.split()]
    assert all(task.is_precise == task.task_id.endswith(":precise") for task in tasks)
    for task in tasks:
        FuncLocEnvironment.check_task(task)
        assert Task.from_json(task.to_json()) == task


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", "not valid JSON"),
        (b'{"instance_id": "caf\xe9"}', "not valid JSON"),
        ("[]", "a row must be a JSON object"),
        (issue(instance_id=None), "instance_id"),
        (issue(repo=""), "repo"),
        (issue(base_commit=3), "base_commit"),
        (issue(problem_statement=" "), "problem_statement"),
        (issue(vague_statement=["x"]), "vague_statement"),
        (issue(hints_text=1), "hints_text"),
        (issue(edited_functions=None), "edited_functions"),
        (issue(edited_functions=["core.py"]), "edited_functions"),
        (issue(edited_functions=[]), "edited_functions is empty"),
    ],
)
def test_a_bad_row_is_refused_by_file_line_and_field(
    write_issues: Callable[..., Path], repository: Path, row: object, message: str
) -> None:
    path = write_issues(issue(), row)
    with pytest.raises(RecipeError, match=f"issues.jsonl, line 2: {message}"):
        load_func_loc_tasks(path, repository.parent)


def test_rows_without_gold_can_be_left_out_on_demand(write_issues: Callable[..., Path], repository: Path) -> None:
    path = write_issues(issue(edited_functions=[]), issue(instance_id="two"))
    tasks = load_func_loc_tasks(path, repository.parent, prompts="precise", skip_empty_gold=True)
    assert [task.task_id for task in tasks] == ["two:precise"]


def test_missing_files_repositories_and_prompts_are_refused(
    write_issues: Callable[..., Path], repository: Path, tmp_path: Path
) -> None:
    path = write_issues(issue(vague_statement=None))
    for options in ({"path": 7}, {"path": path, "repositories": ["a"]}):
        with pytest.raises(RecipeError, match="allowed"):
            list(func_loc_task_rows(**{"repositories": repository.parent, **options}))
    with pytest.raises(RecipeError, match=r"nowhere\.jsonl"):
        load_func_loc_tasks(tmp_path / "nowhere.jsonl", repository.parent)
    with pytest.raises(RecipeError, match="'sharp' is unknown; allowed: both, vague, precise"):
        load_func_loc_tasks(path, repository.parent, prompts="sharp")
    with pytest.raises(RecipeError, match="no issue with a vague prompt"):
        load_func_loc_tasks(path, repository.parent, prompts="vague")
    with pytest.raises(RecipeError, match=r"no copy of 'acme/widgets'.*allowed"):
        load_func_loc_tasks(path, tmp_path)
    with pytest.raises(RecipeError, match="no entry for 'acme/widgets'"):
        load_func_loc_tasks(path, {"a/b": "x"})


@pytest.mark.parametrize(
    "name", ["acme/widgets", "acme+widgets", "acme__widgets", "widgets", "acme+widgets.git", "widgets.git"]
)
@pytest.mark.parametrize("bare", [True, False])
def test_a_repository_is_found_under_its_usual_names(tmp_path: Path, name: str, bare: bool) -> None:
    place = tmp_path / name / ("objects" if bare else ".git")
    place.mkdir(parents=True)
    assert find_repository("acme/widgets", tmp_path) == str((tmp_path / name).resolve())


@pytest.mark.skipif("PPP_TEST_DATA" not in os.environ, reason="PPP_TEST_DATA is not set: no real issues at hand")
def test_the_real_issues_load() -> None:
    path = Path(os.environ["PPP_TEST_DATA"]) / "swe" / "funcloc_dev.jsonl"
    repositories = {"pytest-dev/pytest": "pytest", "sphinx-doc/sphinx": "sphinx"}
    rows = list(func_loc_task_rows(path, repositories, skip_empty_gold=True))
    assert len(rows) >= 80
    assert sum(row["vague_prompt"] is not None for row in rows) >= 50
    with pytest.raises(RecipeError, match="edited_functions is empty"):
        load_func_loc_tasks(path, repositories)
