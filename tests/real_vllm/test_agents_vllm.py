"""A real vLLM behind `EndpointAgent`: with its tool calls switched on and off, and until its context is full.

The model says one sentence whatever it reads, a call of a tool: which tool it is decides what is shown.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from vllm_process import VLLMProcess

from ppp.agents.build import build_message_pool
from ppp.agents.endpoint import EndpointAgent
from ppp.chat.checking import REPORT_READY
from ppp.data import expand
from ppp.environments.town import town_task_rows
from ppp.rollout import Limits, RolloutJob
from ppp.tiny_model import byte_tokenizer, random_qwen3
from ppp.types import StopReason, Trajectory

MAX_LENGTH = 4096
FLAGS = (
    *("--dtype=float32", f"--max-model-len={MAX_LENGTH}", "--enforce-eager"),
    *("--no-enable-chunked-prefill", "--max-num-batched-tokens=8192"),
)
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser=hermes")
TASK = expand([next(iter(town_task_rows("test", 1)))], ["no_preference"], 0, num_precise=0)[0]


def save_parrot(folder: Path, sentence: str) -> None:
    """Save a model that answers everything with `sentence`, one token of its vocabulary, and then ends its turn."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([sentence])
    model = random_qwen3(
        tokenizer, 0, max_length=MAX_LENGTH, hidden_size=64, num_layers=1, num_heads=2, num_key_value_heads=2
    )
    newline, spoken = tokenizer.encode("\n", add_special_tokens=False) + tokenizer.encode(sentence)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight[newline] = torch.eye(64)[0]
        model.model.embed_tokens.weight[spoken] = torch.eye(64)[1]
        model.lm_head.weight[spoken] = 10 * torch.eye(64)[0]
        model.lm_head.weight[tokenizer.eos_token_id] = 10 * torch.eye(64)[1]
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


@pytest.fixture(scope="module", params=[TOOLS, ()], ids=["native", "text"])
def agent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointAgent]:
    folder = tmp_path_factory.mktemp("parrot")
    call = {"name": REPORT_READY.name, "arguments": {"state": "ready"}}
    save_parrot(folder, f"<tool_call>\n{json.dumps(call)}\n</tool_call>")
    server = VLLMProcess(folder, folder / "log.txt", backend=None, flags=(*FLAGS, *request.param))
    server.start()
    agent = EndpointAgent.from_options({"model": "policy", "base_url": f"{server.base_url}/v1", "temperature": 0})
    asyncio.run(agent.check())
    assert agent.tool_calls == ("native" if request.param else "text")
    yield agent
    server.kill()


def play(agent: EndpointAgent, limits: Limits) -> Trajectory:
    with closing(build_message_pool(agent, limits)) as pool:
        (trajectory,) = pool.run([RolloutJob(TASK, 0, 0)], step=0)
    return trajectory


def test_tools_are_called_as_the_server_can(agent: EndpointAgent) -> None:
    assert ("requires --enable-auto-tool-choice" in agent.problem) == (agent.tool_calls == "text")
    trajectory = play(agent, Limits(max_turns=4, max_tokens_per_turn=64))
    assert trajectory.stop_reason is StopReason.MAX_TURNS and trajectory.error is None
    for turn in trajectory.turns:
        assert turn.call is not None and turn.call.name == REPORT_READY.name
        assert (turn.message["content"], turn.num_tokens, turn.truncated) == ("", 2, False)


def test_a_context_that_is_full_ends_the_session_and_is_scored(agent: EndpointAgent) -> None:
    trajectory = play(agent, Limits(max_turns=500, max_tokens_per_turn=64, max_completion_tokens=100_000))
    assert trajectory.stop_reason is StopReason.MAX_TOKENS and trajectory.productivity == 0.0
    assert 1 < len(trajectory.turns) < 100
