"""The table of policies made of rules, by the name that `ppp evaluate --agent` takes.

Adding one: a class with `act(task, turns) -> (text, call)` in a file beside this one, and a line in the table. A policy
plays one environment, whose tools it knows; modules are imported when they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from ppp.engines.scripted import Policy
from ppp.environments import environment_class
from ppp.types import RecipeError

# name -> (environment, class)
POLICIES: dict[str, tuple[str, str]] = {
    "always_ask": ("town", "ppp.baselines.town:AlwaysAsk"),
    "never_ask": ("town", "ppp.baselines.town:NeverAsk"),
    "plausible_name": ("town", "ppp.baselines.town:PlausibleName"),
    "demonstrator": ("town", "ppp.baselines.town:Demonstrator"),
    "func_loc": ("func_loc", "ppp.baselines.func_loc_shell:ShellAgent"),
    "func_loc_read": ("func_loc", "ppp.baselines.func_loc_read:ReadAgent"),
}
# name -> the options that decide on the tools it knows, where an environment offers several sets of them
TOOLS_OF: dict[str, dict[str, Any]] = {"func_loc": {"toolset": "shell"}, "func_loc_read": {"toolset": "read"}}


def build_policy(
    name: str, environments: Sequence[str], environment_options: Mapping[str, Mapping[str, Any]] | None = None
) -> Policy:
    """The policy of that name, for sessions in `environments`.

    Raises:
        RecipeError: no such policy, or it does not know the tools of these environments.
    """
    if name not in POLICIES:
        raise RecipeError(f"agent: {name!r} is unknown; allowed: {', '.join(POLICIES)}")
    plays, path = POLICIES[name]
    if any(environment != plays for environment in environments):
        raise RecipeError(f"agent: {name!r} plays {plays!r} only; the recipe has {', '.join(environments)}")
    options, needed = (environment_options or {}).get(plays, {}), TOOLS_OF.get(name, {})
    if environment_class(plays, options) is not environment_class(plays, {**options, **needed}):
        wanted = ", ".join(f"{option}: {value}" for option, value in needed.items())
        raise RecipeError(f"agent: {name!r} knows other tools; it needs environment_options.{plays} with {wanted}")
    module, _, attribute = path.partition(":")
    policy: Policy = vars(import_module(module))[attribute]()
    return policy
