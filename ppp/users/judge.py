"""Whether a question was put the way a user likes, asked of a model that sees nothing but the question.

For preferences that no rule can decide. A judge of its own knows neither the task nor the user's answer, so that a
question has less to talk it into. Without one the user model decides along with its answer, see `llm.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ppp.chat.gateway import ChatGateway
from ppp.chat.structured import structured_chat
from ppp.preferences import PREFERENCES
from ppp.prompts import load_prompt
from ppp.types import Turn

MAX_QUESTION_CHARS = 6000  # of a question that any model sees, and that evidence is looked for in
MAX_TURNS = 20  # of the work before, the latest ones
MAX_TURN_CHARS = 160  # of each part of a turn
NEEDS_WORK = ("first_try",)  # preferences for which it matters what was done before
_HALF = re.compile("[\ud800-\udfff]")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"follows_preference": {"type": "boolean"}},
    "required": ["follows_preference"],
    "additionalProperties": False,
}


async def judge_question(
    gateway: ChatGateway, preference: str, question: str, turns: Sequence[Turn] = (), seed: int | None = None
) -> bool:
    """Whether the question follows a preference that has a criterion.

    Args:
        gateway: the judge.
        preference: its name.
        question: untrusted.
        turns: of the session before it.
        seed: sent along, if given.

    Raises:
        InfrastructureError: the judge gives no verdict.
        RunStoppedError: it will not come back, or its budget is used up.
    """
    wish = PREFERENCES[preference]
    data: dict[str, Any] = {"preference": wish.description, "criterion": wish.criterion}
    if preference in NEEDS_WORK:
        data["work_before"] = work_before(turns)
    data["question"] = question[:MAX_QUESTION_CHARS]
    messages = [
        {"role": "system", "content": load_prompt("user_judge.txt")},
        {"role": "user", "content": as_data(data)},
    ]
    verdict = await structured_chat(gateway, messages, SCHEMA, "verdict", seed=seed)
    return bool(verdict["follows_preference"])


def as_data(value: Any) -> str:
    """`value` as JSON text that can be sent: an agent can write half a character, and no request can hold one."""
    return _HALF.sub("\ufffd", json.dumps(value, ensure_ascii=False))


def work_before(turns: Sequence[Turn]) -> list[str]:
    """What the agent did in the latest turns, a line each: calls and what came back, not what it says of itself."""
    lines = []
    for turn in turns[-MAX_TURNS:]:
        if turn.answer is not None:
            lines.append("asked the user a question")
        elif turn.call is None:
            lines.append("did nothing")
        else:
            arguments = json.dumps(dict(turn.call.arguments), ensure_ascii=False)[:MAX_TURN_CHARS]
            outcome = "failed" if turn.is_error else "gave"
            result = " ".join((turn.observation or "").split())[:MAX_TURN_CHARS]
            lines.append(f"called {turn.call.name[:50]} {arguments}, which {outcome}: {result}")
    return lines
