"""An agent for the town that knows the conversation alone: a function of messages and tools, and a model's answers.

`play` returns assistant messages with native calls, `play_in_text` texts with the call written into them; both fit
`FunctionAgent`. `Said` is what `chat_server.py` takes for a whole message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chat_server import Request, Said

from ppp.data import expand
from ppp.environments.town import MODULES, OBJECTS, OPERATIONS, town_task_rows

QUESTION = "Which module, operation and object is it?"
KNOWN = {"module": MODULES, "operation": OPERATIONS, "object": OBJECTS}


def next_call(messages: list[dict[str, Any]]) -> tuple[str, dict[str, str]]:
    """Ask, open the file, finish; whatever goes wrong, finish."""
    heard = [str(message["content"]) for message in messages if message["role"] in ("user", "tool")]
    listings = [text for text in heard if text.startswith("Functions: ")]
    details: dict[str, str] = {}
    for text in heard:
        words = re.findall(r"\w+", text)
        if not text.startswith("Functions: "):
            details |= {name: word for word in words for name in KNOWN if word in KNOWN[name]}
    if listings and "object" in details:
        functions = dict(pair.split(" ") for pair in listings[-1].removeprefix("Functions: ").split("; "))
        return "finish", {"answer": functions.get(details["object"], "f0")}
    if len(details) == len(KNOWN):
        return "open_file", {"path": f"{details['module']}/{details['operation']}.py"}
    if len(heard) == 1:
        return "ask_user", {"query": QUESTION}
    return "finish", {"answer": "f0"}


def message_of(name: str, arguments: Any, **fields: Any) -> dict[str, Any]:
    """An assistant message with one call."""
    function = {"name": name, "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments)}
    call = {"id": "call_1", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call], **fields}


def play(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
    assert all(tool["type"] == "function" for tool in tools)
    return message_of(*next_call(messages))


def play_in_text(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    name, arguments = next_call(messages)
    return f"Let me see.\n<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def reply(request: Request) -> Said | str:
    """What a model server's model says: native calls where it is given tools, calls as text where it is not."""
    tools = request.get("tools")
    if not tools:
        return play_in_text(request["messages"], [])
    names = {tool["function"]["name"] for tool in tools}
    if "finish" not in names:  # whoever finds out whether tools are taken
        (name,) = names
        properties = tools[0]["function"]["parameters"]["properties"]
        return Said(message_of(name, dict.fromkeys(properties, "ready")))
    return Said(play(request["messages"], tools))


def breaches(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Where a conversation is not what OpenAI's protocol, and the pickier ones among its servers, take."""
    open_ids: list[str] = []
    for number, message in enumerate(messages):
        role = message["role"]
        if role == "tool":
            if not open_ids or message["tool_call_id"] != open_ids.pop(0):
                yield f"{number}: answers no call"
        elif open_ids:
            yield f"{number}: {len(open_ids)} calls are not answered"
        if not isinstance(message["content"], str) or not (message["content"] or message.get("tool_calls")):
            yield f"{number}: is empty"
        if role == messages[number - 1]["role"] != "tool" and number:
            yield f"{number}: speaks twice"
        for call in message.get("tool_calls", ()):
            open_ids.append(call["id"])
            if not (call["id"].isalnum() and call["id"].isascii() and len(call["id"]) == 9):
                yield f"{number}: id {call['id']!r}"
            if not isinstance(json.loads(call["function"]["arguments"]), dict):
                yield f"{number}: arguments are no object"
            name = call["function"]["name"]
            if not (name.replace("_", "").replace("-", "").isalnum() and name.isascii() and len(name) <= 64):
                yield f"{number}: name {name!r}"


TASKS = [expand([row], ["no_preference"], 0, num_precise=0)[0] for row in town_task_rows("test", 12)]
OPEN = message_of("open_file", {"path": "router/saving.py"})
