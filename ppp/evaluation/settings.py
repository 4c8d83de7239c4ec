"""From the command line of `ppp evaluate` to what is evaluated: agents, sessions, users, and the recipe behind them.

Options that are not listed here are those of a recipe. Without one a recipe is made of what is given. Whatever is wrong
is found here or by the recipe's own checks, before anything is loaded; who the agents are is read in `agents.py`.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ppp.baselines import POLICIES
from ppp.checks import check_at_least, refuse
from ppp.environments import ENVIRONMENTS
from ppp.evaluation.agents import CHECKPOINT, TINY_MODEL, AgentChoice, as_choice
from ppp.evaluation.plan import PROMPTS, Counts, Prompts
from ppp.extensions import import_extensions, named_in
from ppp.recipe import Recipe, config_path, merge_entry, read_recipe, read_value, read_yaml, split_entry_overrides
from ppp.recipe_config import source_options
from ppp.resume import RECIPE_FILE
from ppp.types import RecipeError

logger = logging.getLogger(__name__)

PROG = "ppp evaluate"
# What of its training's recipe a checkpoint is played with where no other recipe is named.
AS_TRAINED = ("limits", "max_completion_length", "call_format", "chat_template_kwargs", "preference_visibility")
OWN_MAPPINGS = ("agent", "baseline", "tasks")  # of which single entries may be given: --agent.model NAME
FOR_RESULTS = ("results", "output_dir")  # our options that mean something where nothing is played
PER_PREFERENCE = 20  # sessions of each preference where neither a recipe nor the command line says anything

# environment -> where its test tasks come from when nobody says it
DEFAULT_TASKS: dict[str, dict[str, Any]] = {"town": {"split": "test", "num": 400}}
# environment -> values of a recipe that are made up for it when there is none; the limits of a session have to fit it
DEFAULT_VALUES: dict[str, dict[str, Any]] = {
    "func_loc": {
        "max_completion_length": 131072,
        "limits": {
            "max_turns": 50,
            "max_tokens_per_turn": 4096,
            "max_observation_tokens": 8192,
            "max_prompt_tokens": 32768,
        },
    },
}


@dataclass(frozen=True)
class EvaluationSettings:
    """What a command line of `ppp evaluate` asks for.

    Attributes:
        agent: who is evaluated.
        recipe: its model, where it has one, and everything that holds for all agents.
        baseline: a second agent that plays the same sessions, with the recipe that names its model; None for none.
        output_dir: where the results go.
        counts: how many sessions are played.
        prompts: which kinds of them.
        max_tasks: of each environment; None for all.
    """

    agent: AgentChoice
    recipe: Recipe
    baseline: tuple[AgentChoice, Recipe] | None
    output_dir: Path
    counts: Counts
    prompts: Prompts
    max_tasks: int | None


@dataclass(frozen=True)
class SavedResults:
    """What `--results` asks for: sessions played before, and where their summary goes."""

    path: Path
    output_dir: Path | None


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are RecipeErrors."""

    def error(self, message: str) -> NoReturn:
        field, colon, problem = message.removeprefix("argument --").partition(": ")
        raise RecipeError(f"{field.partition('/')[0]}: {problem}" if colon else message)


