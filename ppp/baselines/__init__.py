"""The table of policies made of rules, by the name that `ppp evaluate --agent` takes.

Adding one: a class with `act(task, turns) -> (text, call)` in a file beside this one, and a line in the table. A policy
plays one environment, whose tools it knows; modules are imported when they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from ppp.engines.scripted import Policy
from ppp.types import RecipeError

# name -> (environment, class)
POLICIES: dict[str, tuple[str, str]] = {
    "always_ask": ("town", "ppp.baselines.town:AlwaysAsk"),
    "never_ask": ("town", "ppp.baselines.town:NeverAsk"),
    "plausible_name": ("town", "ppp.baselines.town:PlausibleName"),
    "demonstrator": ("town", "ppp.baselines.town:Demonstrator"),
    "func_loc": ("func_loc", "ppp.baselines.func_loc:FuncLocAgent"),
}


def build_policy(name: str, environments: Sequence[str]) -> Policy:
    """The policy of that name, for sessions in `environments`.

    Raises:
        RecipeError: no such policy, or it does not know the tools of these environments.
    """
    if name not in POLICIES:
        raise RecipeError(f"agent: {name!r} is unknown; allowed: {', '.join(POLICIES)}")
    plays, path = POLICIES[name]
    if any(environment != plays for environment in environments):
        raise RecipeError(f"agent: {name!r} plays {plays!r} only; the recipe has {', '.join(environments)}")
    module, _, attribute = path.partition(":")
    policy: Policy = vars(import_module(module))[attribute]()
    return policy
