"""What every engine with a model has to do, checked alike: trajectories of random tokens, and forward passes.

`test_transformers_engine.py` and `real_vllm/test_colocate.py` use it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ppp.engines.base import Engine, Generation, GenerationRequest
from ppp.types import Task

TASK = Task("t", "town", "prompt", "prompt", "no_preference", {})
VOCABULARY = 256


def request(prompt_ids: Sequence[int], max_tokens: int = 8, *, key: int = 1, position: int = 0) -> GenerationRequest:
    return GenerationRequest(list(prompt_ids), max_tokens, key, position, TASK, [], f"{key:06d}-{position:06d}")


def prompt(number: int, length: int = 20) -> list[int]:
    """Prompts of four kinds; those of one kind share a prefix of 17 tokens, more than a page of the cache."""
    rng = random.Random(number % 4)
    shared = [rng.randrange(VOCABULARY) for _ in range(17)]
    return shared + [(number * 7 + index) % VOCABULARY for index in range(length - 17)]


async def play(
    engine: Engine, number: int, num_turns: int = 3, pause: Callable[[], float] = lambda: 0
) -> list[Generation]:
    """One trajectory: turns of random tokens, each followed by an "observation" of five; `pause` draws seconds."""
    context, position, generations = prompt(number), 0, []
    for turn in range(num_turns):
        await asyncio.sleep(pause())
        generation = await engine.generate(request(context, 6 + (number + turn) % 3, key=number, position=position))
        generations.append(generation)
        appended = [*generation.token_ids, *(range(number % 50, number % 50 + 5))]
        context, position = context + appended, position + len(appended)
    return generations


async def play_all(engine: Engine, numbers: Sequence[int], **options: Any) -> dict[int, list[Generation]]:
    """Trajectories at the same time; the engine is told how many are left."""
    num_live = len(numbers)
    engine.set_live(num_live)

    async def one(number: int) -> list[Generation]:
        nonlocal num_live
        generations = await play(engine, number, **options)
        num_live -= 1
        engine.set_live(num_live)
        return generations

    return dict(zip(numbers, await asyncio.gather(*map(one, numbers)), strict=True))


def tokens(results: dict[int, list[Generation]]) -> dict[int, list[list[int]]]:
    return {number: [turn.token_ids for turn in turns] for number, turns in sorted(results.items())}


def forward_logprobs(model: Any, context: Sequence[int], token_ids: Sequence[int], temperature: float) -> torch.Tensor:
    """Log-probabilities of `token_ids` after `context` by one plain forward pass; shape [len(token_ids)]."""
    ids = torch.tensor([[*context, *token_ids]])
    with torch.no_grad():
        logits = model(ids).logits[0, len(context) - 1 : -1].float() / temperature
    return logits.log_softmax(-1).gather(-1, ids[0, len(context) :, None]).squeeze(-1)


def assert_agrees(model: Any, results: dict[int, list[Generation]], temperature: float = 1.0) -> None:
    for number, generations in results.items():
        context = prompt(number)
        for generation in generations:
            expected = forward_logprobs(model, context, generation.token_ids, temperature)
            torch.testing.assert_close(torch.tensor(generation.logprobs), expected, atol=1e-4, rtol=0)
            context += [*generation.token_ids, *(range(number % 50, number % 50 + 5))]
