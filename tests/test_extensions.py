"""Modules that a recipe names in `imports`: they add entries to the tables, in every command and every process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ppp.environments import ENVIRONMENTS
from ppp.extensions import TABLES, import_extensions
from ppp.preferences import PENALIZED, PREFERENCES, SEEN, UNSEEN
from ppp.recipe import read_recipe
from ppp.recipe_config import expand_preferences
from ppp.rewards import TERMS
from ppp.types import RecipeError
from ppp.users import USERS

POLITE = """
from dataclasses import replace
from ppp.preferences import PREFERENCES
PREFERENCES["polite"] = replace(PREFERENCES["commas"], name="polite", split="seen")
"""


@pytest.fixture(autouse=True)
def restored_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests start in a folder of their own, and leave tables and path as they were."""
    for table in (ENVIRONMENTS, USERS, PREFERENCES, TERMS):
        table_before: dict[str, Any] = dict(table)
        for name in table_before:
            monkeypatch.setitem(table, name, table_before[name])  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


def add(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a module into the working directory, and forget it after the test."""
    Path(f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    del sys.modules[name]


def forget(monkeypatch: pytest.MonkeyPatch, *entries: tuple[dict[str, Any], str]) -> None:
    for table, name in entries:
        monkeypatch.setitem(table, name, None)
        del table[name]


def test_an_entry_of_a_module_in_the_working_directory_is_one_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    add("my_polite", POLITE, monkeypatch)
    forget(monkeypatch, (PREFERENCES, "polite"))
    recipe = {
        "imports": ["my_polite"],
        "tiny_model": True,
        "environments": {"town": 1},
        "train_tasks": {"town": {"split": "train", "num": 4}},
        "preferences": ["polite"],
        "eval_preferences": ["seen"],
        "use_cpu": True,
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    read = read_recipe(["--config", "recipe.yaml"])
    assert read.config.preferences == ["polite"]
    assert read.config.eval_preferences == [*SEEN] and SEEN[-1] == "polite" and len(SEEN) == 13
    assert "polite" in SEEN and "polite" in PENALIZED and "polite" not in UNSEEN and len(UNSEEN) == 8
    assert expand_preferences("preferences", "all")[-1] == "polite"
    assert yaml.safe_load(read.to_yaml())["imports"] == ["my_polite"], "a resumed run needs them again"
    assert "my_polite" in read_recipe(["--config", "recipe.yaml", "--imports", "my_polite", "json"]).config.imports


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("my_missing", "imports: 'my_missing' is not allowed; there is no such module, neither installed nor in /"),
        ("my_missing.inner", "there is no such module"),
        ("polite.py", "there is no such module"),
        ("../polite", "name a module as `import` does"),
    ],
)
def test_a_module_that_is_not_there_is_one_sentence(name: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        import_extensions([name])


def test_what_a_module_raises_itself_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    add("my_broken", "import my_other_that_is_missing\n", monkeypatch)
    with pytest.raises(ModuleNotFoundError, match="my_other_that_is_missing"):
        import_extensions(["my_broken"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("from ppp.environments import ENVIRONMENTS as t\nt['mine'] = 3", "environment 'mine': it must be a sub"),
        ("from ppp.environments import ENVIRONMENTS as t\nt['mine'] = 'a'", "environment 'mine': a text must have"),
        ("from ppp.users import USERS as t\nt['mine'] = dict", "user 'mine': it must be a subclass of User"),
        ("from ppp.preferences import PREFERENCES as t\nt['mine'] = t['json']", "its own name is 'json'"),
        ("from ppp.preferences import PREFERENCES as t\nt['json'] = t['joke']", "'json': there is one of that name"),
        ("from ppp.rewards import TERMS as t\nt['mine'] = 0.1", "reward term 'mine': it must be a function"),
        (
            "from dataclasses import replace\nfrom ppp.preferences import PREFERENCES as t\n"
            "t['mine'] = replace(t['json'], name='mine', split='both')",
            "its split is 'both'; allowed: seen, unseen",
        ),
    ],
)
def test_an_entry_that_cannot_be_used_is_refused_by_name(
    text: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("my_entries", text, monkeypatch)
    forget(monkeypatch, *((table, "mine") for table, _ in TABLES.values()))  # type: ignore[misc]
    with pytest.raises(RecipeError, match=f"imports: 'my_entries' adds the .*{problem}"):
        import_extensions(["my_entries"])


def test_importing_twice_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    add("my_town", "from ppp.environments import ENVIRONMENTS as t\nt['mine'] = t['town']\n", monkeypatch)
    forget(monkeypatch, (ENVIRONMENTS, "mine"))
    for _ in range(2):
        import_extensions(["my_town"])
    assert ENVIRONMENTS["mine"] == "ppp.environments.town:TownEnvironment"


@pytest.mark.parametrize("command", ["train", "evaluate", "warmstart", "doctor"])
def test_every_command_that_reads_a_recipe_imports_first(command: str, tmp_path: Path) -> None:
    """The one sentence of a missing module comes before that of an environment which only it would have added."""
    recipe = {"imports": ["my_missing"], "tiny_model": True, "environments": {"mine": 1}, "use_cpu": True}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    options = {"evaluate": ["--agent", "always_ask"], "train": []}.get(command, [])
    where = [] if command in ("doctor", "train") else ["--output_dir", "out"]
    config = ["recipe.yaml", "--fast"] if command == "doctor" else ["--config", "recipe.yaml"]
    done = subprocess.run(
        [sys.executable, "-m", "ppp.cli", command, *config, *options, *where],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    assert "imports: 'my_missing' is not allowed; there is no such module" in said
