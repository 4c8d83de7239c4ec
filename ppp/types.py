"""The nouns of PPP: what a task, an answer, a turn and a trajectory are, and how each can fail.

Nothing here knows tokenizers, models or TRL, and nothing here imports another module of ours. Read `preferences.py`
next for the twenty users, then `rollout.py` for how a trajectory comes to be.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


class PPPError(Exception):
    """Base of the errors that this package raises on purpose."""


class InfrastructureError(PPPError):
    """Something of ours failed: a user endpoint, a container, a search server, a deadline.

    The trajectory leaves the batch (reward None, mask zero). It is never shown to the policy and never scored as 0.
    `kind` is its line in a run's table of failures: a few words without numbers or names, such as "timeout".
    """

    def __init__(self, message: str = "", *, kind: str = "infrastructure") -> None:
        super().__init__(message)
        self.kind = kind


class RunStoppedError(PPPError):
    """The run has to end, not one session: a budget is used up, or an endpoint stays away. Leaves a checkpoint."""


class DiskError(RunStoppedError):
    """A log or a checkpoint could not be written. The run ends without another; earlier ones are kept."""


class RecipeError(PPPError, ValueError):
    """The operator's mistake, found before a model is loaded: names the field, the value and what is allowed."""


class Effort(enum.IntEnum):
    """What one answer cost the user (PPP section 3.2); ordered, so that `max` of a session is its effort."""

    LOW = 0
    MEDIUM = 1
    HIGH = 2

    @property
    def label(self) -> str:
        return self.name.lower()


class StopReason(enum.StrEnum):
    """Why a trajectory ended."""

    FINISHED = "finished"  # the policy called finish(answer)
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"  # the completion budget is spent, possibly in the middle of a turn
    PROMPT_TOO_LONG = "prompt_too_long"  # refused before the first turn
    ERROR = "error"  # infrastructure: leaves the batch

    @property
    def is_truncated(self) -> bool:
        return self is StopReason.MAX_TOKENS


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One parsed call of the policy: the tool's name and its arguments, still unchecked against the tool's schema."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """What the policy is told of a tool: `parameters` is a JSON schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    def as_openai(self) -> dict[str, Any]:
        """The form that chat templates and OpenAI-compatible endpoints expect in `tools`."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Observation:
    """What a tool said. `is_error` marks the policy's own mistakes (bad arguments, no such file)."""

    text: str
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """One session to be played: a problem, the user who has it, and what only the scorer and the user may read.

    Attributes:
        task_id: unique among the tasks of one set; the copies for different preferences differ in it.
        environment: a key of `ppp.environments.ENVIRONMENTS`.
        prompt: what the agent sees: the vague or the precise prompt.
        precise_prompt: what the user knows. `prompt == precise_prompt` makes a precise session.
        preference: a key of `ppp.preferences.PREFERENCES`.
        payload: JSON values for the environment, its scorer and the user; never shown to the agent.
    """

    task_id: str
    environment: str
    prompt: str
    precise_prompt: str
    preference: str
    payload: Mapping[str, Any]

    @property
    def is_precise(self) -> bool:
        return self.prompt == self.precise_prompt

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Task:
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Answer:
    """A user's reply to one question.

    Attributes:
        text: what the user says; goes to the policy.
        effort: what the reply cost the user.
        follows_preference: whether the question was put the way this user likes; True where the preference has nothing
            to say about a single question.
        decided_by: who gave the two verdicts: "rule", "evidence", "judge" or "person".
        level: the released code's finer grade of the same effort (1 to 5, deep research 1 to 3); None derives it from
            `effort`.
    """

    text: str
    effort: Effort
    follows_preference: bool
    decided_by: str = "rule"
    level: int | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """What a user knows beyond the precise prompt: to draw on it is high effort (PPP section 2.3).

    Attributes:
        name: what a user model calls it, e.g. "hints", "gold_files"; unique within a task.
        text: as a user model is shown it.
        items: names that give it away in an answer: paths, functions, a document's title, the solution.
        level: the released code's grade of an answer that draws on it.
        is_gold: holds part of the solution; a layperson does not know it.
    """

    name: str
    text: str
    items: tuple[str, ...]
    level: int
    is_gold: bool = True


