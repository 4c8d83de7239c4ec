"""Sessions for the tests of the page: ordinary ones, and one that is hostile in every text that a model can write."""

from __future__ import annotations

import json
from typing import Any

from ppp.reporting.content import Figure, Headline, Report, Session, Table

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)>"
    "<a href='javascript:alert(4)'>x</a><iframe src='https://example.invalid/'></iframe>"
    "<style>@import 'https://example.invalid/x.css'</style><!-- ' onfocus=alert(5) autofocus \" {{ 7*7 }} ]]>"
    "\u202egnp.exe\u2066\u200b\u200d\ufeff\x00\x1b[31m\x1e\x1f\ud83d\U000e0041"
)


def record(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A vague session with one question and one tool call, solved."""
    question = f"Which module is it, number {number}?"
    turns = [
        {
            "text": "Something is missing.",
            "call": {"name": "ask_user", "arguments": json.dumps({"query": question})},
            "question": question,
            "answer": {
                "text": "It is the router.",
                "effort": "low",
                "follows_preference": True,
                "decided_by": "evidence",
            },
            "observation": "It is the router.",
            "is_error": False,
            "truncated": False,
        },
        {
            "text": "",
            "call": {"name": "open_file", "arguments": json.dumps({"path": "router/merging.py"})},
            "observation": "Functions: key f57",
            "is_error": False,
            "truncated": False,
        },
        {
            "text": "The key.",
            "call": {"name": "finish", "arguments": json.dumps({"answer": "f57"})},
            "observation": None,
            "is_error": False,
            "truncated": False,
        },
    ]
    made: dict[str, Any] = {
        "step": number,
        "mode": "eval",
        "metric_version": 1,
        "row": number,
        "copy": 0,
        "task_id": f"task-{number}/concise_question",
        "environment": "town",
        "preference": "concise_question",
        "is_precise": False,
        "prompt": "Somewhere, merging is broken.",
        "precise_prompt": "In router, merging the key is broken.",
        "stop_reason": "finished",
        "final_answer": "f57",
        "error": None,
        "error_kind": None,
        "score": {"productivity": 1.0, "proactivity": 0.05, "personalization": 0.05, "reward": 1.0},
        "session": {
            "productivity": 1.0,
            "session_effort": "low",
            "follows_preference": True,
            "num_questions": 1,
            "effort": {"low": 1, "medium": 0, "high": 0},
        },
        "num_prompt_tokens": 40,
        "num_completion_tokens": 90,
        "num_policy_tokens": 50,
        "timings": {"generate": 1.2, "tool": 0.1, "user": 0.4, "total": 1.75},
        "turns": turns,
    }
    return made | changes


def silent(number: int, **changes: Any) -> dict[str, Any]:
    """A vague session without a question, wrong: high effort."""
    made = record(number)
    session = {"productivity": 0.0, "session_effort": "high", "follows_preference": True, "num_questions": 0}
    session["effort"] = {"low": 0, "medium": 0, "high": 0}
    score = {"productivity": 0.0, "proactivity": 0.0, "personalization": 0.0, "reward": 0.0}
    return made | {"session": session, "score": score, "turns": made["turns"][1:]} | changes


def failed(number: int, **changes: Any) -> dict[str, Any]:
    """A session that the infrastructure ended."""
    gone = {"stop_reason": "error", "error": "the user's endpoint is down", "error_kind": "timeout", "score": None}
    return record(number, **gone, session=None, final_answer=None, turns=[], **changes)


def poisoned(value: Any) -> Any:
    """A JSON value with the hostile text in the place of every text."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, dict):
        return {name: poisoned(part) for name, part in value.items()}
    return [poisoned(part) for part in value] if isinstance(value, list) else value


def hostile(number: int) -> dict[str, Any]:
    """A session that is hostile in every field, numbers excepted; its argument is an object with a hostile name."""
    made: dict[str, Any] = poisoned(record(number))
    made["turns"][1]["call"]["arguments"] = json.dumps({HOSTILE: HOSTILE, "__proto__": {"toString": HOSTILE}})
    made["turns"][1]["is_error"] = made["turns"][1]["truncated"] = True
    made["error"] = HOSTILE
    return made


def tokens() -> dict[str, Any]:
    pieces = ["Some", "thing\n", "", "\t<|im_end|>", HOSTILE, "obs", "erved"]
    return {
        "step": 0,
        "pieces": pieces,
        "own": [1, 1, 1, 1, 1, 0, 0],
        "logprobs": [-0.01, -0.4, -1.5, -3.2, -9.0, None, None],
    }


def report(sessions: list[Session], *, title: str = "A report", label: str = "solved") -> Report:
    svg = '<?xml version="1.0"?><svg viewBox="0 0 9 9"><defs><path id="p" d="M0 0"/></defs><use href="#p"/></svg>'
    return Report(
        title=title,
        headlines=[Headline("Productivity", 62.44, 58.0, 66.0, 40.0), Headline(label, None)],
        tables=[Table("t", label, ["method", label], [["after", "62.4"], [label, label]], note=label)],
        figures=[Figure("one", label, svg, label), Figure("two", "Second", svg)],
        sessions=sessions,
        num_sessions=len(sessions),
        problems=[label],
    )
