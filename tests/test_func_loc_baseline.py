from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from git_history import git

from ppp.baselines import build_policy
from ppp.baselines.func_loc_read import ReadAgent, score_matches
from ppp.baselines.func_loc_shell import ShellAgent, find_sources, score_files
from ppp.baselines.func_loc_text import best_functions, read_functions, weigh_clues
from ppp.codec import Codec
from ppp.engines.scripted import ScriptedEngine
from ppp.rollout import RolloutJob, RolloutPool
from ppp.types import RecipeError, StopReason, Task, Trajectory

SCRIPT = Path(__file__).parent.parent / "scripts" / "func_loc_baseline.py"

FILES = {
    "setup.py": "import widgets\n",
    "widgets/__init__.py": "",
    "widgets/storage.py": '''\
"""Where widgets are kept."""


class Storage:
    def __init__(self, folder):
        self.folder = folder

    @property
    def size(self):
        return len(self.folder)

    def load_widget(self, name):
        def opened():
            return open(self.folder / name)

        return opened().read()

    async def save_widget(
        self,
        name,
    ):
        """Write one widget, with the permissions of its folder."""
        self.folder.write(name, permissions=0o600)


def purge(folder):
    return folder.clear()
''',
    "widgets/colours/__init__.py": "",
    "widgets/colours/mixer.py": "def mix(first, second):\n    return first + second\n",
    "tests/test_storage.py": "def test_save_widget():\n    save_widget = permissions = Storage\n",
}
PRECISE = "Storage.save_widget ignores permissions\n\nAfter `save_widget()` the file has permissions 0o600."
VAGUE = "Something is wrong with the rights of files."


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose work tree no longer has any of the files that the commit has."""
    folder = tmp_path_factory.mktemp("repositories") / "acme__widgets"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"], ["tag", "base"]):
        git(folder, *arguments)
    for name in FILES:
        (folder / name).unlink()
    return folder


@pytest.fixture
def task(repository: Path) -> Task:
    gold = ["widgets/storage.py:Storage.save_widget"]
    payload = {"source": str(repository), "commit": "base", "gold_functions": gold}
    return Task("t", "func_loc", PRECISE, PRECISE, "no_preference", payload)


@pytest.fixture(params=["shell", "read"])
def toolset(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def play(codec: Codec, toolset: str, tmp_path: Path) -> Callable[..., Trajectory]:
    limits = runpy.run_path(str(SCRIPT))["LIMITS"]
    own = {"toolset": "shell", "trees": str(tmp_path / "trees")} if toolset == "shell" else {"toolset": "read"}

    def play(task: Task, ask: bool = False, **options: Any) -> Trajectory:
        agent = {"shell": ShellAgent, "read": ReadAgent}[toolset](ask=ask)
        environment_options = {"func_loc": {**own, **options}}
        engine = ScriptedEngine(codec, agent)
        pool = RolloutPool(engine, codec, limits, environment_options=environment_options)
        try:
            return pool.run([RolloutJob(task, 0, 0)], step=0)[0]
        finally:
            pool.close()

    return play


def calls(trajectory: Trajectory) -> list[tuple[str, dict[str, Any]]]:
    return [(turn.call.name, dict(turn.call.arguments)) for turn in trajectory.turns if turn.call is not None]


def test_the_agent_finds_a_function_that_the_issue_describes(play: Callable[..., Trajectory], task: Task) -> None:
    trajectory = play(task)
    assert trajectory.error is None
    assert trajectory.stop_reason is StopReason.FINISHED
    assert trajectory.final_answer == "widgets/storage.py:Storage.save_widget"
    assert trajectory.productivity == 1.0
    assert not any(turn.is_error for turn in trajectory.turns)


def test_the_agent_looks_neither_at_the_payload_nor_at_the_precise_prompt(
    play: Callable[..., Trajectory], task: Task
) -> None:
    other = replace(task, precise_prompt="mix", payload={**task.payload, "gold_functions": ["x.py:mix"]})
    assert calls(play(task)) == calls(play(other))
    assert play(other).productivity == 0.0


@pytest.mark.parametrize("prompt", ["", "Nothing here is of any use to anybody!", "`" * 9, "\n\n#\n", "a.b.c.d " * 500])
def test_the_agent_finishes_whatever_the_issue_says(play: Callable[..., Trajectory], task: Task, prompt: str) -> None:
    trajectory = play(replace(task, prompt=prompt))
    assert trajectory.stop_reason is StopReason.FINISHED


def test_the_agent_copes_with_tight_limits_of_the_tools(
    play: Callable[..., Trajectory], task: Task, toolset: str
) -> None:
    tight = {
        "shell": {"max_output_chars": 60, "max_line_chars": 30},
        "read": {"max_view_lines": 5, "max_search_results": 2, "max_list_entries": 3},
    }
    trajectory = play(task, **tight[toolset])
    assert trajectory.stop_reason is StopReason.FINISHED
    assert not any(turn.is_error for turn in trajectory.turns)


def test_an_agent_that_asks_uses_the_answer(play: Callable[..., Trajectory], task: Task) -> None:
    vague = replace(task, prompt=VAGUE, precise_prompt="It broke.\nThe error message names save_widget.")
    silent, asking = play(vague), play(vague, ask=True)
    assert (silent.questions, silent.productivity) == ([], 0.0)
    assert len(asking.questions) == 1
    assert asking.answers[0].text == "The error message names save_widget."
    assert asking.productivity == 1.0


def test_functions_are_told_by_indentation_with_closures_in_their_outermost_function() -> None:
    lines = dict(enumerate(FILES["widgets/storage.py"].splitlines(), start=1))
    functions = {function.name: function.lines for function in read_functions("s.py", lines)}
    assert list(functions) == [
        "Storage.__init__",
        "Storage.size",
        "Storage.load_widget",
        "Storage.save_widget",
        "purge",
    ]
    assert any("def opened" in line for line in functions["Storage.load_widget"])
    assert any("0o600" in line for line in functions["Storage.save_widget"])
    assert not any("def purge" in line for line in functions["Storage.save_widget"])
    assert read_functions("s.py", {}) == []


def test_nested_classes_are_part_of_the_name() -> None:
    source = ["class A:", "    class B:", "        def f(self): pass", "    def g(self): pass", "def h(): pass"]
    names = [function.name for function in read_functions("s.py", dict(enumerate(source)))]
    assert names == ["A.B.f", "A.g", "h"]


def test_clues_weigh_by_kind_and_place() -> None:
    text = "crash in parseTree\n\nThe loader dislikes `quoted_name` and plain_name.\n```\nfenced_name\n```\n"
    clues = weigh_clues(text + "## Environment\nnot_a_clue 1.2\n## Trace\n" + 'File "pkg/mod.py", line 3, in framed\n')
    assert clues["parseTree"] > clues["quoted_name"] > clues["plain_name"] > clues["fenced_name"] > 0
    assert clues["plain_name"] > clues["loader"]
    assert clues["framed"] > clues["plain_name"]
    assert "not_a_clue" not in clues
    assert "parseTree" not in weigh_clues(text, ignored=["parseTree"])


def test_a_search_that_found_too_much_says_nothing_of_files() -> None:
    few = score_matches("a.py:1: x\nb.py:2: x\nnotes.rst:3: x")
    assert few.keys() == {"a.py", "b.py"}
    assert few["a.py"] < score_matches("a.py:1: x")["a.py"]
    assert score_matches("a.py:1: x\n[only the first 1 matches are shown]") == {}
    assert score_matches("[no matches]") == {}


def test_packages_at_the_top_and_in_src_are_the_sources() -> None:
    inside = ["pkg/__init__.py", "pkg/sub/__init__.py", "pkg/sub/a.py", "src/other/__init__.py", "src/other/b.py"]
    roots, paths = find_sources([*inside, "setup.py", "deep/er/x/__init__.py", "README.md"])
    assert (roots, paths) == (["pkg", "src/other"], inside)
    assert find_sources(["a.py", "b/c.py", "[1 lines with 9 characters are left out here]"]) == ([], ["a.py", "b/c.py"])


def test_a_word_in_few_files_points_to_them_more_than_one_in_many() -> None:
    found = "== rare\n./a.py\n== common\na.py\nb.py\nb.rst\n== everywhere\n" + "x.py\n" * 61
    scores = score_files(found, {"rare": 1.0, "common": 1.0, "everywhere": 1.0})
    assert scores.keys() == {"a.py", "b.py"}
    assert scores["a.py"] > 2 * scores["b.py"] > 0


@pytest.mark.parametrize(
    ("name", "options", "fits"),
    [("func_loc", {}, True), ("func_loc", {"toolset": "shell"}, True), ("func_loc", {"toolset": "read"}, False),
     ("func_loc_read", {}, False), ("func_loc_read", {"toolset": "read"}, True)],
)  # fmt: skip
def test_an_agent_is_refused_where_the_tools_are_not_those_that_it_knows(
    name: str, options: dict[str, Any], fits: bool
) -> None:
    if fits:
        build_policy(name, ["func_loc"], {"func_loc": options})
    else:
        with pytest.raises(RecipeError, match=f"'{name}' knows other tools.*toolset"):
            build_policy(name, ["func_loc"], {"func_loc": options})


def test_no_functions_make_no_answer() -> None:
    assert best_functions([], {"x": 1.0}, 2) == []


# ---------------------------------------------------------------- the script


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def issues(tmp_path: Path) -> Path:
    row = {
        "instance_id": "acme__widgets-1",
        "repo": "acme/widgets",
        "base_commit": "base",
        "problem_statement": PRECISE,
        "vague_statement": VAGUE,
        "edited_functions": ["widgets/storage.py:Storage.save_widget"],
    }
    rows = [row, {**row, "instance_id": "acme__widgets-2", "vague_statement": None}]
    rows += [{**row, "instance_id": "acme__widgets-3", "edited_functions": []}]
    path = tmp_path / "issues.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_script_prints_a_table_and_ends_with_json(
    issues: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    arguments = ["--issues", str(issues), "--repositories", str(repository.parent)]
    assert main(arguments) == 0
    *lines, last = capsys.readouterr().out.strip().split("\n")
    assert json.loads(last)["f1"] == {"precise": 100.0, "precise, of issues with a vague form": 100.0, "vague": 0.0}
    assert "| acme/widgets | precise | 100.0 | 100.0 - 100.0 | 2 of 2 |" in "\n".join(lines)
    assert main([*arguments, "--limit", "1", "--toolset", "read", "--ask"]) == 0
    printed = capsys.readouterr().out
    assert "| all | precise | 100.0 | 100.0 - 100.0 | 1 of 1 |" in printed
    assert json.loads(printed.strip().split("\n")[-1])["toolset"] == "read"


def test_the_interval_is_the_same_in_every_run_and_holds_the_mean() -> None:
    interval = runpy.run_path(str(SCRIPT))["interval"]
    scores = [0.0] * 30 + [100.0] * 10
    low, high = interval(scores)
    assert (low, high) == interval(scores)
    assert 10 < low < 17.5 and 32.5 < high < 42  # 25 +- 2 standard errors of 6.8
    assert interval([50.0]) == (50.0, 50.0)


def test_the_script_refuses_bad_input_in_one_sentence(
    issues: Path, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    issues.write_text(issues.read_text().replace('"base"', '"gone"'))
    for arguments in (
        ["--issues", str(tmp_path / "none.jsonl"), "--repositories", str(repository.parent)],
        ["--issues", str(issues), "--repositories", str(tmp_path)],
        ["--issues", str(issues), "--repositories", str(repository.parent)],
    ):
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert captured.out == ""
