"""From the command line of `ppp play` to what is played: who, which sessions, and where they are kept.

Recipe and agent are read as for `ppp evaluate`; here stands what a person decides besides. Whether there is such a
session is found in `choosing.py`; `game.py` comes next.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ppp.checks import check_at_least, refuse
from ppp.evaluation.agents import AgentChoice
from ppp.evaluation.settings import EvaluationSettings
from ppp.evaluation.settings import parse_arguments as parse_evaluation
from ppp.playroom.choosing import Wish
from ppp.recipe import Recipe
from ppp.types import RecipeError

PROG = "ppp play"
USER, AGENT = "user", "agent"
PLAY_DIR = Path("runs/play")
PASSED_ON = ("config", "agent", "environment", "tasks", "user")
# Options of `ppp evaluate` that choose among its sessions or agents; here a person does.
NOT_HERE = (
    "baseline",
    "max_tasks",
    "preferences",
    "prompts",
    "results",
    "sessions_per_preference",
    "sessions_per_unseen_preference",
)
EXAMPLES = """\
examples:
  ppp play --as user --agent runs/town/train --config town.yaml   be the user of a trained agent
  ppp play --as user --agent always_ask                           of an agent made of rules, in the town
  ppp play --as agent                                             be the agent, for users made of rules
  ppp play --as agent --list                                      the tasks there are
"""


@dataclass(frozen=True)
class PlaySettings:
    """What a command line asks for.

    Attributes:
        role: whom the person plays, `USER` or `AGENT`.
        agent: who plays the agent, where the person does not.
        recipe: everything that holds for all sessions.
        wish: which sessions.
        num_sessions: in a row.
        output_dir: where they are kept.
        lists: show the tasks instead.
    """

    role: str
    agent: AgentChoice | None
    recipe: Recipe
    wish: Wish
    num_sessions: int
    output_dir: Path
    lists: bool


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage="%(prog)s --as user|agent [--config FILE] [--agent AGENT] [--environment NAME --tasks TASKS] "
        "[--option value ...]",
        description="Take part in held-out sessions at this terminal, see how they went, and keep them like an\n"
        "evaluation. Options that are not listed here are those of ppp evaluate and ppp train.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    add = parser.add_argument
    add("--as", dest="role", choices=(USER, AGENT), help="whom you play")
    add("--agent", help="who plays the agent for you as the user; see ppp evaluate --help")
    add("--user", help="who plays the user for you as the agent (scripted); as the user: {kind: human, judge_model: M}")
    add("--config", metavar="FILE", help="a recipe; without one it is made of the other options")
    add("--environment", metavar="NAME", help="where it is played; default: as the recipe says, or else town")
    add("--tasks", help="a file of tasks, or a mapping, as for ppp evaluate")
    add("--task", metavar="ID", help="the task; default: drawn by --seed and the number of sessions kept so far")
    add("--preference", metavar="NAME", help="the user's; default: drawn in the same way")
    add(
        "--prompt", choices=("vague", "precise"), help="what the agent is told at first; default: vague if there is one"
    )
    add("--num_sessions", type=int, default=1, metavar="N", help="one after the other (1)")
    add("--output_dir", type=Path, metavar="DIR", help=f"folder for the sessions; default: one in {PLAY_DIR}")
    add("--list", dest="lists", action="store_true", help="show the tasks and preferences, and play nothing")
    return parser


def parse_arguments(argv: Sequence[str]) -> PlaySettings:
    """Read the command line.

    Raises:
        RecipeError: an option or a value that is not allowed.
    """
    try:
        own, rest = build_parser().parse_known_args(argv)
    except argparse.ArgumentError as error:
        name = (error.argument_name or "").rpartition("--")[2]
        raise RecipeError(f"{name}: {error.message}" if name else error.message) from error
    if own.role is None and not own.lists:
        raise RecipeError("as: missing; say whom you play: --as user or --as agent")
    check_at_least("num_sessions", own.num_sessions, 1)
    for text in rest:
        name = re.split(r"[.=]", text.removeprefix("--"), maxsplit=1)[0]
        if text.startswith("--") and name in NOT_HERE:
            raise RecipeError(f"{name}: no option of {PROG}; choose by --task, --preference and --prompt")
    if own.role == AGENT and own.agent is not None:
        raise refuse("agent", own.agent, "you are the agent; leave it out")
    given = {name: value for name in PASSED_ON if (value := vars(own)[name]) is not None}
    if own.role == USER:
        given.setdefault("user", "human")
    else:
        given["agent"] = "endpoint"  # stands for somebody whose model is not ours; never built
    if not {"config", "environment", "tasks"} & set(given) and "--environments" not in rest:
        given["environment"] = "town"
    options = [text for name, value in given.items() for text in (f"--{name}", value)]
    found = parse_evaluation([*options, "--output_dir", str(PLAY_DIR), *rest])
    assert isinstance(found, EvaluationSettings)
    agent = found.agent if own.role == USER else None
    _check_users(found.recipe, own.role)
    folder = own.output_dir or PLAY_DIR / _folder_name(found.recipe, agent)
    wish = Wish(own.task, own.preference, own.prompt)
    return PlaySettings(own.role, agent, found.recipe, wish, own.num_sessions, folder, own.lists)


def _check_users(recipe: Recipe, role: str) -> None:
    kind = recipe.config.build_crowds().evaluation.kind
    if role == USER and kind != "human":
        raise refuse("user.kind", kind, "you are the user; leave it out, or name human")
    if role == AGENT and kind == "human":
        raise refuse("user.kind", kind, "you are the agent and cannot be the user as well; name scripted or llm")
    if role == USER and not recipe.config.interaction:
        raise refuse("interaction", False, "nobody would ask you anything")


def _folder_name(recipe: Recipe, agent: AgentChoice | None) -> str:
    """A folder for each who plays with the person, since their sessions are not mixed."""
    partner = recipe.config.build_crowds().evaluation.kind if agent is None else agent.name
    role = AGENT if agent is None else USER
    name = re.sub(r"[^\w]+", "-", partner).strip("-")
    return f"{'-'.join(recipe.config.eval_tasks)}-{role}-with-{name}"
