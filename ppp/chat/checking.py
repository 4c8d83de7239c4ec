"""Whether an endpoint can be used, and whether it takes tools: asked once, before anything is played.

`gateway.py` sends the requests.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ppp.chat.connection import remedy
from ppp.chat.failures import RequestFailure
from ppp.types import RecipeError, ToolSpec

if TYPE_CHECKING:
    from ppp.chat.gateway import ChatGateway

CHECK_DEADLINE_S = 30.0
CHECK_MESSAGES = ({"role": "user", "content": "Say OK."},)
CHECK_MAX_TOKENS = 16

TOOLS_DEADLINE_S = 120.0
TOOLS_MAX_TOKENS = 1024  # room for a model that thinks
TOOLS_ATTEMPTS = 2
TOOLS_MESSAGES = ({"role": "user", "content": "Call the tool report_ready with the state ready. Do not say anything."},)
REPORT_READY = ToolSpec(
    "report_ready",
    "Say that you are ready.",
    {
        "type": "object",
        "properties": {"state": {"type": "string", "description": "The word ready."}},
        "required": ["state"],
        "additionalProperties": False,
    },
)
# What servers answer to tools that they or their model do not know; the plain request before has been answered.
REFUSES_TOOLS = (400, 404, 422, 500, 501)


async def check_endpoint(gateway: ChatGateway) -> None:
    """Send one tiny request.

    Raises:
        RecipeError: one sentence that names model, address and cause.
    """
    endpoint = gateway.endpoint
    try:
        async with asyncio.timeout(CHECK_DEADLINE_S):
            await gateway.probe(CHECK_MESSAGES, max_tokens=CHECK_MAX_TOKENS)
        return
    except RequestFailure as failure:
        problem, hint = failure.text, remedy(endpoint, failure)
        if failure.status == 404 and (names := await gateway.models()):
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            hint = f"; the models that it offers are {shown}"
    except TimeoutError:
        problem, hint = f"no answer within {CHECK_DEADLINE_S:g} s", ""
    raise RecipeError(f"{endpoint.name} cannot be used: {problem.rstrip('.')}{hint}.")


async def tools_problem(gateway: ChatGateway) -> str | None:
    """Why an endpoint that answers cannot be given tools; None where its model has called one.

    Raises:
        RecipeError: it does not answer.
    """
    endpoint = gateway.endpoint
    try:
        async with asyncio.timeout(TOOLS_DEADLINE_S):
            for _ in range(TOOLS_ATTEMPTS):
                said = await gateway.probe(
                    TOOLS_MESSAGES, max_tokens=TOOLS_MAX_TOKENS, tools=[REPORT_READY.as_openai()]
                )
                if any(call.name == REPORT_READY.name for call in said.calls):
                    return None
        return "it answers a request to call a tool without calling it"
    except RequestFailure as failure:
        if failure.status in REFUSES_TOOLS:
            return f"it refuses tools: {failure.text.rstrip('.')}"
        problem = failure.text
    except TimeoutError:
        problem = f"no answer within {TOOLS_DEADLINE_S:g} s"
    raise RecipeError(f"{endpoint.name} cannot be used with tools: {problem.rstrip('.')}.")