@dataclass(frozen=True, slots=True)
class Preference:
    """How one kind of user likes to be asked; one row of the table in `preferences.py`.

    Attributes:
        name: key of the table.
        description: what the agent is told of this user.
        criterion: the question put to a judge for preferences that no rule can decide; "" where none is needed.
        rule: question -> True (follows), False (breaks it), or None where only a judge can tell.
        penalty: trajectory -> float <= 0, the table's penalty (PPP section 3.3).
        split: "seen" (trained on) or "unseen" (held out).
        needs_question: the preference is about how questions are put, so that following it takes a question
            (all but `no_ask`, and those without a penalty).
    """

    name: str
    description: str
    criterion: str
    rule: Callable[[str], bool | None]
    penalty: Callable[[Trajectory], float]
    split: str
    needs_question: bool = True


@dataclass(slots=True)
class Turn:
    """One turn of the agent and what came back.

    Attributes:
        completion_ids: tokens that the policy generated, its end-of-turn token included when it wrote one.
        logprobs: log-probability of each of them under the sampling distribution; same length.
        message: the turn as a chat message `{"role": "assistant", "content": ..., ["tool_calls": ...]}`.
        call: the parsed tool call; None when the turn held none that could be read.
        observation: the text that came back; None when the trajectory ended with this turn.
        observation_ids: tokens appended after the turn (tool message and next generation prompt; starts with a closing
            end-of-turn token if the turn was cut off). Never carry loss.
        is_error: the observation tells the policy of its own mistake.
        truncated: the turn hit its token limit before it ended.
        question: the text put to the user, if the turn asked.
        answer: the user's reply, if the turn asked.
        num_tokens: tokens that the turn took as its maker counts them, where `completion_ids` are not its own (an agent
            behind an endpoint); None: as many as there are ids.
    """

    completion_ids: list[int]
    logprobs: list[float]
    message: dict[str, Any]
    call: ToolCall | None = None
    observation: str | None = None
    observation_ids: list[int] = field(default_factory=list)
    is_error: bool = False
    truncated: bool = False
    question: str | None = None
    answer: Answer | None = None
    num_tokens: int | None = None


@dataclass(slots=True)
class Trajectory:
    """One finished session. Token streams are derived from the turns, so that they cannot drift apart.

    Attributes:
        task: the task that was played.
        prompt_ids: tokens of the rendered prompt.
        turns: in order.
        stop_reason: None while the trajectory is still running.
        productivity: the environment's score in [0, 1]; None when it was never scored (stop_reason ERROR).
        final_answer: what the policy passed to `finish`, if it did.
        error: what went wrong, for stop_reason ERROR.
        error_kind: the same in a few words, see `InfrastructureError`.
        timings: seconds by kind of work: "setup", "generate", "tool", "user", "score", "total".
    """

    task: Task
    prompt_ids: list[int] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    stop_reason: StopReason | None = None
    productivity: float | None = None
    final_answer: str | None = None
    error: str | None = None
    error_kind: str | None = None
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether infrastructure failed, so that the trajectory must leave the batch."""
        return self.stop_reason is StopReason.ERROR

    @property
    def completion_ids(self) -> list[int]:
        """All tokens after the prompt, the policy's own and the observations', in order."""
        return [token for turn in self.turns for token in (*turn.completion_ids, *turn.observation_ids)]

    @property
    def logprobs(self) -> list[float]:
        """Sampling log-probability of each completion token; 0.0 on observation tokens. Same length as the ids."""
        return [value for turn in self.turns for value in (*turn.logprobs, *([0.0] * len(turn.observation_ids)))]

    @property
    def env_mask(self) -> list[int]:
        """1 on the policy's own tokens, 0 on observations; all zero for a failed trajectory. Same length as the ids."""
        own = 0 if self.failed else 1
        mask: list[int] = []
        for turn in self.turns:
            mask += [own] * len(turn.completion_ids) + [0] * len(turn.observation_ids)
        return mask

    @property
    def asked(self) -> list[Turn]:
        """The turns that put a question to the user and got an answer."""
        return [turn for turn in self.turns if turn.answer is not None]

    @property
    def answers(self) -> list[Answer]:
        return [turn.answer for turn in self.turns if turn.answer is not None]

    @property
    def questions(self) -> Sequence[str]:
        return [turn.question for turn in self.asked if turn.question is not None]

    @property
    def num_off_preference(self) -> int:
        """`n_bad` of the paper: questions that were not put the way this user likes."""
        return sum(not answer.follows_preference for answer in self.answers)
