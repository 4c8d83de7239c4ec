"""`ppp data mine`: which commits become tasks, what stands in them, and that the fix is not in their trees."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from git_history import git, random_history
from test_patches import make_patch

from ppp.cli import main as ppp_main
from ppp.data import expand, load_task_rows
from ppp.preferences import SEEN
from ppp.swe import mine, mine_cli
from ppp.swe.labels import RULES, edited_functions
from ppp.swe.mine import Miner
from ppp.swe.mine_filters import FILTERS, MineOptions
from ppp.swe.mine_history import Ancestry, check_repository, read_history
from ppp.swe.mine_texts import (
    NOISE,
    TRIVIAL,
    Seen,
    changelog_entry,
    is_changelog,
    is_refactoring,
    is_revert,
    is_trivial,
    issue_text,
    pull_request,
    without_noise,
)
from ppp.swe.mirrors import run_git
from ppp.swe.patches import parse_patch
from ppp.types import RecipeError

DAY = 86_400
START = 1_500_000_000
TOPICS = ("widgets", "parsers", "caches", "signals", "tables", "queues", "buffers", "themes", "locks", "routes")


def functions(*changed: int, mark: str = "new") -> str:
    """A module of ten functions, some of them changed."""
    return "".join(f"def f{n}():\n    return {f'{mark!r}' if n in changed else n}\n\n\n" for n in range(10))


@dataclass
class History:
    """Commits that are written into a repository all at once; each has the files that it says, and its parents'."""

    stream: list[str] = field(default_factory=list)
    num: int = 0

    def commit(
        self,
        message: str,
        files: Mapping[str, str | None],
        *parents: int,
        author: str = "Ann <ann@example.org>",
        time: int | None = None,
    ) -> int:
        """Its number, from 1; without parents it stands on the commit before it."""
        self.num += 1
        moment = START + self.num * DAY if time is None else time
        lines = [f"commit refs/heads/main\nmark :{self.num}\nauthor {author} {moment} +0000"]
        lines += [f"committer {author} {moment} +0000\ndata {len(message.encode())}\n{message}"]
        mothers = parents or ((self.num - 1,) if self.num > 1 else ())
        lines += [f"{'merge' if index else 'from'} :{mother}" for index, mother in enumerate(mothers)]
        for path, text in files.items():
            lines.append(f"D {path}" if text is None else f"M 100644 inline {path}\ndata {len(text.encode())}\n{text}")
        self.stream.append("\n".join(lines) + "\n")
        return self.num

    def begin(self) -> None:
        self.commit("Initial import", {"app.py": functions(), "src/widgets.py": functions(), "tests/test_app.py": ""})

    def fix(self, number: int, *parents: int, **about: Any) -> int:
        """A commit that makes a task; `number` from 0 to 9 tells them apart."""
        topic = TOPICS[number]
        files = {f"src/{topic}.py": functions(number), f"tests/test_{topic}.py": f"# tests of {topic}\n"}
        return self.commit(message_of(number), files, *parents, **about)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        git(folder, "init", "--quiet", "--bare", "--initial-branch=main", "--template=")
        git(folder, "fast-import", "--quiet", stdin="".join(self.stream).encode())
        return folder


def message_of(number: int) -> str:
    topic = TOPICS[number]
    return f"{topic.capitalize()} are lost when nothing was said about {topic}\n\nSee what {topic} do without {topic}."


def of_fixes(*numbers: int) -> History:
    """A repository with sources for every topic, and fixes in this order."""
    history = History()
    topics = {f"src/{topic}.py": functions() for topic in TOPICS}
    history.commit("Initial import", {"app.py": functions(), "CHANGES.rst": "Changes\n", **topics})
    for number in numbers:
        history.fix(number)
    return history


def mined(folder: Path, **options: Any) -> Miner:
    miner = Miner(folder, MineOptions(**options))
    while not miner.is_finished:
        miner.step()
    return miner


# ---------------------------------------------------------------- filters

GOOD = "Odd numbers are refused by the reader of forms"
FILES = {"app.py": functions(1), "tests/test_app.py": "# odd\n"}


def _other(history: History, message: str = GOOD, files: Mapping[str, str | None] = FILES, **about: Any) -> None:
    history.commit(message, files, **about)


def _merge(message: str) -> Callable[[History], None]:
    def make(history: History) -> None:
        before = history.num
        branch = history.commit(GOOD, FILES, before)
        other = history.commit("Something else entirely", {"README": "more\n"}, before)
        history.commit(message, FILES, other, branch)

    return make


