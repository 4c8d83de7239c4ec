"""Modules that a recipe names in `imports`: they add entries to the tables, in every command and every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ppp.baselines import POLICIES
from ppp.cli import main as ppp
from ppp.data import GENERATORS
from ppp.environments import ENVIRONMENTS
from ppp.extensions import TABLES, import_extensions
from ppp.preferences import PENALIZED, PREFERENCES, SEEN, UNSEEN
from ppp.recipe import read_recipe
from ppp.recipe_config import expand_preferences
from ppp.rewards import TERMS
from ppp.types import RecipeError
from ppp.users import USERS

TWO_PROCESSES = Path(__file__).parent.parent / "accelerate_configs" / "cpu_ddp_2.yaml"
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


COMMANDS = {
    "train": ["train", "--config", "recipe.yaml"],
    "evaluate": ["evaluate", "--config", "recipe.yaml", "--agent", "my_agent", "--output_dir", "out"],
    "warmstart": ["warmstart", "--config", "recipe.yaml", "--output_dir", "out"],
    "doctor": ["doctor", "recipe.yaml", "--fast"],
    "play": ["play", "--config", "recipe.yaml", "--as", "user", "--agent", "my_agent"],
    "users": ["users", "check", "--config", "recipe.yaml"],
    "vaguenize": ["vaguenize", "in.jsonl", "out.jsonl", "--model", "m", "--imports", "my_missing"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_imports_before_it_checks_anything(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The one sentence of a missing module comes before those of what only it would have added."""
    recipe = {"imports": "my_missing", "tiny_model": True, "environments": {"mine": 1}, "user": "mine"}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    status = ppp(COMMANDS[command])
    told = capsys.readouterr()
    said = " ".join((told.out + told.err).split())
    assert status == 2, said
    assert "imports: 'my_missing' is not allowed; there is no such module" in said


HOUSE = """
from ppp.baselines import POLICIES
from ppp.data import GENERATORS
from ppp.environments import ENVIRONMENTS
from ppp.environments.tools import ToolEnvironment, tool
from ppp.types import ToolCall

class House(ToolEnvironment):
    @tool
    def look(self) -> str:
        \"\"\"Look.\"\"\"
        return "A house."

    async def score(self, answer):
        return float(answer == self.task.payload["gold"])

class Guesser:
    def act(self, task, turns):
        return "", ToolCall("finish", {"answer": "a"})

def rows(num):
    for index in range(num):
        gold = {"gold": "ab"[index % 2]}
        yield {"task_id": str(index), "vague_prompt": "Which?", "precise_prompt": "A or B?", "payload": gold}

ENVIRONMENTS["my_house"] = House
GENERATORS["my_house"] = "my_house:rows"
POLICIES["my_guesser"] = ("my_house", "my_house:Guesser")
"""


def house_recipe() -> None:
    recipe = {
        "imports": ["my_house"],
        "tiny_model": True,
        "environments": {"my_house": 1},
        "train_tasks": {"my_house": {"num": 4}},
        "eval_tasks": {"my_house": {"num": 4}},
        "preferences": ["no_preference", "no_ask"],
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 32,
        "limits": {
            "max_turns": 2,
            "max_tokens_per_turn": 12,
            "max_observation_tokens": 16,
            "max_prompt_tokens": 2048,
        },
        "reward_clip": None,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
    }
    Path("my_house.py").write_text(HOUSE)
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))


def test_agents_environments_and_tasks_of_ones_own_are_evaluated_with_and_without_a_recipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house_recipe()
    add("my_house", HOUSE, monkeypatch)
    forget(monkeypatch, (ENVIRONMENTS, "my_house"), (GENERATORS, "my_house"), (POLICIES, "my_guesser"))
    options = ["--preferences", "no_preference", "--sessions_per_preference", "4", "--prompts", "vague"]
    assert ppp(["evaluate", "--config", "recipe.yaml", "--agent", "my_guesser", *options, "--output_dir", "a"]) == 0
    bare = ["--environment", "my_house", "--tasks", "{num: 4}", "--imports", "my_house"]
    assert ppp(["evaluate", "--agent", "my_guesser", *bare, *options, "--output_dir", "b"]) == 0
    summaries = [json.loads(Path(folder, "summary.json").read_text())["vague"] for folder in ("a", "b")]
    assert summaries[0] == summaries[1] and summaries[0]["productivity"] == 50.0


def test_every_process_of_a_run_imports() -> None:
    house_recipe()
    launch = ["launch", "--config_file", str(TWO_PROCESSES), "--main_process_port", "0"]
    options = ["--config", "recipe.yaml", "--output_dir", "run", "--per_device_train_batch_size", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", *launch, "-m", "ppp.train", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    played = [
        json.loads(line)["environment"]
        for path in Path("run").glob("trajectories*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert played == ["my_house"] * 4 and len(list(Path("run").glob("trajectories*.jsonl"))) == 2
    assert "my_house" in yaml.safe_load(Path("run/recipe.yaml").read_text())["imports"]
