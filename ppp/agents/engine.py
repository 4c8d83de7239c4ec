"""The engine whose turns come from an agent that speaks messages: it tells the session as a conversation.

The pool plays an agent like a policy: same environments, users, limits and scores. The tokens of its turns are
stand-ins (`stand_in.py`); what it does is in `Generation.parsed`, so that no text of it is searched for calls.
`build.py` comes next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from ppp.agents.base import Agent, AgentTurn
from ppp.codec import Codec
from ppp.encoder import clean
from ppp.engines.base import Engine, Generation, GenerationRequest
from ppp.environments import environment_class
from ppp.environments.base import Environment
from ppp.session import Toolbox, Visibility, build_messages
from ppp.turn_reader import CUT_OFF, NO_CALL, ParsedTurn
from ppp.types import Task, ToolCall, Turn

# What a server takes back in a conversation; names that a model made up may be anything.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
NO_NAME = "no_such_tool"
SILENCE = "..."  # in place of a turn that says nothing: many servers refuse an empty message


class MessageEngine(Engine):
    """Lets an agent take the turns.

    Args:
        codec: makes the tokens that stand for what is said.
        agent: who takes the turns; it is not closed here, but let go of with the event loop.
        environment_options: environment name -> options, as the pool has them.
        preference_visibility, interaction: as the pool has them.
    """

    def __init__(
        self,
        codec: Codec,
        agent: Agent,
        *,
        environment_options: Mapping[str, Mapping[str, Any]] | None = None,
        preference_visibility: Visibility = "stated",
        interaction: bool = True,
    ) -> None:
        self.codec, self.agent = codec, agent
        self.environment_options = {name: dict(options) for name, options in (environment_options or {}).items()}
        self.preference_visibility, self.interaction = preference_visibility, interaction
        self.takes_time = agent.takes_time
        self._beginning = lru_cache(maxsize=1024)(self._build_beginning)

    async def generate(self, request: GenerationRequest) -> Generation:
        """Let the agent take one turn."""
        turn = await self.agent.act(
            self.conversation(request.task, request.turns),
            Toolbox.of(self._environment(request.task.environment), self.interaction).specs,
            max_tokens=request.max_tokens,
            seed=turn_seed(request.noise_key, len(request.turns)),
        )
        parsed = _parsed(turn)
        said = turn.text if parsed.call is not None else "".join([turn.text, *(_arguments(c) for c in turn.calls)])
        # Tokens that stand for a turn may be more than it took: its own limit was kept by whoever wrote it.
        token_ids = self.codec.render_turn(said, parsed.call)[: request.max_tokens]
        logprobs = [0.0] * len(token_ids)
        return Generation(token_ids, logprobs, "stop" if parsed.closed else "length", parsed, turn.num_tokens)

    def conversation(self, task: Task, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        """The session so far, as the protocol has it: every call is followed by its tool message.

        The observation of a turn without a call comes as a message of the user.
        """
        messages = list(self._beginning(task.environment, task.preference, task.prompt))
        for number, turn in enumerate(turns):
            messages += _exchange(number, turn)
        return messages

    async def leave_loop(self) -> None:
        await self.agent.close()

    def _environment(self, name: str) -> type[Environment]:
        return environment_class(name, self.environment_options.get(name))

    def _build_beginning(self, environment: str, preference: str, prompt: str) -> list[dict[str, Any]]:
        task = Task("", environment, prompt, prompt, preference, {})
        return build_messages(task, self._environment(environment), self.preference_visibility, self.interaction)


def turn_seed(noise_key: int, number: int) -> int:
    """The seed of a turn: 31 bits, equal for equal arguments on every machine."""
    digest = blake2b(f"turn/{noise_key}/{number}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def _parsed(turn: AgentTurn) -> ParsedTurn:
    """The turn as the session carries it out."""
    call = None if turn.is_cut_off else turn.call
    calls = turn.calls if call is None else (call,)
    message: dict[str, Any] = {"role": "assistant", "content": turn.text}
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if calls:
        functions = [{"name": made.name, "arguments": dict(made.arguments)} for made in calls]
        message["tool_calls"] = [{"type": "function", "function": function} for function in functions]
    error = None if call is not None else turn.error or (CUT_OFF if turn.is_cut_off else NO_CALL)
    return ParsedTurn(message, call, error, closed=not turn.is_cut_off)


def _exchange(number: int, turn: Turn) -> list[dict[str, Any]]:
    """One finished turn: what the agent said and what came back."""
    functions = [entry["function"] for entry in turn.message.get("tool_calls", ())]
    text, observation = turn.message["content"], turn.observation or ""
    if not functions:
        return [{"role": "assistant", "content": text or SILENCE}, {"role": "user", "content": observation}]
    # Nine letters and digits, which is what Mistral's servers insist on.
    ids = [f"c{number:04d}{index:04d}" for index in range(len(functions))]
    calls = [
        {
            "id": call_id,
            "type": "function",
            "function": {
                "name": function["name"] if _NAME.fullmatch(function["name"]) else NO_NAME,
                "arguments": clean(json.dumps(function["arguments"], ensure_ascii=False)),
            },
        }
        for call_id, function in zip(ids, functions, strict=True)
    ]
    answers = [{"role": "tool", "tool_call_id": call_id, "content": observation} for call_id in ids]
    return [{"role": "assistant", "content": text, "tool_calls": calls}, *answers]


def _arguments(call: ToolCall) -> str:
    return call.name + json.dumps(dict(call.arguments), ensure_ascii=False)
