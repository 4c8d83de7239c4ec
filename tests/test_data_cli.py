"""`ppp data swe`: what is written, what is named as unusable, and that train and test share nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from test_func_loc import git
from test_patches import make_patch

import ppp.swe.prepare
from ppp.cli import main as ppp_main
from ppp.data import expand, load_task_rows
from ppp.preferences import SEEN
from ppp.swe import swe_cli
from ppp.swe.prepare import PROBLEM_KINDS, content_keys, group_rows, split_by_name, split_by_share
from ppp.swe.sources import HUB_SOURCES, RELEASED_BEGIN, RELEASED_END, describe_source, issue_in_prompt
from ppp.types import RecipeError

CORE = "".join(f"def f{number}():\n    x = {number}\n    return x\n\n\n" for number in range(20))


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repositories") / "acme+widgets"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "core.py").write_text(CORE)
    (folder / "old.py").write_text("print 'two'\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "old")
    git(folder, "tag", "old")
    return folder.parent


def issue(number: int = 1, **changes: Any) -> dict[str, Any]:
    edited = CORE.replace(f"    x = {number}\n", f"    x = {number}0\n")
    return {
        "instance_id": f"acme__widgets-{number}",
        "repo": "acme/widgets",
        "base_commit": "old",
        "problem_statement": f"f{number} is wrong.",
        "hints_text": "",
        "patch": make_patch(CORE, edited, "core.py"),
        "test_patch": make_patch("", f"def test_f{number}(): pass\n", "test_core.py"),
        "FAIL_TO_PASS": f'["test_core.py::test_f{number}"]',
        **changes,
    }


class Run:
    """One call of `ppp data swe` in a folder of its own."""

    def __init__(self, folder: Path, repositories: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.repositories, self._capsys = folder, repositories, capsys
        self.out = folder / "out"

    def __call__(self, rows: Sequence[Any] | Path | str, *options: str, with_repositories: bool = True) -> int:
        source = rows if isinstance(rows, Path | str) else self.write("issues.jsonl", rows)
        place = ["--repositories", str(self.repositories)] if with_repositories else []
        status = ppp_main(["data", "swe", str(source), str(self.out), *place, *options])
        self.stdout, self.stderr = self._capsys.readouterr()
        return status

    def write(self, name: str, rows: Sequence[Any]) -> Path:
        path = self.folder / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    def rows(self, split: str = "train") -> list[dict[str, Any]]:
        path = self.out / f"{split}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.out / "manifest.json").read_text())

    def errors(self) -> str:
        """What was complained about, without the bar."""
        return "\n".join(line for line in self.stderr.splitlines() if line.startswith("ppp data swe: "))


@pytest.fixture
def run(tmp_path: Path, repositories: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(tmp_path, repositories, capsys)


# ---------------------------------------------------------------- what is written


def test_a_data_set_becomes_tasks_that_a_recipe_can_train_on(run: Run) -> None:
    assert run([issue(n, vague_statement="Something is wrong.") for n in range(5)]) == 0
    path = run.out / "train.jsonl"
    assert f"train_tasks: {{func_loc: {{path: {path}}}}}" in run.stdout and "vaguenize" not in run.stdout
    loaded = load_task_rows("train_tasks", "func_loc", {"path": str(path)})
    tasks = expand(loaded, SEEN, seed=0)
    assert len(tasks) == 65
    assert [row["payload"]["gold_functions"] for row in loaded] == [[f"core.py:f{n}"] for n in range(5)]
    assert all("FAIL_TO_PASS" not in task.to_json() and "test_core" not in task.to_json() for task in tasks)
    evaluation = run.rows()[2]["payload"]["evaluation"]
    assert evaluation["FAIL_TO_PASS"] == ["test_core.py::test_f2"] and "+def test_f2" in evaluation["test_patch"]
    assert run.rows()[2]["payload"]["gold_files"] == ["core.py"]


def test_the_manifest_tells_what_was_made_of_what(run: Run) -> None:
    rows = [issue(1), issue(2, vague_statement="Wrong."), issue(3, patch=make_patch("a\n", "b\n", "new.txt"))]
    rows[2]["patch"] = rows[2]["patch"].replace("--- a/new.txt", "--- /dev/null")
    assert run([*rows, issue(4), issue(4), "{"], "--test_share", "0.5") == 1
    manifest = run.manifest
    counts = manifest["counts"]
    assert (counts["rows"], counts["issues"], counts["repeated"], counts["unlabelled"]) == (6, 4, 1, 1)
    assert counts["tasks"] == counts["train"] + counts["test"] == 3 and counts["without_vague_prompt"] == 2
    assert counts["problems"] == {"row": 1} and counts["repositories"] == {"acme/widgets": 3}
    assert manifest["arguments"]["rule"] == "edited" and manifest["versions"].keys() == {"ppp", "python", "unidiff"}
    for name, entry in manifest["files"].items():
        content = (run.out / name).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert (entry["num_bytes"], entry["num_rows"]) == (len(content), len(content.splitlines()))
    assert {path.name for path in run.out.iterdir()} == {*manifest["files"], "manifest.json"}
    before = (run.out / "manifest.json").read_bytes()
    assert run([*rows, issue(4), issue(4), "{"], "--test_share", "0.5", "--overwrite") == 1
    assert (run.out / "manifest.json").read_bytes() == before.replace(b'"overwrite": false', b'"overwrite": true')


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("edited", ["core.py:f1"]),
        ("edited+added", ["core.py:f1", "core.py:new"]),
        ("edited+added+classes", ["core.py:f1", "core.py:new", "core.py:New"]),
    ],
)
@pytest.mark.parametrize("labels", ["auto", "patch", "given"])
def test_labels_are_given_or_made_by_the_rule(run: Run, rule: str, expected: list[str], labels: str) -> None:
    new = CORE.replace("    x = 1\n", "    x = 2\n") + "def new():\n    pass\n\n\nclass New:\n    field = 1\n"
    row = issue(1, patch=make_patch(CORE, new, "core.py"))
    given = {"edited_functions": ["g.py:e"], "added_functions": ["g.py:a"], "edited_classes": ["g.py:C"]}
    assert run([row, {**issue(2), **given}], "--rule", rule, "--labels", labels, "--unlabelled", "keep") == 0
    own, other = (one["payload"]["gold_functions"] for one in run.rows())
    assert own == ([] if labels == "given" else expected)
    assert other == (["core.py:f2"] if labels == "patch" else ["g.py:e", "g.py:a", "g.py:C"][: rule.count("+") + 1])


def test_labels_that_are_given_need_no_repositories(run: Run) -> None:
    assert run([issue(1, edited_functions=["core.py:f1"])], with_repositories=False) == 0
    assert "repositories: DIR" in run.stdout and "source" not in run.rows()[0]["payload"]
    options = {"path": str(run.out / "train.jsonl"), "repositories": str(run.repositories)}
    assert load_task_rows("train_tasks", "func_loc", options)[0]["payload"]["commit"] == "old"


@pytest.mark.parametrize("setting", ["keep", "skip"])
def test_rows_without_a_label_are_kept_or_skipped_and_counted(run: Run, setting: str) -> None:
    rows = [issue(1), issue(2, patch=make_patch(CORE, "# new\n" + CORE, "core.py")), issue(3, patch=None)]
    assert run(rows, "--unlabelled", setting) == 0
    assert run.manifest["counts"]["unlabelled"] == 2 and "2 without a label" in run.stdout
    assert len(run.rows()) == (3 if setting == "keep" else 1)
    options = {"path": str(run.out / "train.jsonl"), "skip_empty_gold": True}
    assert len(load_task_rows("train_tasks", "func_loc", options)) == 1


def test_vague_forms_are_kept_on_demand_and_missing_ones_named(run: Run) -> None:
    rows = [issue(1, vague_statement="Wrong."), issue(2)]
    assert run(rows) == 0
    assert [row["vague_prompt"] for row in run.rows()] == ["Wrong.", None]
    assert "1 tasks have no vague prompt" in run.stdout and f"ppp vaguenize {run.out / 'train.jsonl'}" in run.stdout
    assert run(rows, "--vague", "none", "--overwrite") == 0
    assert [row["vague_prompt"] for row in run.rows()] == [None, None]


# ---------------------------------------------------------------- the released form


def released(row: Mapping[str, Any], vague: str, preferences: Sequence[str]) -> list[dict[str, Any]]:
    """Rows as the paper's release has them: one per preference with the vague text, and a precise one."""
    ability = "FuncLocEnv@" + json.dumps({**row, "source": "swe-gym"})
    rows = []
    for name in (*preferences, None):
        text = row["problem_statement"] if name is None else vague
        content = f"Look at this.\n{RELEASED_BEGIN}\n{text}\n{RELEASED_END}\nBe quick."
        index = f"vague+{name}+test-{row['instance_id']}" if name else f"precise+test-{row['instance_id']}"
        preference: dict[str, Any] = {"preference_name": name or "no_preference"}
        preference[name or "no_preference"] = {"preference": "short", "reward": "0.1"}
        extra = {"index": index, "is_vague": name is not None, "preference": preference}
        messages = [{"role": "system", "content": "You are."}, {"role": "user", "content": content}]
        rows.append({"ability": ability, "extra_info": extra, "prompt": messages, "data_source": "swe"})
    return rows


