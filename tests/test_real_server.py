"""The gateway against a model server that is not ours: `transformers serve`, with models made here, on the CPU.

`tests/chat_server.py` shows how the gateway takes every fault; this file shows that a real server speaks the protocol
that we think it speaks. The models are random, or know one sentence.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from ppp.chat.gateway import ChatEndpoint, ChatGateway
from ppp.chat.ledger import ChatLedger
from ppp.chat.structured import structured_chat
from ppp.data import expand
from ppp.environments.town import town_task_rows
from ppp.tiny_model import byte_tokenizer, save_tiny_model, tiny_model
from ppp.types import Effort, InfrastructureError, RecipeError
from ppp.users.crowd import Crowd

SAID = {"answer": "I don't know.", "source": "unknown", "follows_preference": True}
SCHEMA = {
    "type": "object",
    "properties": {
        "answer": {"type": "string"},
        "source": {"enum": ["task", "unknown"]},
        "follows_preference": {"type": "boolean"},
    },
    "required": list(SAID),
    "additionalProperties": False,
}
HELLO = [{"role": "user", "content": "Which module is affected?"}]
MAX_LENGTH = 4096
START_S = 180  # a slow machine that imports torch with six others


@dataclass(frozen=True)
class ModelServer:
    """A running server, and the folders of the models that it can be asked for."""

    base_url: str
    models: Path

    def endpoint(self, name: str) -> ChatEndpoint:
        return ChatEndpoint(model=str(self.models / name), base_url=self.base_url)


def save_parrot(folder: Path, sentence: str) -> None:
    """Save a model that answers everything with `sentence`, which is one token of its vocabulary.

    Without what its layers would add, a model sees only the last token: the newline that ends every prompt is followed
    by the sentence, and the sentence by the end of the turn.
    """
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([sentence])
    model = tiny_model(tokenizer, seed=0, max_length=MAX_LENGTH)
    newline, spoken = tokenizer.encode("\n", add_special_tokens=False) + tokenizer.encode(sentence)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight[newline] = torch.eye(32)[0]
        model.model.embed_tokens.weight[spoken] = torch.eye(32)[1]
        model.lm_head.weight[spoken] = 10 * torch.eye(32)[0]
        model.lm_head.weight[tokenizer.eos_token_id] = 10 * torch.eye(32)[1]
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def save_models(folder: Path) -> Path:
    """A random model, the same without a chat template, and one that knows its answer."""
    save_tiny_model(folder / "random", seed=0, max_length=MAX_LENGTH)
    shutil.copytree(folder / "random", folder / "no_template")
    (folder / "no_template" / "chat_template.jinja").unlink()
    save_parrot(folder / "parrot", json.dumps(SAID))
    return folder


@contextmanager
def serve(folder: Path, *options: str) -> Iterator[str]:
    """Run `transformers serve` on a free port until the block ends; yields its base_url."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", *options, "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = folder / f"server-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + START_S
        while not _is_up(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_up(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    models = save_models(tmp_path_factory.mktemp("models"))
    with serve(models) as base_url:
        yield ModelServer(base_url, models)


def test_chat_counts_the_tokens_that_the_server_counts(server: ModelServer) -> None:
    async def talk() -> None:
        ledger = ChatLedger()
        gateway = ChatGateway(server.endpoint("random"), ledger=ledger)
        await gateway.check()
        before = ledger.summary()
        reply = await gateway.chat(HELLO, max_tokens=5, temperature=0.0)
        await gateway.close()
        prompt = byte_tokenizer().apply_chat_template(HELLO, add_generation_prompt=True)["input_ids"]
        assert reply.prompt_tokens == len(prompt)
        assert reply.completion_tokens == 5 and reply.finish_reason == "length" and not reply.cached
        after = ledger.summary()
        assert after["calls"] == 1 and after["requests"] == before["requests"] + 1
        assert after["prompt_tokens"] == before["prompt_tokens"] + len(prompt)
        assert after["completion_tokens"] == before["completion_tokens"] + 5

    asyncio.run(talk())


def test_check_passes_for_a_model_that_can_chat(server: ModelServer) -> None:
    asyncio.run(_check(server.endpoint("random")))


async def _check(endpoint: ChatEndpoint) -> None:
    gateway = ChatGateway(endpoint)
    try:
        await gateway.check()
    finally:
        await gateway.close()


@pytest.mark.parametrize("name", ["no_template", "no_such_model"])
def test_check_refuses_a_model_that_cannot_chat_in_one_sentence(server: ModelServer, name: str) -> None:
    """The server says no more than `500 Internal Server Error` to both, so the sentence has to name the suspects."""
    with pytest.raises(RecipeError) as caught:
        asyncio.run(_check(server.endpoint(name)))
    message = str(caught.value)
    assert server.base_url in message and str(server.models / name) in message and "\n" not in message
    assert "500" in message and "chat template" in message


def test_check_repeats_what_a_server_of_one_model_says_of_another(server: ModelServer) -> None:
    with serve(server.models, str(server.models / "parrot")) as base_url:
        asyncio.run(_check(ChatEndpoint(model=str(server.models / "parrot"), base_url=base_url)))
        with pytest.raises(RecipeError, match="Server is pinned to") as caught:
            asyncio.run(_check(ChatEndpoint(model="gpt-5-nano", base_url=base_url)))
        assert "gpt-5-nano" in str(caught.value) and base_url in str(caught.value)


def test_check_refuses_an_address_where_nothing_answers(server: ModelServer) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound, but nobody listens
        base_url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
        with pytest.raises(RecipeError, match=base_url):
            asyncio.run(_check(ChatEndpoint(model="random", base_url=base_url)))


def test_structured_answer_comes_from_a_server_that_ignores_schemas(server: ModelServer) -> None:
    """The server takes `response_format` and does not act on it: what fits, fits because the model says it."""

    async def talk() -> None:
        gateway = ChatGateway(server.endpoint("parrot"), ledger=ChatLedger())
        assert await structured_chat(gateway, HELLO, SCHEMA, "answer") == SAID
        await gateway.close()

    asyncio.run(talk())


def test_babble_of_a_random_model_never_becomes_an_answer(server: ModelServer) -> None:
    async def talk() -> None:
        ledger = ChatLedger()
        gateway = ChatGateway(server.endpoint("random"), ledger=ledger)
        with pytest.raises(InfrastructureError):
            await structured_chat(gateway, HELLO, SCHEMA, "answer", max_repairs=1, max_tokens=20)
        await gateway.close()
        summary = ledger.summary()
        assert summary["calls"] == 2 and sum(summary["failures"].values()) == 2

    asyncio.run(talk())


def test_session_of_a_run_gets_its_answers_from_the_server(server: ModelServer) -> None:
    """The user as a recipe names it; only base_url and model are given."""

    async def talk() -> None:
        crowd = Crowd({"kind": "llm", "base_url": server.base_url, "model": str(server.models / "parrot")})
        await crowd.check()
        tasks = expand(list(town_task_rows("train", 1)), ["professional"], seed=0)
        answer = await crowd.invite(tasks[0], seed=0).answer("Which module is affected?", [])
        assert (answer.text, answer.effort, answer.follows_preference) == (SAID["answer"], Effort.MEDIUM, True)
        assert crowd.service is not None and crowd.service.summary()["calls"] == 1
        await crowd.close()

    asyncio.run(talk())