def _again(history: History) -> None:
    _other(history)
    _other(history, f"{GOOD}, always", {"app.py": functions(1, 2), "tests/test_app.py": "# even\n"})


def _same_patch(history: History) -> None:
    _other(history)
    history.commit("Put the old state back for now", {"app.py": functions(), "tests/test_app.py": ""})
    _other(history, "Another reader has trouble when it is given what cannot be halved")


# Filter -> (what makes a commit that it takes away, options, how many it takes, how many tasks there are besides one).
CASES: dict[str, tuple[Callable[[History], None], dict[str, Any], int, int]] = {
    "no_parent": (lambda h: None, {}, 1, 0),
    "merge": (_merge("Merge branch 'forms' into main"), {}, 1, 1),
    "part": (_merge("Merge pull request #12 from ann/forms\n\nThe reader of forms refuses odd numbers"), {}, 1, 1),
    "period": (lambda h: _other(h, time=START), {"since": "2017-07-15"}, 1, 0),
    "bot": (lambda h: _other(h, author="renovate[bot] <x@example.org>"), {}, 1, 0),
    "no_source": (lambda h: _other(h, files={"doc/conf.py": "a = 1\n", "tests/test_app.py": "# odd\n"}), {}, 1, 0),
    "no_test": (lambda h: _other(h, files={"app.py": functions(1)}), {}, 1, 0),
    "many_files": (lambda h: _other(h, files={**FILES, "b.py": "", "c.py": ""}), {"max_files": 2}, 1, 0),
    "revert": (lambda h: _other(h, 'Revert "Odd numbers are refused by the reader"'), {}, 1, 0),
    "trivial": (lambda h: _other(h, "Fix a typo in the words of the reader of forms"), {}, 1, 0),
    "refactoring": (lambda h: _other(h, "Refactor the reader of forms and odd numbers"), {}, 1, 0),
    "short": (lambda h: _other(h, "Odd numbers (fixes #1234)\n\nSigned-off-by: Ann B. C. Dee <a@b.c>"), {}, 1, 0),
    "many_lines": (lambda h: _other(h, files={**FILES, "app.py": functions(1, 2)}), {"max_lines": 3}, 1, 0),
    "without": (_other, {"without": ("KNOWN",)}, 1, 0),
    "not_python": (lambda h: _other(h, files={**FILES, "old.py": "print 'two'\n"}), {}, 1, 0),
    "no_label": (lambda h: _other(h, files={**FILES, "app.py": functions() + "X = 1\n"}), {}, 1, 0),
    "many_functions": (lambda h: _other(h, files={**FILES, "app.py": functions(1, 2)}), {"max_functions": 1}, 1, 0),
    "leak": (lambda h: _other(h, "The reader `f1` refuses odd numbers"), {"leaks": "drop"}, 1, 0),
    "same_text": (_again, {}, 1, 1),
    "same_patch": (_same_patch, {}, 1, 2),
}


@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_takes_away_what_it_says_and_counts_it(name: str, tmp_path: Path) -> None:
    make, options, num_removed, num_more = CASES[name]
    history = History()
    history.begin()
    history.fix(0)
    make(history)
    if "without" in options:
        known = {"instance_id": "known-1", "patch": make_patch(functions(), functions(1), "app.py")}
        (tmp_path / "known.jsonl").write_text(json.dumps(known) + "\n")
        options = {"without": (str(tmp_path / "known.jsonl"),)}
    miner = mined(history.write(tmp_path / "repo"), **options)
    assert miner.removed[name] == num_removed, miner.removed
    assert len(miner.rows) == 1 + num_more and not miner.problems
    assert sum(miner.removed.values()) + len(miner.rows) == miner.num_commits
    assert any(row["precise_prompt"].startswith("Widgets are lost") for row in miner.rows)


@pytest.mark.parametrize("name", ["many_files", "many_lines", "many_functions", "period", "leak"])
def test_filters_with_a_limit_let_through_what_keeps_to_it(name: str, tmp_path: Path) -> None:
    make, _, _, _ = CASES[name]
    history = History()
    history.begin()
    make(history)
    assert mined(history.write(tmp_path / "repo")).removed[name] == 0


def test_the_period_begins_with_since_and_ends_before_until(tmp_path: Path) -> None:
    folder = of_fixes(*range(5)).write(tmp_path / "repo")
    moments = [datetime.fromtimestamp(START + (2 + number) * DAY, UTC).isoformat() for number in range(5)]
    rows = mined(folder, since=moments[1], until=moments[3]).rows
    assert [row["precise_prompt"] for row in rows] == [message_of(1), message_of(2)]
    assert [row["mined"]["date"] for row in rows] == moments[1:3]