def test_the_released_parquet_comes_back_as_issues(run: Run) -> None:
    issues = [issue(n, edited_functions=[f"core.py:f{n}"]) for n in range(3)]
    texts = ["It fails.", f"It has {RELEASED_BEGIN} and {RELEASED_END} in it.", "Third."]
    rows = [
        row
        for number, text in enumerate(texts)
        for row in released(issues[number], text, ["no_ask", "capital", "json"])
    ]
    rows.append({**rows[0], "ability": "SearchEnv@{}"})
    path = run.folder / "released.parquet"
    Dataset.from_list(rows[::-1]).to_parquet(str(path))
    assert run(path) == 0
    assert {row["task_id"]: row["vague_prompt"] for row in run.rows()} == {
        one["instance_id"]: text for one, text in zip(issues, texts, strict=True)
    }
    assert (
        run([{**one, "vague_statement": text} for one, text in zip(issues, texts, strict=True)][::-1], "--overwrite")
        == 0
    )
    direct = run.rows()
    assert run(path, "--overwrite") == 0
    assert run.rows() == direct
    counts = run.manifest["counts"]
    assert (counts["rows"], counts["repeated"], counts["other_environments"]) == (13, 9, 1)


RELEASED_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no JSON": ({"ability": "FuncLocEnv@{"}, "ability: not valid JSON"),
    "a list": ({"ability": "FuncLocEnv@[]"}, "ability: expected a JSON object"),
    "no flag": ({"extra_info": {}}, "extra_info.is_vague is missing"),
    "no markers": ({"prompt": [{"role": "user", "content": "Do it."}]}, "prompt: no issue between"),
    "no messages": ({"prompt": None}, "prompt: no issue between"),
}


