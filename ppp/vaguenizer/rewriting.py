"""The vaguenizer: a precise text in, a vague one out that passed every check, or a list of what was wrong.

Source: PPP section 2.1, two principles: the intent stays, and only part of the information stays. One model rewrites, a
judge (the same model, or another) says whether the intent is the same, and rules decide the rest, see
`checks.py`. The rewriting model never sees the solution. Files, resuming and the command are not here: read
`rows.py` and `cli.py` next.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Template
from typing import Any

from ppp.chat.gateway import ChatGateway
from ppp.chat.structured import structured_chat
from ppp.environments import ENVIRONMENTS, environment_class
from ppp.prompts import load_prompt
from ppp.types import RecipeError, Task
from ppp.vaguenizer.checks import (
    CHECKS,
    JUDGED,
    LEVELS,
    Original,
    find_problems,
    max_chars,
    max_specifics,
    nothing_to_remove,
    remaining_specifics,
    removed_specifics,
)
from ppp.vaguenizer.gold_names import gold_names

REWRITE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
    "additionalProperties": False,
}
JUDGE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "same_intent": {"type": "boolean"}},
    "required": ["reason", "same_intent"],
    "additionalProperties": False,
}
MAX_SENT_CHARS = 60_000  # of a precise text; what lies beyond would only be a longer log
MAX_REASON_CHARS = 300  # of a judge's reason that the writer is told


@dataclass(frozen=True, slots=True)
class RowKind:
    """A kind of row: where its precise text is and where its vague one goes.

    Attributes:
        precise: fields of which the first one present holds the precise text; the row is of this kind if one is.
        vague: the field that is written.
        ids: fields of which the first one present names the row.
        form: "problem" or "question", see `LEVELS`; a task row's environment may say otherwise.
    """

    precise: tuple[str, ...]
    vague: str
    ids: tuple[str, ...]
    form: str


ROW_KINDS: Mapping[str, RowKind] = {
    "task": RowKind(("precise_prompt",), "vague_prompt", ("task_id",), "problem"),
    "issue": RowKind(("problem_statement",), "vague_statement", ("instance_id",), "problem"),
    "question": RowKind(("question", "query"), "vague_question", ("qid", "query_id", "question_id", "id"), "question"),
}
QUESTION_ENVIRONMENTS = ("deep_research",)  # whose precise prompts are search questions


@dataclass(frozen=True)
class VagueRow:
    """One row of the input: as it stands there, and what the vaguenizer needs of it.

    Attributes:
        line: its line in the input, from 1.
        name: its id, or "line 7".
        raw: the row with all its fields.
        kind: key of `ROW_KINDS`.
        original: the precise text with its details and the names of the solution.
    """

    line: int
    name: str
    raw: Mapping[str, Any]
    kind: str
    original: Original


@dataclass
class Outcome:
    """What became of a row.

    Attributes:
        status: "done", "failed" (no attempt passed every check) or "nothing to remove" (nothing was asked).
        text: the vague text; None unless "done".
        attempts: texts that were written, in order, each with its problems by check.
        reason: why there was nothing to remove.
    """

    status: str
    text: str | None = None
    attempts: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    reason: str = ""

    def record(self, original: Original, level: str) -> dict[str, Any]:
        """The outcome as JSON values, for the row's `vaguenizer`."""
        before = {kind: len(details) for kind, details in original.specifics.items()}
        shown: dict[str, Any] = {"status": self.status, "level": level, "num_attempts": len(self.attempts)}
        if self.reason:
            shown["reason"] = self.reason
        if self.text is not None:
            shown["checks"] = [*CHECKS, JUDGED]
            shown["num_chars"] = {"before": len(original.text), "after": len(self.text)}
            shown["specifics"] = {"before": before, "after": remaining_specifics(original, self.text)}
            shown["removed"] = {
                kind: [detail[:120] for detail in details[:20]]
                for kind, details in removed_specifics(original, self.text).items()
            }
        refused = [{"text": text, "problems": problems} for text, problems in self.attempts if problems]
        if refused:
            shown["refused"] = refused
        return shown


def make_row(line: int, raw: Any, titles: Mapping[str, str] | None = None) -> VagueRow:
    """A row of the input, checked.

    Args:
        titles: document id -> title, for search questions that name their gold documents by id.

    Raises:
        RecipeError: it is of no known kind, or a field that is needed does not hold a text; does not name the file.
    """
    if not isinstance(raw, dict):
        raise RecipeError(f"{str(raw)[:80]!r} is not an object")
    for name, kind in ROW_KINDS.items():
        precise = next((field for field in kind.precise if field in raw), None)
        if precise is None:
            continue
        text = raw[precise]
        if not isinstance(text, str) or not text.strip():
            raise RecipeError(f"{precise} is {str(text)[:80]!r}; expected a text that is not blank")
        identity = next((raw[field] for field in kind.ids if raw.get(field) not in (None, "")), None)
        form = kind.form
        items: Sequence[str] = ()
        if name == "task":
            form = "question" if raw.get("environment") in QUESTION_ENVIRONMENTS else form
            items = _gold_items(raw)
        original = Original(text, form, gold_names(raw, titles=titles, items=items))
        return VagueRow(line, f"line {line}" if identity is None else str(identity), raw, name, original)
    known = " or ".join(field for kind in ROW_KINDS.values() for field in kind.precise)
    raise RecipeError(f"there is no precise text; a row has {known}")


