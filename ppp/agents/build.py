"""The pool in which an agent that speaks messages plays, with the limits, users and environments of a recipe or of
one's own.

Nothing of a model is needed for it. `endpoint.py`, `function.py` and `person.py` are the agents there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppp.agents.base import Agent
from ppp.agents.engine import MessageEngine
from ppp.agents.stand_in import StandInCodec
from ppp.build import pool_arguments
from ppp.recipe import Recipe
from ppp.rollout import RolloutPool
from ppp.session import Limits, Visibility
from ppp.users.crowd import Crowd


def message_pool(recipe: Recipe, agent: Agent, crowd: Crowd | None = None) -> RolloutPool:
    """The pool with the recipe's limits and environments, in which `agent` plays.

    Args:
        crowd: who plays the users; None stands for those that the recipe trains with.
    """
    return build_message_pool(agent, **pool_arguments(recipe, crowd))


def build_message_pool(
    agent: Agent,
    limits: Limits | None = None,
    *,
    crowd: Crowd | None = None,
    environment_options: Mapping[str, Mapping[str, Any]] | None = None,
    max_concurrency: int = 64,
    preference_visibility: Visibility = "stated",
    interaction: bool = True,
    seed: int = 0,
    max_workers: int = 32,
) -> RolloutPool:
    """A pool in which `agent` plays; the arguments are those of `RolloutPool`.

    Limits in tokens count four bytes as one (`stand_in.py`); `max_tokens_per_turn` is the agent's own to keep.
    """
    codec = StandInCodec()
    engine = MessageEngine(
        codec,
        agent,
        environment_options=environment_options,
        preference_visibility=preference_visibility,
        interaction=interaction,
    )
    return RolloutPool(
        engine,
        codec,
        limits or Limits(),
        crowd=crowd,
        environment_options=environment_options,
        max_concurrency=max_concurrency,
        preference_visibility=preference_visibility,
        interaction=interaction,
        seed=seed,
        max_workers=max_workers,
    )