@pytest.mark.parametrize("name", RELEASED_FAULTS)
def test_a_damaged_released_row_is_named(run: Run, name: str) -> None:
    change, message = RELEASED_FAULTS[name]
    first, *_ = released(issue(1, edited_functions=["core.py:f1"]), "It fails.", ["no_ask"])
    assert run([{**first, **change}, issue(2)]) == 1
    assert f"ppp data swe: line 1: {message}" in run.stderr
    assert [row["task_id"] for row in run.rows()] == ["acme__widgets-2"]


def test_an_issue_is_read_up_to_the_last_marker_of_its_end() -> None:
    text = f"a {RELEASED_END} b {RELEASED_BEGIN} c"
    messages = [{"role": "user", "content": f"x{RELEASED_BEGIN}\n{text}\n{RELEASED_END}y"}]
    assert issue_in_prompt(messages) == text


# ---------------------------------------------------------------- bad input


def broken_repository(repositories: Path) -> dict[str, Any]:
    """An issue of a repository whose file is damaged on disk."""
    folder = repositories / "acme+broken"
    if not folder.exists():
        folder.mkdir()
        git(folder, "init", "-q")
        (folder / "core.py").write_text(CORE)
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", "old")
        git(folder, "tag", "old")
        name = git(folder, "rev-parse", "old:core.py")
        damaged = folder / ".git/objects" / name[:2] / name[2:]
        damaged.chmod(0o644)
        damaged.write_bytes(b"damaged")
    return issue(9, repo="acme/broken")


