"""What an agent that speaks messages has to offer: one turn, given the conversation so far.

Policies that are trained speak tokens and are engines (`ppp/engines/`). `MessageEngine`, beside this file in
`engine.py`, puts an agent into the pool like one of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ppp.chat.ledger import ChatLedger
from ppp.types import ToolCall, ToolSpec

Messages = Sequence[Mapping[str, Any]]
"""As OpenAI's protocol has them: system, user, then assistant (`tool_calls` with JSON text as arguments) and tool."""


@dataclass(frozen=True, slots=True)
class AgentTurn:
    """What an agent does in one turn.

    Attributes:
        text: what it says beside its call; untrusted, never searched for calls.
        call: its one call; None where there is none that can be carried out.
        error: why there is none, in words for the agent.
        is_cut_off: the turn hit its token limit; its call is not carried out.
        num_tokens: tokens that it took, thinking included; None where nobody counts.
        reasoning: what it thought, where that can be told from what it said.
        calls: calls that it wrote and that cannot be carried out, for where there is no `call`: they stay in the
            conversation, each with the error as its answer, because the protocol wants one for every call.
    """

    text: str
    call: ToolCall | None = None
    error: str | None = None
    is_cut_off: bool = False
    num_tokens: int | None = None
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


class Agent(ABC):
    """Who plays the agent; one object plays all sessions of a run, many at once, and keeps nothing of any of them.

    Attributes:
        ledger: what its models took; None where no model is asked.
        takes_time: a person, whom no deadline of a session hurries.
    """

    ledger: ChatLedger | None = None
    takes_time: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """For tables and results, e.g. "gpt-5 at https://api.openai.com/v1"."""

    async def check(self) -> None:
        """Find out, before anything is played, whether the agent can be reached.

        Raises:
            RecipeError: it cannot; one sentence that names the field.
        """

    @abstractmethod
    async def act(self, messages: Messages, tools: Sequence[ToolSpec], *, max_tokens: int, seed: int) -> AgentTurn:
        """Take one turn.

        Args:
            messages: the conversation so far.
            tools: what can be called, `ask_user` and `finish` included.
            max_tokens: of this turn.
            seed: 31 bits, a function of the run's seed, the session and the turn.

        Raises:
            InfrastructureError: the agent cannot be reached; the session leaves the batch.
            ContextFullError: the conversation is longer than what it can read; the session ends and is scored.
            RunStoppedError: it will not come back, or its budget is used up.
        """

    async def close(self) -> None:
        """Let go of what belongs to the running event loop; it is opened again when needed."""