def test_merges_can_be_none_so_that_each_commit_is_looked_at(tmp_path: Path) -> None:
    history = History()
    history.begin()
    _merge("Merge pull request #12 from ann/forms\n\nThe reader of forms refuses odd numbers")(history)
    folder = history.write(tmp_path / "repo")
    joined, dropped = mined(folder), mined(folder, merges="drop")
    assert [row["mined"]["is_pull_request"] for row in joined.rows + dropped.rows] == [True, False]
    assert joined.rows[0]["precise_prompt"] == "The reader of forms refuses odd numbers"
    assert dropped.rows[0]["precise_prompt"] == GOOD and dropped.removed["merge"] == 1


def test_what_a_merge_brought_in_is_what_git_says_it_is(tmp_path: Path) -> None:
    num_merges = 0
    for seed in range(6):
        folder = random_history(tmp_path / str(seed), seed, num_commits=25).path
        names = git(folder, "for-each-ref", "--format=%(refname)", "refs/heads/", "refs/tags/").split()
        for ref in names[:6]:
            commits = read_history(check_repository(folder), ref)
            ancestry = Ancestry(commits)
            assert [c.id for c in commits] == git(folder, "rev-list", "--date-order", ref).split()
            for merge in (commit for commit in commits if len(commit.parents) > 1):
                num_merges += 1
                expected = git(folder, "rev-list", *merge.parents[1:], f"^{merge.parents[0]}").split()
                assert ancestry.brought_in(merge) == set(expected)
    assert num_merges > 20


# ---------------------------------------------------------------- rows


def random_repository(folder: Path, seed: int) -> tuple[Path, dict[str, str]]:
    """A repository of methods and functions that are edited at random, and the subject of each commit's label."""
    rng = random.Random(seed)
    modules = {f"src/m{n}.py": {f"C{k}.g{j}": "0" for k in range(3) for j in range(3)} for n in range(3)}

    def text(parts: Mapping[str, str]) -> str:
        lines = []
        for name, value in parts.items():
            owner, _, method = name.partition(".")
            lines += [] if f"class {owner}:" in lines else [f"class {owner}:"]
            lines += [f"    def {method}(self):", f"        # a number in {name}", f"        return {value}", ""]
        return "\n".join(lines)

    history = History()
    history.commit("Initial import", {path: text(parts) for path, parts in modules.items()})
    labels = {}
    for number in range(12):
        path = rng.choice(list(modules))
        name = rng.choice(list(modules[path]))
        modules[path][name] = str(rng.random())
        words = " ".join("".join(rng.choices("abcdefghij", k=7)) for _ in range(8))
        history.commit(words, {path: text(modules[path]), "tests/test_m.py": f"# {number}\n"})
        labels[words] = f"{path}:{name}"
    return history.write(folder), labels


@pytest.mark.parametrize("seed", range(5))
def test_the_label_is_what_was_edited_and_the_base_commit_does_not_have_the_change(seed: int, tmp_path: Path) -> None:
    folder, labels = random_repository(tmp_path / "repo", seed)
    rows = mined(folder).rows
    assert len(rows) == len(labels)
    work = tmp_path / "work"
    git(tmp_path, "clone", "--quiet", str(folder), str(work))
    for row in rows:
        base, commit = row["payload"]["commit"], row["mined"]["commit"]
        assert git(folder, "rev-parse", f"{commit}^1") == base
        assert row["payload"]["gold_functions"] == [labels[row["precise_prompt"]]]
        assert git(folder, "log", "--format=%s", base).split("\n").count(row["precise_prompt"]) == 0
        git(work, "checkout", "--quiet", "--detach", base)
        evaluation = row["payload"]["evaluation"]
        git(work, "apply", "--index", stdin=(evaluation["patch"] + evaluation["test_patch"]).encode())
        assert git(work, "write-tree") == git(folder, "rev-parse", f"{commit}^{{tree}}")
        git(work, "reset", "--quiet", "--hard")


@pytest.mark.parametrize("rule", RULES)
def test_labels_are_those_of_the_patch_in_the_row(rule: str, tmp_path: Path) -> None:
    history = of_fixes(0, 1)
    changed = functions(2) + "class New:\n    def run(self):\n        return 1\n"
    history.commit(GOOD, {"app.py": changed, "src/caches.py": functions(7), "tests/test_app.py": "# odd\n"})
    folder = history.write(tmp_path / "repo")
    rows = mined(folder, rule=rule).rows
    assert len(rows) == 3
    for row in rows:
        base = row["payload"]["commit"]
        labels = edited_functions(
            row["payload"]["evaluation"]["patch"],
            lambda path, base=base: run_git(["show", f"{base}:{path}"], folder, what=path).decode(),
            rule,
        )
        assert row["payload"]["gold_functions"] == list(labels.functions)
        assert row["payload"]["added_functions"] == list(labels.added)
        assert row["payload"]["edited_classes"] == list(labels.classes)
    assert ("app.py:New.run" in rows[2]["payload"]["gold_functions"]) == (rule != "edited")


