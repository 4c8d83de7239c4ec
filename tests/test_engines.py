"""The table of engines, and the engine that is made of rules."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

import ppp.engines
from ppp.codec import Codec
from ppp.engines import ENGINES, engine_class
from ppp.engines.base import Engine, GenerationRequest
from ppp.engines.scripted import ScriptedEngine
from ppp.types import RecipeError, Task, ToolCall, Turn

TASK = Task("t", "town", "prompt", "prompt", "no_preference", {})


def request(max_tokens: int) -> GenerationRequest:
    return GenerationRequest([1], max_tokens, 1, 0, TASK, [], "only")


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_every_engine_of_the_table_exists(name: str) -> None:
    assert issubclass(engine_class(name), Engine)


def test_unknown_engine_names_the_allowed_ones() -> None:
    with pytest.raises(RecipeError, match=r"engine: 'magic'.*scripted.*transformers"):
        engine_class("magic")


def test_library_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ppp.engines.REQUIRES, "scripted", ("pytest", "1000"))
    with pytest.raises(RecipeError, match="'scripted' needs pytest >= 1000, found"):
        engine_class("scripted")


class Asker:
    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall]:
        return "Let me ask.", ToolCall("ask_user", {"question": f"Number {len(turns)}?"})


def test_scripted_turns_parse_back(codec: Codec) -> None:
    generation = asyncio.run(ScriptedEngine(codec, Asker()).generate(request(500)))
    assert generation.finish_reason == "stop"
    assert len(generation.logprobs) == len(generation.token_ids)
    assert codec.parse(generation.token_ids).call == ToolCall("ask_user", {"question": "Number 0?"})


def test_scripted_turn_over_the_limit_is_cut(codec: Codec) -> None:
    generation = asyncio.run(ScriptedEngine(codec, Asker()).generate(request(10)))
    assert generation.finish_reason == "length"
    assert len(generation.token_ids) == 10
    assert codec.parse(generation.token_ids).call is None


def test_scripted_latency_is_awaited(codec: Codec) -> None:
    seen: list[str] = []

    async def latency(asked: GenerationRequest) -> None:
        seen.append(asked.request_id)

    asyncio.run(ScriptedEngine(codec, Asker(), latency).generate(request(10)))
    assert seen == ["only"]
