"""The quickstart's commands are ones that the program takes, and are about one another's folders."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from ppp.evaluation.settings import EvaluationSettings
from ppp.evaluation.settings import parse_arguments as parse_evaluation
from ppp.preferences import UNSEEN
from ppp.recipe import read_recipe
from ppp.report import parse_arguments as parse_report

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def quickstart() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "scripts" / "quickstart.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_is_taken_and_ends_with_the_report(
    quickstart: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    folders = {"warmstart", "train"}
    for name in folders:  # as if they had been made
        (tmp_path / name).mkdir()
    commands = quickstart.commands(3, tmp_path, ["--max_concurrency", "64"])
    for kind, command in commands[:-1]:
        if kind == "evaluate":
            found = parse_evaluation(command[2:])
            assert isinstance(found, EvaluationSettings)
            assert found.agent.name in quickstart.POLICIES or Path(found.agent.name).parent == tmp_path
            recipe = found.recipe
        else:
            recipe = read_recipe(command[command.index("--config") :])
        assert recipe.args.seed == 3 and recipe.config.max_concurrency == 64
    kind, command = commands[-1]
    assert kind == "report"
    own = parse_report(command[2:])
    assert Path(own.runs[0]) == tmp_path and own.output == tmp_path / "report.html"
    targets = [command[command.index("--output_dir") + 1] for _, command in commands[:-1]]
    assert len(set(targets)) == len(targets), "each command has a folder of its own"


def test_the_training_is_evaluated_on_the_users_that_it_does_not_see(quickstart: ModuleType, tmp_path: Path) -> None:
    (command,) = [command for kind, command in quickstart.commands(0, tmp_path, []) if kind == "train"]
    options = command[command.index("--config") :]
    options[1] = str(ROOT / "recipes" / "town.yaml")
    recipe = read_recipe(options)
    assert recipe.config.eval_preferences == list(UNSEEN)
    assert not set(recipe.config.preferences) & set(UNSEEN)
    assert recipe.args.eval_on_start and recipe.args.max_steps % recipe.args.eval_steps == 0, "the last step is told"


def test_the_settings_of_figure_4_are_all_there(
    quickstart: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    found = set()
    for _, command in quickstart.commands(0, tmp_path, []):
        if "figure4" in " ".join(command):
            settings = parse_evaluation([*command[2:], "--agent", "never_ask"])  # there is no checkpoint yet
            assert isinstance(settings, EvaluationSettings)
            assert settings.recipe.config.eval_preferences == ["detail_question"]
            folder = settings.output_dir.relative_to(tmp_path).parts[1]
            found |= {
                (folder, kind, settings.recipe.config.interaction)
                for kind in ("vague", "precise")
                if settings.prompts in (kind, "both")
            }
    wanted = {("precise", False), ("vague", False), ("vague", True)}
    assert found == {(name, *setting) for name in ("before", "after") for setting in wanted}