def test_tests_are_in_a_patch_of_their_own_and_everything_else_in_the_other(tmp_path: Path) -> None:
    history = of_fixes()
    tests = {"tests/data/in.txt": "x\n", "tests/test_app.py": "# odd\n"}
    history.commit(GOOD, {"app.py": functions(3), "CHANGES.rst": "More\n", **tests})
    (row,) = mined(history.write(tmp_path / "repo")).rows
    evaluation = row["payload"]["evaluation"]
    for name, expected in (("patch", ["CHANGES.rst", "app.py"]), ("test_patch", list(tests))):
        assert [change.path for change in parse_patch(evaluation[name])] == expected
    assert row["payload"]["gold_files"] == ["CHANGES.rst", "app.py"]


def test_renamed_files_and_odd_names_are_found_under_the_old_name(tmp_path: Path) -> None:
    history = of_fixes()
    history.commit("More sources", {"src/grün und blau.py": functions(), "src/old name.py": functions(mark="x")})
    moved = {"src/old name.py": None, "src/new.py": functions(4), "src/grün und blau.py": functions(5)}
    history.commit(GOOD, {**moved, "tests/test_app.py": "# odd\n"})
    (row,) = mined(history.write(tmp_path / "repo")).rows
    assert row["payload"]["gold_functions"] == ["src/grün und blau.py:f5", "src/old name.py:f4"]


def test_sources_and_tests_are_where_the_options_say(tmp_path: Path) -> None:
    history = of_fixes(0)
    history.commit(GOOD, {"app.py": functions(1), "checks/a.py": "x = 1\n"})
    folder = history.write(tmp_path / "repo")
    assert len(mined(folder).rows) == 1
    assert len(mined(folder, test_pattern=r"^(checks|tests)/").rows) == 2
    assert len(mined(folder, test_pattern=r"^(checks|tests)/", source_folders=("src/",)).rows) == 1


def test_a_text_that_names_all_functions_is_kept_masked_or_dropped(tmp_path: Path) -> None:
    history = of_fixes(0)
    history.commit("`f1` and f2() refuse odd numbers that were fine", {**FILES, "app.py": functions(1, 2)})
    history.commit(
        "`f3` refuses odd numbers as well as another", {"app.py": functions(1, 2, 3, 4), "tests/test_app.py": ""}
    )
    folder = history.write(tmp_path / "repo")
    kept, masked, dropped = (mined(folder, leaks=leaks).rows for leaks in ("keep", "mask", "drop"))
    assert [row["mined"]["names"] for row in kept] == ["none", "all", "some"]
    assert kept[1]["precise_prompt"].startswith("`f1` and f2()") and len(dropped) == 2
    assert "f1" not in masked[1]["precise_prompt"] and "f2" not in masked[1]["precise_prompt"]
    assert masked[2]["precise_prompt"] == kept[2]["precise_prompt"]


def test_a_message_gets_the_entry_it_adds_and_the_title_it_refers_to(tmp_path: Path) -> None:
    history = of_fixes(0)
    branch = history.commit("Forms for #77", {"a.txt": "a\n"}, 2)
    title = "Readers of forms should not be picky about numbers"
    merge = history.commit(f"Merge pull request #77 from ann/forms\n\n{title}", {"a.txt": "a\n"}, 2, branch)
    entry = "Changes\n\n* #77: Halves of numbers are accepted again, as they were in the first version.\n"
    history.commit("Odd numbers, see #77", {**FILES, "CHANGES.rst": entry}, merge)
    rows = mined(history.write(tmp_path / "repo")).rows
    assert rows[-1]["precise_prompt"].split("\n\n") == [
        "Odd numbers",
        title,
        "Halves of numbers are accepted again, as they were in the first version.",
    ]
    assert rows[-1]["mined"]["text_from"] == ["message", "pull_request", "changelog"]


# ---------------------------------------------------------------- the command


