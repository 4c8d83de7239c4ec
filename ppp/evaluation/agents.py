"""Who plays the agent in an evaluation: a checkpoint, a policy made of rules, or a model behind an endpoint.

A choice is read from the command line, checked without loading anything, and becomes a pool when its turn has come, so
that two models are never in memory together. How an endpoint is talked to is `ppp/agents/`, how a model is loaded
`ppp/build.py`.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from ppp.agents.build import message_pool
from ppp.agents.endpoint import EndpointAgent
from ppp.baselines import POLICIES, build_policy
from ppp.build import (
    build_codec,
    build_engine,
    build_model,
    build_pool,
    build_tokenizer,
    check_context,
    check_engine,
)
from ppp.chat.endpoint import shown_url
from ppp.chat.ledger import ChatLedger
from ppp.checks import refuse, refuse_option, refuse_unknown
from ppp.codec import Codec
from ppp.engines.scripted import ScriptedEngine
from ppp.recipe import Recipe
from ppp.rollout import RolloutPool
from ppp.session import Limits
from ppp.tiny_model import byte_tokenizer
from ppp.types import RecipeError
from ppp.users.crowd import Crowd

CHECKPOINT, POLICY, ENDPOINT = "checkpoint", "policy", "endpoint"
KINDS = (CHECKPOINT, POLICY, ENDPOINT)
TINY_MODEL = "tiny_model"
CALLS = "calls"  # how an endpoint was given tools, "native" or "text", where nobody had asked for either
NO_LIMIT = 1_000_000_000
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
_SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True)
class AgentChoice:
    """An agent as it was asked for.

    Attributes:
        kind: one of `KINDS`.
        name: folder or name on the Hub, name of a policy; of an endpoint the name of its model.
        options: of an endpoint.
    """

    kind: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def as_choice(field_name: str, choice: str | Mapping[str, Any]) -> AgentChoice:
    """Read a choice: a name, or a mapping `{kind: ..., ...}`, whose kind is `endpoint` where it has none.

    Raises:
        RecipeError: no such agent; names the field.
    """
    if isinstance(choice, str):
        return _by_name(field_name, choice)
    options = dict(choice)
    kind = options.pop("kind", ENDPOINT)
    if kind == ENDPOINT:
        return AgentChoice(ENDPOINT, str(options.get("model", "")), options)
    if kind not in KINDS:
        raise refuse_unknown(f"{field_name}.kind", kind, KINDS)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise refuse(f"{field_name}.name", name, f"the name of the {kind}")
    if options:
        raise refuse_option(field_name, next(iter(options)), ("kind", "name"))
    found = _by_name(f"{field_name}.name", name)
    if found.kind != kind:
        raise refuse(f"{field_name}.kind", kind, f"{name!r} is a {found.kind}")
    return found


def _by_name(field_name: str, name: str) -> AgentChoice:
    if name == ENDPOINT:
        return AgentChoice(ENDPOINT, "")
    if name in POLICIES:
        return AgentChoice(POLICY, name)
    if Path(name).is_dir() or (_HUB_NAME.fullmatch(name) and not Path(name).parts[0].startswith(".")):
        return AgentChoice(CHECKPOINT, name)
    allowed = f"endpoint, the folder of a checkpoint or an adapter, a name on the Hub, or one of {', '.join(POLICIES)}"
    raise RecipeError(f"{field_name}: {name!r} is unknown; allowed: {allowed}")


class Contender:
    """An agent that was checked as far as that goes without loading its model.

    Args:
        choice: who it is.
        recipe: names its model, where it is a checkpoint; and everything that holds for all agents.
        field_name: for messages.

    Attributes:
        ledger: what its model takes; None where it is not asked over a network.

    Raises:
        RecipeError: it cannot play.
    """

    def __init__(self, choice: AgentChoice, recipe: Recipe, field_name: str = "agent") -> None:
        self.choice, self.recipe, self.field_name = choice, recipe, field_name
        self.ledger: ChatLedger | None = None
        self._agent: EndpointAgent | None = None
        config = recipe.config
        if choice.kind == POLICY:
            self._policy = build_policy(choice.name, list(config.eval_tasks), config.environment_options)
        elif choice.kind == ENDPOINT:
            self._agent = EndpointAgent.from_options(choice.options, field_name)
            self.ledger = self._agent.ledger

    def description(self) -> dict[str, Any]:
        """What a manifest says of it; of a local checkpoint also a digest of its weights."""
        choice = self.choice
        if choice.kind == ENDPOINT:
            options = {name: value for name, value in choice.options.items() if name != "model"}
            assert self._agent is not None
            return {
                "kind": choice.kind,
                "name": choice.name,
                **options,
                "base_url": shown_url(self._agent.endpoint.url),
            }
        if choice.kind == POLICY:
            return {"kind": choice.kind, "name": choice.name}
        config, args = self.recipe.config, self.recipe.args
        return {
            "kind": choice.kind,
            "name": choice.name,
            "weights": sample_weights(Path(choice.name)),
            "engine": config.engine,
            "dtype": config.dtype,
            "call_format": config.call_format,
            "chat_template": config.chat_template,
            "sampling": {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p},
        }

    def check(self, manifest: dict[str, Any]) -> None:
        """Find out, before a model is loaded and before anything is written, whether the agent can be had.

        Args:
            manifest: of its evaluation; gets the way in which an endpoint is given tools, which is found out here.

        Raises:
            RecipeError: it cannot, or not as in an earlier part of the evaluation; names the field.
            RunStoppedError: its budget is used up.
        """
        if self._agent is not None:
            asyncio.run(_check(self._agent))
            found = self._agent.tool_calls
            before = manifest["agent"].setdefault(CALLS, found)
            if before != found:
                allowed = f"the sessions so far were played with {before!r}; name a new folder"
                raise refuse(f"{self.field_name}.tool_calls", found, allowed)
        elif self.choice.kind == CHECKPOINT:
            check_engine(self.recipe, build_codec(self.recipe, build_tokenizer(self.recipe)))
            check_context(self.recipe)

    def enter_pool(self, stack: ExitStack, crowd: Crowd) -> RolloutPool:
        """A pool that it plays in; `stack` lets go of it, and of the model.

        Raises:
            RecipeError: its model cannot be loaded.
        """
        stack.callback(_free_memory)
        pool = self._pool(crowd)
        stack.callback(pool.engine.close)
        stack.callback(pool.close)
        return pool

    def _pool(self, crowd: Crowd) -> RolloutPool:
        recipe = self.recipe
        if self._agent is not None:
            return message_pool(recipe, self._agent, crowd)
        if self.choice.kind == POLICY:
            # A token per byte: the limits on tokens are meant for the recipe's model, those on turns and seconds bind.
            codec = Codec.from_tokenizer(byte_tokenizer())
            pool = build_pool(recipe, codec, ScriptedEngine(codec, self._policy), crowd)
            pool.limits = without_token_limits(pool.limits)
            return pool
        tokenizer = build_tokenizer(recipe)
        codec = build_codec(recipe, tokenizer)
        check_engine(recipe, codec)
        model = build_model(recipe, tokenizer).to(recipe.args.device).eval()
        return build_pool(recipe, codec, build_engine(recipe, codec, lambda: model), crowd)


async def _check(agent: EndpointAgent) -> None:
    try:
        await agent.check()
    finally:
        await agent.close()  # its connections belong to this event loop


def without_token_limits(limits: Limits) -> Limits:
    """The same turns and seconds, and as many tokens as anyone wants."""
    names = (entry.name for entry in fields(Limits))
    return replace(limits, **{n: NO_LIMIT for n in names if n.endswith(("_tokens", "_tokens_per_turn"))})


def sample_weights(folder: Path) -> str | None:
    """A digest of a folder's weights, from their sizes and a few blocks of each: another training gives another one.

    None where there is no such folder, as for a name on the Hub.
    """
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    if not files:
        return None
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for position in (0, size // 3, size // 2, size - _SAMPLE_BYTES):
                file.seek(max(0, position))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _free_memory() -> None:
    """Give the memory of a model back before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