def _gold_items(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The names that give a task's solution away, as far as its environment says which they are."""
    name, payload = raw.get("environment"), raw.get("payload")
    if name not in ENVIRONMENTS or not isinstance(payload, dict):
        return ()
    precise = raw["precise_prompt"]
    task = Task(str(raw.get("task_id")), name, precise, precise, "no_preference", payload)
    try:
        sources = environment_class(name).sources(task)
    except (KeyError, TypeError) as error:
        raise RecipeError(f"payload does not hold what the environment {name!r} needs ({error!r})") from error
    return tuple(item for source in sources if source.is_gold for item in source.items)


class Vaguenizer:
    """Rewrites rows at one level.

    Args:
        writer: the model that rewrites.
        judge: the model that compares the intents.
        level: key of `LEVELS`.
        max_attempts: texts that are written for a row before it counts as failed.
    """

    def __init__(self, writer: ChatGateway, judge: ChatGateway, level: str = "vague", max_attempts: int = 3) -> None:
        if level not in LEVELS:
            raise RecipeError(f"level: {level!r} is unknown; allowed: {', '.join(LEVELS)}")
        if max_attempts < 1:
            raise RecipeError(f"max_attempts: {max_attempts!r} is not allowed; must be at least 1")
        self.writer, self.judge = writer, judge
        self.level, self.max_attempts = level, max_attempts

    async def vaguenize(self, original: Original) -> Outcome:
        """Write until a text passes every check, with what was wrong as feedback.

        Raises:
            InfrastructureError: a model could not be reached, or never gave an answer of the right form.
            RunStoppedError: the budget is used up, or an endpoint stays away.
        """
        reason = nothing_to_remove(original)
        if reason is not None:
            return Outcome("nothing to remove", reason=reason)
        messages = self._opening(original)
        outcome = Outcome("failed")
        for attempt in range(1, self.max_attempts + 1):
            reply = await structured_chat(self.writer, messages, REWRITE_SCHEMA, "vague_text")
            text = str(reply["text"]).strip()
            # In a thread: to hear a language takes long enough to hold up the other rows.
            problems = await asyncio.to_thread(find_problems, original, text, self.level)
            problems = problems or await self._judged(original, text)
            outcome.attempts.append((text, problems))
            if not problems:
                outcome.status, outcome.text = "done", text
                return outcome
            # Every attempt is answered from the beginning: a growing conversation costs more and drifts.
            messages = [*self._opening(original), *self._feedback(attempt, text, problems)]
        return outcome

    def _opening(self, original: Original) -> list[dict[str, Any]]:
        bounds = LEVELS[self.level][original.form]
        system = Template(load_prompt(f"vaguenize_{original.form}.txt")).substitute(
            level=self.level,
            max_chars=max_chars(original, bounds),
            max_specifics=max_specifics(original, bounds),
        )
        key = "question" if original.form == "question" else "description"
        return [{"role": "system", "content": system}, {"role": "user", "content": _as_data({key: original.text})}]

    def _feedback(self, attempt: int, text: str, problems: Mapping[str, str]) -> Sequence[dict[str, Any]]:
        content = Template(load_prompt("vaguenize_feedback.txt")).substitute(
            attempt=attempt,  # also makes the request another one for a cache when a model repeats itself
            max_attempts=self.max_attempts,
            problems="\n".join(f"- {problem}" for problem in problems.values()),
        )
        return [
            {"role": "assistant", "content": _as_data({"text": text})},
            {"role": "user", "content": content},
        ]

    async def _judged(self, original: Original, text: str) -> dict[str, str]:
        """What the judge has against a text that keeps the rules: nothing, or that the intent is another one."""
        messages = [
            {"role": "system", "content": load_prompt("vaguenize_judge.txt")},
            {"role": "user", "content": _as_data({"precise": original.text, "vague": text})},
        ]
        verdict = await structured_chat(self.judge, messages, JUDGE_SCHEMA, "intent")
        if verdict["same_intent"] is True:
            return {}
        return {JUDGED: f"The intent is not the same: {str(verdict['reason'])[:MAX_REASON_CHARS]}"}


def _as_data(values: Mapping[str, str]) -> str:
    """Untrusted texts as one JSON object, which they cannot leave; broken surrogates are replaced."""
    sound = {key: text[:MAX_SENT_CHARS].encode("utf-8", "replace").decode("utf-8") for key, text in values.items()}
    return json.dumps(sound, ensure_ascii=False)