class Run:
    """One call of `ppp data mine`."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.out, self._capsys = folder / "out", capsys

    def __call__(self, repository: Path | str, *options: str) -> int:
        status = ppp_main(["data", "mine", str(repository), str(self.out), *options])
        self.stdout, self.stderr = self._capsys.readouterr()
        return status

    def rows(self, split: str = "train") -> list[dict[str, Any]]:
        path = self.out / f"{split}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.out / "manifest.json").read_text())

    def contents(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.out.iterdir()}


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(tmp_path, capsys)


def everything(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_repository_becomes_tasks_that_a_recipe_can_train_on(run: Run, tmp_path: Path) -> None:
    folder = of_fixes(*range(6)).write(tmp_path / "acme+things.git")
    before = everything(folder)
    assert run(folder, "--test_share", "0.34") == 0
    assert everything(folder) == before
    path = run.out / "train.jsonl"
    assert f"train_tasks: {{func_loc: {{path: {path}}}}}" in run.stdout and f"ppp vaguenize {path}" in run.stdout
    loaded = load_task_rows("train_tasks", "func_loc", {"path": str(path)})
    tasks = expand(loaded, SEEN, seed=0)
    assert len(tasks) == len(loaded) == 4 and all("mined" not in task.to_json() for task in tasks)
    assert all("+def" not in task.to_json() and "tests/test_" not in task.to_json() for task in tasks)
    for number, row in enumerate(loaded):
        assert row["payload"]["gold_functions"] == [f"src/{TOPICS[number]}.py:f{number}"]
        assert row["precise_prompt"] == message_of(number) and row["payload"]["repo"] == "acme/things"
        assert row["payload"]["hints_text"] == "" and row["payload"]["source"] == str(folder)
        assert row["vague_prompt"] is None and row["task_id"].startswith("acme__things-")
    counts = run.manifest["counts"]
    assert (counts["commits"], counts["tasks"], counts["train"], counts["test"]) == (7, 6, 4, 2)
    assert list(counts["removed"]) == list(FILTERS) and counts["removed"]["no_parent"] == 1
    for name, entry in run.manifest["files"].items():
        assert entry["sha256"] == hashlib.sha256((run.out / name).read_bytes()).hexdigest()


def test_no_test_task_is_part_of_what_a_training_task_stands_on(run: Run, tmp_path: Path) -> None:
    history = of_fixes(0, 1, 2)
    history.fix(3, 2, time=START)  # a branch, with clocks that are wrong
    history.fix(4, 5, time=START + 900 * DAY)
    history.commit("Merge branch 'other'", {}, 4, 6, time=START + 5)
    history.fix(5, time=START + 2)
    history.fix(6, time=START + 1)
    folder = history.write(tmp_path / "repo")
    for share in ("0.3", "0.5", "0.7"):
        assert run(folder, "--test_share", share, "--overwrite") == 0
        train, test = run.rows(), run.rows("test")
        assert len(test) == round(float(share) * 7) and len(train) + len(test) == 7
        for row in train:
            known = git(folder, "rev-list", row["mined"]["commit"]).split()
            assert not {other["mined"]["commit"] for other in test} & set(known)


def test_a_draw_is_a_part_of_all_tasks_and_depends_on_the_seed_only(run: Run, tmp_path: Path) -> None:
    folder = of_fixes(*range(10)).write(tmp_path / "repo")
    assert run(folder) == 0
    every = {row["task_id"]: row for row in run.rows()}
    drawn = []
    for seed in ("1", "1", "2"):
        assert run(folder, "--max_tasks", "4", "--seed", seed, "--overwrite") == 0
        assert all(every[row["task_id"]] == row for row in run.rows()) and "6 not looked at" in run.stdout
        drawn.append([row["task_id"] for row in run.rows()])
    assert drawn[0] == drawn[1] != drawn[2] and all(len(names) == 4 for names in drawn)


def test_fixes_of_a_test_set_are_left_out_also_where_more_is_done_with_them(run: Run, tmp_path: Path) -> None:
    history = of_fixes(*range(4))
    history.commit(GOOD, {"app.py": functions(1, 2, 3), "src/themes.py": functions(4), "tests/test_app.py": "# odd\n"})
    folder = history.write(tmp_path / "repo")
    assert run(folder, "--test_share", "0.4") == 0
    held_out = [row["mined"]["commit"] for row in run.rows("test")]
    patch = make_patch(functions(), functions(4), "src/themes.py")
    (tmp_path / "issues.jsonl").write_text(json.dumps({"patch": patch, "problem_statement": "x"}) + "\n")
    tasks = (run.out / "test.jsonl").rename(tmp_path / "tasks.jsonl")
    assert run(folder, "--without", str(tmp_path / "issues.jsonl"), "--overwrite") == 0
    assert [row["precise_prompt"] for row in run.rows()] == [message_of(number) for number in range(4)]
    assert run(folder, "--without", str(tasks), "--overwrite") == 0
    assert len(held_out) == 2 and len(run.rows()) == 3
    assert not {row["mined"]["commit"] for row in run.rows()} & set(held_out)


def _interrupt_after(num_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    step = Miner.step

    def interrupted(self: Miner) -> int:
        steps.append(1)
        if len(steps) == num_steps:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    monkeypatch.setattr(Miner, "step", interrupted)


@pytest.mark.parametrize("options", [(), ("--max_tasks", "5"), ("--leaks", "mask")])
def test_an_interrupted_run_keeps_what_it_has_and_ends_up_with_the_same_files(
    options: Sequence[str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mine, "CHUNK", 2)
    history = of_fixes(0)
    for word in ("again", "", "always", "sometimes"):
        if not word:
            for number in range(1, 6):
                history.fix(number)
            continue
        history.commit(
            f"{GOOD}, as if they were not there {word}", {"app.py": functions(1, mark=word), "tests/test_app.py": word}
        )
    folder = history.write(tmp_path / "repo")
    assert run(folder, *options, "--test_share", "0.3") == 0
    whole = run.contents()
    assert run.manifest["counts"]["removed"]["same_text"] == 2 or options[:1] == ("--max_tasks",)
    _interrupt_after(2, monkeypatch)
    assert run(folder, *options, "--test_share", "0.3", "--overwrite") == mine_cli.INTERRUPTED
    assert run.manifest["interrupted"] and run.manifest["counts"]["examined"] == 4
    num_removed = run.manifest["counts"]["removed"]["same_text"]
    assert len(run.rows()) + len(run.rows("test")) == 4 - num_removed and "the same call goes on" in run.stderr
    assert run(folder, *options, "--test_share", "0.4") == 2 and "--overwrite" in run.stderr
    assert run(folder, *options, "--test_share", "0.3") == 0
    again = run.contents()
    assert again.keys() == whole.keys()
    assert all(again[name] == whole[name] for name in whole if name != "manifest.json")
    assert run.manifest["counts"] == json.loads(whole["manifest.json"])["counts"]
    assert run(folder, *options, "--test_share", "0.3") == 2  # it is finished, and not to be replaced


def test_an_interruption_before_the_first_commit_writes_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = of_fixes(0).write(tmp_path / "repo")

    def reading(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(mine, "read_history", reading)
    assert run(folder) == mine_cli.INTERRUPTED and not run.out.exists() and "nothing was written" in run.stderr


# ---------------------------------------------------------------- bad input


def _shallow(folder: Path) -> Path:
    of_fixes(0, 1).write(folder / "whole")
    git(folder, "clone", "--quiet", "--bare", "--depth=1", f"file://{folder / 'whole'}", str(folder / "shallow"))
    return folder / "shallow"


def _partial(folder: Path) -> Path:
    source = of_fixes(0, 1).write(folder / "whole")
    git(source, "config", "extensions.partialClone", "origin")
    git(source, "config", "remote.origin.promisor", "true")
    return source


def _empty(folder: Path) -> Path:
    folder.mkdir()
    git(folder, "init", "--quiet")
    return folder


def _plain_folder(folder: Path) -> Path:
    (folder / "inner").mkdir(parents=True)
    return folder / "inner"


BAD_REPOSITORIES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "nowhere", "REPO: "),
    "no repository": (_plain_folder, "is not a git repository"),
    "shallow": (_shallow, "is a shallow clone"),
    "partial": (_partial, "is a partial clone"),
    "empty": (_empty, "ref: "),
    "no commit of the kind": (lambda folder: of_fixes().write(folder / "repo"), "none of the 1 commits"),
}


@pytest.mark.parametrize("name", BAD_REPOSITORIES)
def test_a_repository_that_cannot_be_mined_is_named(name: str, run: Run, tmp_path: Path) -> None:
    make, expected = BAD_REPOSITORIES[name]
    assert run(make(tmp_path / "bad")) == 2
    assert expected in run.stderr and "bad" in run.stderr and not run.out.exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--rule", "all"),
        ("--merges", "both"),
        ("--leaks", "some"),
        ("--since", "yesterday"),
        ("--until", "2020-13-01"),
        ("--max_tasks", "0"),
        ("--min_words", "-1"),
        ("--max_files", "0"),
        ("--test_share", "1.5"),
        ("--test_pattern", "("),
        ("--ref", "no-such-branch"),
        ("--ref", "--all"),
        ("--max_lines", "x"),
        ("--unknown", "1"),
        ("--without", "no-such-file.jsonl"),
        ("--without", "without.jsonl"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(
    options: tuple[str, str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = of_fixes(0).write(tmp_path / "repo")
    monkeypatch.chdir(tmp_path)
    Path("without.jsonl").write_text('{"patch": ""}\n')
    assert run(folder, *options) == 2
    assert options[0].removeprefix("--") in run.stderr and not run.out.exists()


def test_files_of_an_earlier_run_are_only_replaced_on_demand(run: Run, tmp_path: Path) -> None:
    folder = of_fixes(0).write(tmp_path / "repo")
    run.out.mkdir()
    (run.out / "train.jsonl").write_text("mine\n")
    assert run(folder) == 2 and "--overwrite" in run.stderr and (run.out / "train.jsonl").read_text() == "mine\n"
    assert run(folder, "--overwrite") == 0 and len(run.rows()) == 1


def test_commits_whose_files_are_lost_are_named_and_the_others_go_on(run: Run, tmp_path: Path) -> None:
    folder = of_fixes(0, 1, 2, 3).write(tmp_path / "repo")
    packs = {path: path.read_bytes() for path in folder.glob("objects/pack/pack-*")}
    for path in packs:
        path.unlink()
    for content in (content for path, content in packs.items() if path.suffix == ".pack"):
        git(folder, "unpack-objects", "-q", stdin=content)
    lost = git(folder, "rev-parse", f"main:src/{TOPICS[1]}.py")
    damaged = git(folder, "rev-parse", f"main:src/{TOPICS[2]}.py")
    (folder / "objects" / lost[:2] / lost[2:]).unlink()
    path = folder / "objects" / damaged[:2] / damaged[2:]
    path.chmod(0o644)
    path.write_bytes(b"nonsense")
    assert run(folder) == 1
    assert [row["precise_prompt"] for row in run.rows()] == [message_of(0), message_of(3)]
    named = {problem["instance"] for problem in run.manifest["problems"]}
    assert named == {git(folder, "rev-parse", "main~1"), git(folder, "rev-parse", "main~2")}
    assert all(name in run.stderr for name in named) and "2 commits could not be used" in run.stderr


# ---------------------------------------------------------------- texts

# Part of `NOISE` -> (a message, what is left of it).
NOISY: dict[str, tuple[str, str]] = {
    "import": ("[svn r6225] Crash\n--HG--\nbranch : trunk", "Crash"),
    "trailer": (
        "Crash\n\nNo.\n\nSigned-off-by: A B <a@b>\nCo-authored-by: C <c@d>\nFixes: #12",
        "Crash\n\nNo.",
    ),
    "cherry-pick": ("Crash\n\n(cherry picked from commit 0123456)", "Crash"),
    "backport": ("[7.4.x] Crash in b", "Crash in b"),
    "ci": ("Crash in b [skip ci]", "Crash in b"),
    "url": ("Crash in b, see https://example.org/a/b/issues/12", "Crash in b"),
    "bracketed": ("Crash in b (fixes #12, #13)", "Crash in b"),
    "leading": ("Fix #1234: b: crashes", "b: crashes"),
    "fixing": ("Crash in b, closes #12", "Crash in b"),
    "rst": ("Crash in b (:issue:`1234`)", "Crash in b"),
    "bare": ("Crash in b #1234", "Crash in b"),
    "mention": ("Crash in b. Thanks to @ann for the report.", "Crash in b."),
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_of_every_kind_is_cut_out_and_nothing_else(name: str) -> None:
    noisy, clean = NOISY[name]
    assert without_noise(noisy) == clean
    assert NOISE[name].search(noisy)
    assert without_noise(clean) == clean


@pytest.mark.parametrize(
    "text",
    [
        "Colours such as &#1234; and C# are lost",
        "Fix crash on lines that close a block: 12 of them",
        "Note: this is by design\n\n- one\n- two",
        "See the option --re for 3 cases, from 2 to 4",
        "Reported lines are wrong",
    ],
)
def test_what_only_looks_like_noise_stays(text: str) -> None:
    assert without_noise(text) == text


# Part of `TRIVIAL` -> (subjects that are, a subject that is not).
SUBJECTS: dict[str, tuple[tuple[str, ...], str]] = {
    "typo": (("Fix typo", "grammatical fixes in help"), "Type errors are swallowed"),
    "version": (("Bump to 5.0.0 final", "4.2.1", "Prepare release 3.0"), "Versions are compared as texts"),
    "formatting": (("Fix flake8 warnings", "black"), "Formatting of long tables fails"),
    "review": (("Address review comments", "fixup! x", "Minor fixes"), "Fix crash when feedback is empty"),
    "tests": (("Add a test for odd numbers", "tests: more"), "unittest: handle outcomes of odd tests twice"),
    "documentation": (("docs: more", "Update CHANGES", "Document the hook"), "Documents are read twice"),
    "translation": (("Update message catalogs",), "i18n: message catalogs are not compiled"),
    "merge": (("Merge 3.x into master",), "Merge sort is not stable"),
    "housekeeping": (("chore: things", "ci: use cache"), "Building twice fails"),
}


@pytest.mark.parametrize("name", TRIVIAL)
def test_subjects_that_make_no_issue_are_known_by_kind(name: str) -> None:
    trivial, other = SUBJECTS[name]
    assert all(TRIVIAL[name].search(subject) for subject in trivial) and all(map(is_trivial, trivial))
    assert not is_trivial(other)


def test_promises_that_nothing_changes_and_reverts_are_known() -> None:
    assert all(map(is_refactoring, ("Rename a to b", "capture: cleanup handling", "Add type annotations to c")))
    assert not any(map(is_refactoring, ("Renamed files are lost", "Failed to resolve a type annotation", "Moved?")))
    assert is_revert('Revert "x"') and is_revert("x\n\nThis reverts commit 0123.") and not is_revert("Reverse order")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("CHANGES", True),
        ("CHANGES.rst", True),
        ("doc/changelog.md", True),
        ("changelog/123.bugfix.rst", True),
        ("news/12.feature", True),
        ("doc/whatsnew/v1.2.txt", True),
        ("src/changes.py", False),
        ("tests/news.txt.py", False),
        ("doc/art_history.rst", False),
        ("README.rst", False),
    ],
)
def test_changelogs_are_known_by_their_path(path: str, expected: bool) -> None:
    assert is_changelog(path) == expected


def patch_of(path: str, *added: str) -> str:
    lines = "".join(f"+{line}\n" for line in added)
    return f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n@@ -1,1 +1,{len(added) + 1} @@\n old\n{lines}"


def test_the_entry_of_a_changelog_is_its_words_and_nothing_of_a_whole_release() -> None:
    added = ("Version 1.2", "-----------", "", "* #123: Odd numbers are refused", "  by readers. Patch by Ann.", "")
    assert changelog_entry(parse_patch(patch_of("CHANGES", *added))) == "Odd numbers are refused by readers."
    assert changelog_entry(parse_patch(patch_of("README", *added))) == ""
    assert changelog_entry(parse_patch(patch_of("CHANGES", *(f"* Something new of {n}" for n in range(9))))) == ""


def test_a_part_that_says_nothing_more_is_left_out() -> None:
    assert issue_text("Odd numbers are lost", "", "Odd numbers are lost.") == ("Odd numbers are lost", ["message"])
    assert issue_text("", "", "Odd numbers are lost.") == ("Odd numbers are lost.", ["changelog"])
    cut, entry = "Odd numbers are lost when they…", "Odd numbers are lost when they are halved."
    assert issue_text(cut, "", entry) == (entry, ["changelog"])
    squash = "Odd numbers are lost (#12)\n\n* wip\n\n* fix tests\n\nThey were halved.\n\n* more"
    assert issue_text(squash, "", "")[0] == "Odd numbers are lost\n\nThey were halved."


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Merge pull request #12 from a/b\n\nTitle\n\nMore", ("12", "Title\n\nMore")),
        ("Merge pull request #12 Title of it\n\nMore", ("12", "Title of it\n\nMore")),
        ("Merged in b (pull request #7)\n\nTitle", ("7", "Title")),
        ("Merge branch 'b' into 'main'\n\nTitle\n\nSee merge request g/p!9", ("9", "Title\n\nSee merge request g/p!9")),
        ("Title (#31)", ("31", "Title (#31)")),
        ("Merge branch '3.x'", None),
        ("Merge remote-tracking branch 'origin/main' into b", None),
    ],
)
def test_merges_of_pull_requests_are_told_from_those_of_branches(message: str, expected: object) -> None:
    assert pull_request(message) == expected


def test_texts_that_say_nearly_the_same_are_found_among_many() -> None:
    seen = Seen()
    assert not any(seen.add(message_of(number)) for number in range(10))
    assert seen.add(message_of(3) + "\n\nAgain.") and seen.add(message_of(4).upper())
    assert not seen.add("Odd numbers of 12 things") and seen.add("odd numbers of 13 things")
    assert not seen.add("Something else")


def test_options_refuse_what_makes_no_sense() -> None:
    with pytest.raises(RecipeError, match="merges: 'x'"):
        MineOptions(merges="x")
