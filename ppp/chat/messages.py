"""What a model said in one turn, read off an assistant message: text, thoughts, and calls as it wrote them.

The forms are those of OpenAI's chat completions, with the liberties that other servers take. Whether a call can be
carried out is not looked at here. `bodies.py` reads the rest of an answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


def encodable_text(text: str) -> str:
    """The text with halves of surrogate pairs, as JSON may hold them, joined or replaced: UTF-8 has none."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """A tool call as the model wrote it: `arguments` should be the text of a JSON object, and may be anything."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class SaidTurn:
    """One turn of a model; all of it untrusted."""

    text: str
    calls: tuple[WrittenCall, ...] = ()
    reasoning: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> SaidTurn:
        fields = json.loads(text)
        calls = tuple(WrittenCall(**call) for call in fields["calls"])
        return cls(fields["text"], calls, fields["reasoning"])


def read_message(message: Mapping[str, Any]) -> SaidTurn:
    """The turn in an assistant message.

    Content may be missing, a text, or a list of parts; a call may lack its id, and have its arguments as an object.

    Raises:
        ValueError: it is no assistant message; says what is wrong with it.
    """
    if message.get("role", "assistant") != "assistant":
        raise ValueError(f"its role is {message['role']!r}, not 'assistant'")
    text = _text(message.get("content")) or _text(message.get("refusal"))
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, list | tuple):
        raise ValueError("its tool_calls are no list")
    return SaidTurn(
        text, tuple(map(_read_call, calls)), encodable_text(reasoning) if isinstance(reasoning, str) else ""
    )


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return encodable_text(content)
    if not isinstance(content, list):
        raise ValueError(f"its content is {type(content).__name__}, not text")
    parts = [part.get("text") for part in content if isinstance(part, Mapping)]  # thoughts have no text of their own
    return encodable_text("".join(part for part in parts if isinstance(part, str)))


def _read_call(entry: Any) -> WrittenCall:
    function = entry.get("function") if isinstance(entry, Mapping) else None
    if not isinstance(function, Mapping):
        raise ValueError("an entry of its tool_calls has no function")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = "" if arguments is None else json.dumps(arguments, ensure_ascii=False)
    return WrittenCall(encodable_text(str(function.get("name") or "")), encodable_text(arguments))