def build_parser() -> argparse.ArgumentParser:
    """Our own options; all others are those of a recipe."""
    parser = _Parser(
        prog=PROG,
        usage="%(prog)s [--config FILE] --agent AGENT [--environment NAME --tasks TASKS] --output_dir DIR "
        "[--option value ...]",
        description="Play held-out sessions and compute the three scores. The same command goes on where it was "
        "killed. Options that are not listed here are those of ppp train and override the recipe, such as --seed, "
        "--max_concurrency, --interaction false, --preference_visibility, --limits.max_turns, --report_to wandb.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="a recipe; without one it is made of the other options")
    policies = ", ".join(POLICIES)
    add(
        "--agent",
        help="folder of a checkpoint or an adapter, a name on the Hub, endpoint (with --agent.model, --agent.base_url, "
        f"--agent.tool_calls ...), or a policy made of rules: {policies}; default: the recipe's model",
    )
    add("--baseline", metavar="AGENT", help="another agent, which plays the same sessions and is compared with it")
    add("--environment", metavar="NAME", help=f"{', '.join(ENVIRONMENTS)}; default: those of the recipe's eval_tasks")
    add("--tasks", help="a file of tasks, or a mapping such as {path: issues.jsonl, repositories: mirrors}")
    add("--max_tasks", type=int, metavar="N", help="only the first N tasks of each environment")
    add("--user", help="who plays the users: scripted, or {kind: llm, model: ..., ...}; wins over the recipe's")
    add("--preferences", nargs="+", metavar="NAME", help="users to evaluate with: seen, unseen, all, or names")
    add("--prompts", choices=PROMPTS, help="which sessions are played (default: both)")
    add(
        "--sessions_per_preference",
        type=int,
        metavar="N",
        help=f"N vague and N precise sessions of each preference, in place of the next two (without a recipe: "
        f"{PER_PREFERENCE})",
    )
    add("--num_sessions", type=int, metavar="N", help="vague sessions with seen preferences, and precise ones (240)")
    add("--sessions_per_unseen_preference", type=int, metavar="N", help="vague sessions of each unseen one (100)")
    add("--output_dir", type=Path, metavar="DIR", help="folder for results.jsonl and summary.json")
    add("--results", type=Path, metavar="PATH", help="play nothing: compute the summary of results in a folder or file")
    return parser


def parse_arguments(argv: Sequence[str]) -> EvaluationSettings | SavedResults:
    """Read the command line.

    Raises:
        RecipeError: an option or a value that is not allowed.
    """
    texts, entries = take_entries(argv, OWN_MAPPINGS)
    own, rest = build_parser().parse_known_args(texts)
    if own.results is not None:
        unused = [f"--{name}" for name, value in vars(own).items() if name not in FOR_RESULTS and value is not None]
        if rest or entries or unused:
            raise refuse("results", str(own.results), f"nothing is played; leave out {[*unused, *rest, *entries][0]}")
        return SavedResults(own.results, own.output_dir)
    if own.output_dir is None:
        raise RecipeError("output_dir: missing; name a folder for the results")
    given = {"agent": own.agent, "baseline": own.baseline, "tasks": own.tasks}
    for name, value in given.items():
        found = read_value(value) if value is not None and value.lstrip().startswith("{") else value
        given[name] = {"kind": found} if name != "tasks" and found == "endpoint" else found
    for name, entry, value in entries:
        if isinstance(given[name], str) and name != "tasks":
            raise refuse(f"{name}.{entry}", value, f"only --{name} endpoint has options")
        merge_entry(given, name, entry.split("."), value)
    if own.max_tasks is not None:
        check_at_least("max_tasks", own.max_tasks, 1)
    shared = _RecipeOptions(own, rest, given["tasks"])
    import_extensions(named_in(rest, shared.file))  # agents are looked up before the recipe is read
    agent = None if given["agent"] is None else as_choice("agent", given["agent"])
    other = None if given["baseline"] is None else as_choice("baseline", given["baseline"])
    counts = _counts(own)
    recipe = shared.read(agent)
    if agent is None:
        agent = AgentChoice(CHECKPOINT, recipe.config.model_name_or_path or TINY_MODEL)
    baseline = None if other is None else (other, shared.read(other, played_like=agent))
    return EvaluationSettings(agent, recipe, baseline, own.output_dir, counts, own.prompts or "both", own.max_tasks)


def take_entries(argv: Sequence[str], mappings: Sequence[str]) -> tuple[list[str], list[tuple[str, str, Any]]]:
    """Take `--mapping.entry value` of our own mappings out of `argv`; those of a recipe stay."""
    rest: list[str] = []
    taken: list[str] = []
    texts = iter(argv)
    for text in texts:
        name, equals, _ = text.partition("=")
        if not name.startswith("--") or "." not in name or name.removeprefix("--").partition(".")[0] not in mappings:
            rest.append(text)
            continue
        taken += [text] if equals else [text, *([value] if (value := next(texts, None)) is not None else [])]
    return rest, split_entry_overrides(taken)[1]


def _counts(own: argparse.Namespace) -> Counts:
    per_preference = own.sessions_per_preference
    others = {"num_sessions": own.num_sessions, "num_per_unseen": own.sessions_per_unseen_preference}
    chosen = {name: value for name, value in others.items() if value is not None}
    if per_preference is not None and chosen:
        raise refuse("sessions_per_preference", per_preference, "it takes the place of the other two; leave them out")
    if per_preference is None and not chosen and own.config is None:
        per_preference = PER_PREFERENCE
    return Counts(**chosen, num_per_preference=per_preference)


class _RecipeOptions:
    """The options that make the recipe of an agent: those of the command line, and ours in the recipe's words."""

    def __init__(self, own: argparse.Namespace, rest: Sequence[str], tasks: Any) -> None:
        self.rest = [] if own.config is None else ["--config", own.config]
        self.file: dict[str, Any] = {}
        path = config_path(self.rest)
        if path is not None:
            self.file = read_yaml(path)
        self.given = {text.partition("=")[0].partition(".")[0] for text in rest if text.startswith("--")}
        self.has_recipe = path is not None or "--environments" in self.given
        self.own, self.tasks, self.more = own, tasks, rest

    def read(self, agent: AgentChoice | None, played_like: AgentChoice | None = None) -> Recipe:
        """The recipe in which an agent plays; None stands for the recipe's own model.

        Args:
            played_like: the agent that it is compared with, whose limits are then its own as well.
        """
        own = self.own
        rest = [*self.rest, *self._environment(own.environment, self.tasks)]
        trained = played_like or agent
        if trained is not None and trained.kind == CHECKPOINT and not self.rest:
            rest += trained_as(Path(trained.name), own.environment)
        rest += self._users(own.user, self.more)
        if own.preferences is not None:
            names = [name for text in own.preferences for name in text.split(",") if name]
            rest += ["--eval_preferences", *(names or [""])]
        if agent is not None and agent.kind == CHECKPOINT:
            rest += ["--model_name_or_path", agent.name, "--tiny_model", "false"]
        elif agent is not None and not self._has_model():
            rest += ["--tiny_model", "true"]  # a recipe has a model; this one is never made
        elif agent is None and not self._has_model():
            raise RecipeError("agent: missing; name a checkpoint, an endpoint, or a policy made of rules")
        return read_recipe(rest, prog=PROG)

    def _has_model(self) -> bool:
        names = ("model_name_or_path", "tiny_model")
        return any(name in self.file or f"--{name}" in self.given for name in names)

    def _environment(self, environment: str | None, tasks: Any) -> list[str]:
        """Environment and tasks in the recipe's words; nothing where the recipe says it all."""
        if environment is None and tasks is None and self.has_recipe:
            return []
        sources = self.file.get("eval_tasks") or {}
        if environment is None:
            if len(names := list(sources or self.file.get("environments") or {})) != 1:
                raise refuse("environment", None, f"name one of {', '.join(ENVIRONMENTS)}")
            environment = str(names[0])
        chosen = {"path": tasks} if isinstance(tasks, str) else dict(tasks or {})
        source = dict(DEFAULT_TASKS.get(environment, {}))
        if environment in sources:
            source = source_options("eval_tasks", sources, environment)
        if "path" in chosen and "path" not in source:
            source = {}  # options of a generator
        source |= chosen
        if not source and environment in ENVIRONMENTS:
            raise RecipeError(f"tasks: missing; name a file with tasks of {environment}")
        values: dict[str, Any] = {} if self.has_recipe else dict(DEFAULT_VALUES.get(environment, {}))
        options = (self.file.get("environment_options") or {}).get(environment)
        values["environments"] = {environment: 1}
        values["environment_options"] = {environment: options} if options is not None else {}
        values["train_tasks"] = values["eval_tasks"] = {environment: source}
        return [text for name, value in values.items() for text in (f"--{name}", json.dumps(value))]

    def _users(self, user: str | None, rest: Sequence[str]) -> list[str]:
        """The rest of the command line with its users in place of those that the recipe evaluates with."""
        others = self.file.get("eval_user")
        if not others or "--eval_user" in self.given or (user is None and "--user" not in self.given):
            return [*([] if user is None else ["--user", user]), *rest]
        if user is not None:
            return ["--user", user, "--eval_user", "{}", *rest]
        return [f"--eval_user{text.removeprefix('--user')}" if text.startswith("--user.") else text for text in rest]


def trained_as(folder: Path, environment: str | None) -> list[str]:
    """How a checkpoint of ours was played in training, as options: what `AS_TRAINED` names of the recipe beside it.

    Args:
        environment: to be played; where the training had others, its limits say nothing.

    Raises:
        RecipeError: that recipe cannot be read.
    """
    path = next((found for place in (folder, folder.parent) if (found := place / RECIPE_FILE).is_file()), None)
    recipe = {} if path is None else read_yaml(path)
    if environment is not None and environment not in (recipe.get("environments") or {}):
        return []
    values = {name: recipe[name] for name in AS_TRAINED if recipe.get(name) is not None}
    logger.info("%s says how %s is played: %s", path, folder, ", ".join(values))
    return [text for name, value in values.items() for text in (f"--{name}", _as_text(value))]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