BAD_ISSUES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "not JSON": (lambda _: "{nonsense", "row", "line 2: not valid JSON"),
    "not an object": (lambda _: [1], "row", "line 2: a row must be a JSON object"),
    "no statement": (lambda _: issue(9, problem_statement=""), "row", "acme__widgets-9: line 2: problem_statement is"),
    "no id": (lambda _: issue(9, instance_id=None), "row", "line 2: instance_id is None"),
    "same id": (lambda _: issue(1, hints_text="!"), "row", "acme__widgets-1: line 2: this instance_id occurs already"),
    "labels": (lambda _: issue(9, edited_functions=["f"]), "row", "acme__widgets-9: line 2: edited_functions is ['f']"),
    "repository": (lambda _: issue(9, repo="acme/none"), "repository", "acme__widgets-9: repositories: no copy of"),
    "way out": (lambda _: issue(9, repo="../.."), "repository", "acme__widgets-9: repositories: '../..' is not"),
    "commit": (lambda _: issue(9, base_commit="f" * 40), "commit", "acme__widgets-9: payload.commit: cannot read"),
    "option": (lambda _: issue(9, base_commit="--all"), "commit", "acme__widgets-9: payload.commit: cannot read"),
    "damaged": (broken_repository, "commit", "acme__widgets-9: git cat-file failed"),
    "patch": (
        lambda _: issue(9, patch=make_patch("y = 1\n", "y = 2\n", "core.py")),
        "patch",
        "acme__widgets-9: core.py: hunk 1 (line 1) does not apply",
    ),
    "no patch": (lambda _: issue(9, patch="see above"), "patch", "acme__widgets-9: the patch names no file"),
    "no file": (
        lambda _: issue(9, patch=make_patch("y = 1\n", "y = 2\n", "gone.py")),
        "patch",
        "acme__widgets-9: gone.py: there is no such file at the base commit",
    ),
    "python": (
        lambda _: issue(9, patch=make_patch("print 'two'\n", "print 'three'\n", "old.py")),
        "python",
        "acme__widgets-9: old.py: not valid Python",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ISSUES)
def test_what_cannot_be_used_is_named_and_the_rest_goes_on(run: Run, name: str) -> None:
    make, kind, message = BAD_ISSUES[name]
    assert run([issue(1), make(run.repositories), issue(2)]) == 1
    assert [row["task_id"] for row in run.rows()] == ["acme__widgets-1", "acme__widgets-2"]
    first, last = run.errors().split("\n")
    assert first.startswith(f"ppp data swe: {message}")
    assert last.startswith(f"ppp data swe: 1 rows could not be used: 1 {PROBLEM_KINDS[kind]}; all are in ")
    assert [problem["kind"] for problem in run.manifest["problems"]] == [kind]


def test_every_kind_of_problem_has_a_case() -> None:
    assert {kind for _, kind, _ in BAD_ISSUES.values()} == PROBLEM_KINDS.keys()


def test_many_problems_are_counted_on_the_screen_and_listed_in_the_manifest(run: Run) -> None:
    assert run([issue(n % 20, instance_id=f"i{n}", repo="acme/none") for n in range(50)]) == 1
    assert len(run.errors().split("\n")) == swe_cli.MAX_SHOWN_PROBLEMS + 1
    assert len(run.manifest["problems"]) == 50 and not run.rows()


MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown rule": (["--rule", "all"], "rule: 'all' is unknown; allowed: edited, edited+added"),
    "unknown labels": (["--labels", "mine"], "labels: 'mine' is unknown; allowed: auto, given, patch"),
    "unlabelled": (["--unlabelled", "drop"], "unlabelled: 'drop' is not allowed; allowed: skip, keep"),
    "vague": (["--vague", "model"], "vague: 'model' is not allowed; allowed: given, none"),
    "share": (["--test_share", "1.5"], "test_share: 1.5 is not allowed; must be between 0 and 1"),
    "no number": (["--test_share", "half"], "argument --test_share: invalid float value: 'half'"),
    "unknown option": (["--shard", "3"], "unrecognized arguments: --shard 3"),
    "split of a file": (["--split", "test"], "split: 'test' is not allowed; a file has no splits"),
    "no folder": (["--repositories", "/nowhere"], "repositories: '/nowhere' is not allowed; must be a folder"),
    "no such names": (["--test_instances", "none.txt"], "test_instances: 'none.txt' is not allowed"),
    "no such file": (["--without", "none.jsonl"], "SOURCE: 'none.jsonl' is not a file of issues"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_call_is_one_sentence(run: Run, name: str) -> None:
    options, message = MISTAKES[name]
    assert run([issue(1)], *options) == 2
    assert run.stderr.startswith(f"ppp data swe: {message}") and run.stderr.count("\n") == 1
    assert not run.out.exists()


def test_unusable_sources_and_outputs_are_one_sentence(run: Run) -> None:
    (run.folder / "empty.jsonl").write_text("\n")
    (run.folder / "bad.parquet").write_text("no parquet")
    for source, message in (
        (run.folder / "none.jsonl", "is not a file of issues"),
        (run.folder, "is not a file of issues; allowed: a file ending in .jsonl, .json, .parquet"),
        (run.folder / "empty.jsonl", "holds no row"),
        (run.folder / "bad.parquet", "is not a parquet file"),
    ):
        assert run(source) == 2
        assert message in run.stderr and run.stderr.count("\n") == 1
    assert run([issue(1)], with_repositories=False) == 2
    assert "repositories: missing; 1 of 1 issues have no label" in run.stderr
    run.out.write_text("a file")
    assert run([issue(1)]) == 2 and "OUT: " in run.stderr


def test_an_earlier_result_is_replaced_only_on_demand(run: Run) -> None:
    assert run([issue(n) for n in range(4)], "--test_share", "0.5") == 0
    before = (run.out / "train.jsonl").read_bytes()
    assert run([issue(9)]) == 2
    assert "holds train.jsonl already" in run.stderr and (run.out / "train.jsonl").read_bytes() == before
    assert run([issue(9)], "--overwrite") == 0
    assert len(run.rows()) == 1 and not (run.out / "test.jsonl").exists()


def test_an_interrupt_and_a_full_disk_leave_the_earlier_result(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run([issue(n) for n in range(4)], "--test_share", "0.5") == 0
    before = {path.name: path.read_bytes() for path in run.out.iterdir()}

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ppp.swe.prepare, "edited_functions", interrupt)
        assert run([issue(9)], "--overwrite") == 130
    assert "interrupted; nothing was written" in run.stderr
    (run.out / "manifest.json.partial").mkdir()  # the last of the files cannot be written
    assert run([issue(9)], "--overwrite") == 2 and "cannot be written to" in run.stderr
    (run.out / "manifest.json.partial").rmdir()
    assert {path.name: path.read_bytes() for path in run.out.iterdir()} == before


# ---------------------------------------------------------------- train and test


def task(name: str, text: str, patch: str) -> dict[str, Any]:
    return {"task_id": name, "precise_prompt": text, "payload": {"evaluation": {"patch": patch}}}


def test_what_has_text_or_fix_in_common_is_on_one_side() -> None:
    # Every third issue repeats the text of another one, every fourth its fix; some are linked only through a third.
    rows = [task(f"t{n}", f"text {n // 3 if n % 3 else n}", f"fix {n // 4 if n % 4 else n}") for n in range(200)]
    for seed in range(5):
        train, test = split_by_share(rows, 0.3, seed)
        assert len(train) + len(test) == 200 and len(test) <= 60
        keys = [{key for row in part for key in content_keys(row)} for part in (train, test)]
        assert keys[0].isdisjoint(keys[1])
    assert sorted(position for group in group_rows(rows) for position in group) == list(range(200))


def test_a_share_is_met_exactly_where_nothing_is_shared_and_depends_on_the_seed_alone() -> None:
    rows = [task(f"t{n}", f"text {n}", f"fix {n}") for n in range(100)]
    splits = [split_by_share(rows, 0.25, seed)[1] for seed in (0, 1)]
    assert [len(test) for test in splits] == [25, 25] and splits[0] != splits[1]
    assert {row["task_id"] for row in split_by_share(rows[::-1], 0.25, 0)[1]} == {row["task_id"] for row in splits[0]}
    assert split_by_share(rows, 0, 0) == (rows, []) and split_by_share(rows, 1, 0) == ([], rows)


def test_small_differences_of_spacing_and_case_do_not_hide_a_twin() -> None:
    rows = [task("a", "It  Fails\n", "x"), task("b", "it fails", "y"), task("c", "It works", " x ")]
    assert group_rows(rows) == [[0, 1, 2]]
    train, test, twins = split_by_name(rows, {"b"})
    assert ([row["task_id"] for row in test], [row["task_id"] for row in train], twins) == (["b"], ["c"], ["a"])


@pytest.mark.parametrize("form", ["{}", '{{"instance_id": "{}"}}'])
def test_test_instances_are_the_test_set_and_their_twins_are_left_out(run: Run, form: str) -> None:
    rows = [issue(1), issue(2), issue(3), issue(4, problem_statement="F2 is  wrong.")]
    names = run.write("names.txt", [form.format("acme__widgets-2"), form.format("acme__elsewhere-1"), ""])
    assert run(rows, "--test_instances", str(names)) == 0
    assert [row["task_id"] for row in run.rows("test")] == ["acme__widgets-2"]
    assert [row["task_id"] for row in run.rows()] == ["acme__widgets-1", "acme__widgets-3"]
    assert run.manifest["counts"]["left_out"] == {"without": 0, "same_as_test": 1, "unknown_test_instances": 1}
    assert "1 left out because their text or fix is that of a test task" in run.stdout


@pytest.mark.parametrize("form", ["issues", "tasks"])
def test_what_is_in_another_file_is_left_out(run: Run, form: str) -> None:
    others = [issue(1), issue(3, instance_id="elsewhere-3")]
    path = run.write("others.jsonl", others)
    if form == "tasks":
        assert run(others) == 0
        path = (run.out / "train.jsonl").rename(run.folder / "others_tasks.jsonl")
    assert run([issue(n) for n in range(5)], "--without", str(path), "--overwrite") == 0
    assert [row["task_id"] for row in run.rows()] == [f"acme__widgets-{n}" for n in (0, 2, 4)]
    assert "2 left out because they are in the files of --without" in run.stdout


@pytest.mark.parametrize("name", HUB_SOURCES)
def test_short_names_stand_for_data_sets_on_the_hub(name: str) -> None:
    data_set, split = HUB_SOURCES[name]
    assert describe_source(name, None) == {"data_set": data_set, "split": split}
    assert describe_source(name, "dev")["split"] == "dev"


def test_a_data_set_that_is_nowhere_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str, split: str) -> None:
        raise FileNotFoundError(f"Couldn't find {name}")

    monkeypatch.setattr("ppp.swe.sources.load_dataset", nowhere)
    assert run("acme/issues") == 2
    assert run.stderr.startswith("ppp data swe: SOURCE: 'acme/issues' (split 'train') is neither a file nor a data set")
    with pytest.raises(RecipeError, match="split"):
        describe_source(str(run.write("x.jsonl", [])), "train")
