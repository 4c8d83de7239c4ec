"""The script that makes the town's user model: what it learns from is what users played by a model are asked."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ppp.types import Effort


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parent.parent / "scripts" / "town_user_model.py"
    spec = importlib.util.spec_from_file_location("town_user_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_what_is_learned_is_written_exactly_and_held_out_tasks_can_be_read(script: ModuleType) -> None:
    exchanges = asyncio.run(script.play("train", 700, seed=0))
    tokenizer = script.user_tokenizer(script.collect_pieces(exchanges))
    for exchange in exchanges:
        assert len(exchange.asked) <= 1
        ids = tokenizer.backend_tokenizer.encode(exchange.spoken, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == exchange.spoken
    held_out = [exchange for exchange in asyncio.run(script.play("test", 100, seed=1)) if exchange.asked]
    read = [token for exchange in held_out for token in script.encode(tokenizer, exchange.asked[0])]
    assert read.count(tokenizer.unk_token_id) < 0.02 * len(read)


def test_loss_is_on_the_answer_only(script: ModuleType) -> None:
    exchanges = asyncio.run(script.play("train", 30, seed=0))
    tokenizer = script.user_tokenizer(script.collect_pieces(exchanges))
    exchange = next(exchange for exchange in exchanges if exchange.asked)
    row = script.to_row(tokenizer, exchange)
    learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != script.IGNORED]
    assert tokenizer.decode(learned) == exchange.spoken + script.END


def test_a_model_that_knows_the_answers_is_found_to_know_them(script: ModuleType) -> None:
    """Also that evidence agrees with the scripted user on what answers cost, in almost all cases."""
    answers = {
        json.dumps(exchange.asked[0]): exchange.spoken
        for exchange in asyncio.run(script.play("test", 150, seed=0))
        if exchange.asked
    }
    exchanges = asyncio.run(script.play("test", 150, seed=0, speak=lambda messages: answers[json.dumps(messages)]))
    found = script.measure(exchanges)
    assert found["usable_json"] == found["exact_answer"] == found["equal_verdict"] == 100
    assert found["equal_effort"] > 95 and found["equal_effort_about_solution"] > 90
    assert {exchange.wanted.effort for exchange in exchanges} == set(Effort)


def test_a_model_that_babbles_is_found_to_know_nothing(script: ModuleType) -> None:
    found = script.measure(asyncio.run(script.play("test", 20, seed=0, speak=lambda messages: "Well.")))
    assert found["usable_json"] == found["exact_answer"] == found["equal_effort"] == 0
