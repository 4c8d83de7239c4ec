"""Answers as JSON objects that fit a schema, from endpoints that guarantee it and from those that do not.

An endpoint that refuses a JSON schema is asked for a JSON object, and one that refuses that for plain text. The whole
reply has to be one JSON object: nothing is ever searched for inside a text, because the text may quote somebody who
would like it to be found. `users/llm.py` is the main user.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jsonschema

from ppp.chat.gateway import ChatGateway, ChatReply, RequestRefusedError
from ppp.types import InfrastructureError

MAX_QUOTED = 2000  # characters of a bad reply that go back to the model
MAX_PROBLEM = 300

Validate = Callable[[dict[str, Any]], str | None]


class NotJSONError(ValueError):
    """A reply that is not one JSON object."""


async def structured_chat(
    gateway: ChatGateway,
    messages: Sequence[Mapping[str, Any]],
    schema: Mapping[str, Any],
    name: str,
    *,
    validate: Validate | None = None,
    max_repairs: int = 2,
    **chat_options: Any,
) -> dict[str, Any]:
    """Ask for one JSON object.

    Args:
        gateway: whom to ask.
        messages: as the protocol has them.
        schema: a JSON schema of type object; for OpenAI's strict mode every object in it needs
            `additionalProperties: false` and all its properties in `required`.
        name: of the schema, for the endpoint: letters, digits, `_` and `-`.
        validate: what the schema cannot say: object -> what is wrong with it, or None.
        max_repairs: further attempts, in which the model sees its reply and what was wrong with it.
        chat_options: for `ChatGateway.chat`.

    Raises:
        InfrastructureError: no reply fits, or the gateway's.
        RunStoppedError: the gateway's.
    """
    asked = [dict(message) for message in messages]
    kind = problem = ""
    for _ in range(max_repairs + 1):
        reply = await _chat_in_best_format(gateway, asked, schema, name, chat_options)
        try:
            value = parse_object(reply.text)
            kind, problem = "wrong schema", _misfit(value, schema) or (validate(value) if validate else None) or ""
            if not problem:
                return value
        except NotJSONError as error:
            kind = "length" if reply.finish_reason == "length" else "invalid JSON"
            problem = "it was cut off, be shorter" if kind == "length" else str(error)
        problem = problem[:MAX_PROBLEM]
        if kind != "length":  # which the gateway has counted
            gateway.ledger.record_failure(gateway.endpoint.label, kind)
        repair = f"That reply cannot be used: {problem}. Reply again, with one JSON object that fits the schema only."
        asked = [
            *(dict(message) for message in messages),
            {"role": "assistant", "content": reply.text[:MAX_QUOTED]},
            {"role": "user", "content": repair},
        ]
    raise InfrastructureError(
        f"{gateway.endpoint.name}: none of {max_repairs + 1} replies was a usable {name!r} object; "
        f"the last one: {problem}",
        kind=kind,
    )


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object that a reply consists of; one code fence around the whole of it is taken off.

    Raises:
        NotJSONError: anything before or after it, another kind of value, a key twice.
    """
    body = text.strip()
    if body.startswith("```") and body.endswith("```") and "\n" in body:
        body = body[body.index("\n") : -3]
    try:
        value = json.loads(body, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise NotJSONError("it is nested too deeply") from None
    except NotJSONError:
        raise
    except ValueError as error:
        raise NotJSONError(f"it is not one JSON object ({error})") from None
    if not isinstance(value, dict):
        raise NotJSONError("it is JSON, but no object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise NotJSONError("a key stands in it twice")
    return dict(pairs)


def _no_constant(text: str) -> Any:
    raise NotJSONError(f"{text} is no JSON")


def _misfit(value: dict[str, Any], schema: Mapping[str, Any]) -> str | None:
    """Where a value does not fit the schema, in words."""
    error = jsonschema.exceptions.best_match(_validator(json.dumps(schema, sort_keys=True)).iter_errors(value))
    if error is None:
        return None
    return f"{error.json_path}: {error.message}"


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    loaded = json.loads(schema)
    kind = jsonschema.validators.validator_for(loaded, default=jsonschema.Draft202012Validator)
    kind.check_schema(loaded)
    return kind(loaded)


async def _chat_in_best_format(
    gateway: ChatGateway,
    messages: Sequence[Mapping[str, Any]],
    schema: Mapping[str, Any],
    name: str,
    chat_options: Mapping[str, Any],
) -> ChatReply:
    """Ask in the strictest format that the endpoint takes; a refusal is remembered once a looser one has worked."""
    formats: list[dict[str, Any]] = [
        {"type": "json_schema", "json_schema": {"name": name, "schema": dict(schema), "strict": True}},
        {"type": "json_object"},
    ]
    refused: list[dict[str, Any]] = []
    told = _with_schema(messages, schema)
    for response_format in formats:
        if gateway.refuses_format(response_format):
            continue
        with_schema = response_format["type"] == "json_schema"
        try:
            reply = await gateway.chat(
                messages if with_schema else told, response_format=response_format, **chat_options
            )
        except RequestRefusedError:
            refused.append(response_format)
            continue
        break
    else:
        reply = await gateway.chat(told, **chat_options)
    for response_format in refused:
        gateway.remember_refusal(response_format)
    return reply


def _with_schema(messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages with the schema in words, in the system message, for endpoints that do not enforce it."""
    text = "Reply with one JSON object and nothing else. It has to fit this JSON schema:\n" + json.dumps(schema)
    copies = [dict(message) for message in messages]
    if copies and copies[0]["role"] == "system":
        copies[0]["content"] = f"{copies[0]['content']}\n\n{text}"
        return copies
    return [{"role": "system", "content": text}, *copies]
