"""What goes to a chat endpoint and what comes back: the fields of a request, and the text and usage of an answer.

An answer is a text (`read_answer`) or the turn of an agent, which may be silent or call tools (`read_turn`).

The forms are those of OpenAI's chat completions, with the liberties that other servers take. `gateway.py` sends them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from ppp.chat.cache import Recorded
from ppp.chat.failures import CONTENT_FILTER, REPLACED_PARAMETERS, RequestFailure
from ppp.chat.ledger import Usage
from ppp.chat.messages import encodable_text, read_message

CHARS_PER_TOKEN = 4  # an estimate, used where the endpoint has not counted
COMPLETION_TOKENS = 256  # an estimate, used where a request has no limit


def encodable(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a message whose text can be sent: half a surrogate pair, as JSON arguments may hold, is replaced."""
    copy = dict(message)
    if isinstance(text := copy.get("content"), str):
        copy["content"] = encodable_text(text)
    return copy


def request_body(request: Mapping[str, Any], replaced: Collection[str]) -> dict[str, Any]:
    """The fields that are sent for a request; those in `replaced` go by the name that `REPLACED_PARAMETERS` gives."""
    body = {name: value for name, value in request.items() if name not in replaced}
    for name in replaced:
        other = REPLACED_PARAMETERS[name]
        if other is not None and name in request:
            body[other] = request[name]
    extra = body.pop("extra_body", {})
    return {**body, **extra}


def read_answer(content: str, request: Mapping[str, Any]) -> tuple[Recorded, Usage]:
    """Text and usage of a response body.

    Raises:
        RequestFailure: there is no answer in it.
    """
    message, reason, counts = _fields(content)
    text = message.get("content")
    usage = _usage(counts, text if isinstance(text, str) else None, request)
    if not isinstance(text, str) or not text.strip():
        kind = reason if reason in ("length", CONTENT_FILTER) else "empty answer"
        raise RequestFailure(kind, f"an empty answer (finish_reason {reason})", retry=True, usage=usage)
    return Recorded(text, usage.prompt_tokens, usage.completion_tokens, reason), usage


def read_turn(content: str, request: Mapping[str, Any]) -> tuple[Recorded, Usage]:
    """The turn in a response body, as the text of a `SaidTurn`, and its usage. To say nothing is a turn, too.

    Raises:
        RequestFailure: there is no turn in it, or a filter of the provider held it back, which asking again would not
            change.
    """
    message, reason, counts = _fields(content)
    try:
        said = read_message(message)
    except ValueError as problem:
        raise RequestFailure("invalid body", f"the body holds no assistant message: {problem}", retry=True) from None
    written = "".join(call.name + call.arguments for call in said.calls)
    usage = _usage(counts, said.text + said.reasoning + written, request)
    if reason == CONTENT_FILTER:
        raise RequestFailure(CONTENT_FILTER, f"the answer was held back (finish_reason {reason})", usage=usage)
    return Recorded(said.to_json(), usage.prompt_tokens, usage.completion_tokens, reason), usage


def _fields(content: str) -> tuple[Mapping[str, Any], str | None, Any]:
    """Message, finish_reason and usage of a response body.

    Raises:
        RequestFailure: it is no chat completion.
    """
    try:
        body = json.loads(content)
    except ValueError:
        raise RequestFailure("invalid JSON", "the body is no JSON", retry=True) from None
    if isinstance(body, dict) and body.get("error"):  # some relays answer 200 with an error inside
        raise RequestFailure("error in body", "the body holds an error instead of an answer", retry=True)
    try:
        choice = body["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        if isinstance(message, Mapping):
            return message, reason if isinstance(reason, str) else None, body.get("usage")
    except (LookupError, TypeError, AttributeError):
        pass
    raise RequestFailure("invalid body", "the body is no chat completion", retry=True)


def _usage(counts: Any, text: Any, request: Mapping[str, Any]) -> Usage:
    """The tokens as the endpoint counts them, or an estimate where it does not."""
    if not isinstance(counts, dict) or not isinstance(counts.get("prompt_tokens"), int):
        return Usage(_num_chars(request) // CHARS_PER_TOKEN, len(text or "") // CHARS_PER_TOKEN)
    details = counts.get("prompt_tokens_details") or {}
    return Usage(counts["prompt_tokens"], counts.get("completion_tokens") or 0, details.get("cached_tokens") or 0)


def _num_chars(request: Mapping[str, Any]) -> int:
    return sum(len(str(message.get("content"))) for message in request["messages"])


def estimate_tokens(request: Mapping[str, Any]) -> int:
    """Prompt and completion of a request that is about to be sent."""
    return _num_chars(request) // CHARS_PER_TOKEN + int(request.get("max_tokens") or COMPLETION_TOKENS)
