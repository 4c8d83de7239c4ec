"""The engine for vLLM servers against the real server: tokens, log-probabilities, seeds, limits, weights."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from vllm_process import VLLMProcess

from ppp.engines.base import EngineSettings, Generation, GenerationRequest
from ppp.engines.vllm_server import VLLMServerEngine
from ppp.types import RecipeError, Task

TASK = Task("t-1", "town", "vague", "precise", "no_preference", {})
LIMIT = 1e-3


class Trainer:
    """A policy, at first with the weights of its folder, and an engine for it."""

    def __init__(self, folder: Path, output_dir: Path, server: VLLMProcess, **changes: Any) -> None:
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.eos_id = int(AutoTokenizer.from_pretrained(folder).eos_token_id)
        sync = {"sync": "full", "sync_options": {"backend": "gloo"}} if changes.get("lora_r") is None else {}
        options = {"base_urls": server.base_url, "max_outage_s": 200.0, **sync}
        values: dict[str, Any] = {
            "model_provider": lambda: self.model,
            "model_name": str(folder),
            "dtype": "float32",
            "lora_r": None,
            "eos_id": self.eos_id,
            "max_concurrency": 64,
            "max_length": 320,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "deterministic": False,
            "output_dir": output_dir,
            "options": options,
        }
        self.settings = EngineSettings(**{**values, **changes})
        VLLMServerEngine.check_options(self.settings.options)
        VLLMServerEngine.check_run(self.settings)
        self.engine = VLLMServerEngine.build(self.settings)

    def play(self, work: Callable[[], Awaitable[Any]], step: int = 0) -> Any:
        """One phase, in an event loop of its own."""

        async def inside() -> Any:
            try:
                return await work()
            finally:
                await self.engine.leave_loop()

        with self.engine.phase(step):
            return asyncio.run(inside())

    def generate(self, requests: Sequence[GenerationRequest], step: int = 0) -> list[Generation]:
        async def work() -> list[Generation]:
            return list(await asyncio.gather(*(self.engine.generate(request) for request in requests)))

        return self.play(work, step)

    def difference(self, request: GenerationRequest, generation: Generation) -> float:
        """Between what the engine and a forward pass say of the same tokens."""
        ids = torch.tensor([[*request.prompt_ids, *generation.token_ids]])
        with torch.no_grad():
            logits = self.model(ids).logits[0, len(request.prompt_ids) - 1 : -1] / self.settings.temperature
        own = logits.log_softmax(-1).gather(1, torch.tensor(generation.token_ids)[:, None])[:, 0]
        return float((own - torch.tensor(generation.logprobs)).abs().max())

    def assert_aligned(self, step: int = 0, num: int = 8) -> None:
        requests = [request(key) for key in range(num)]
        for asked, found in zip(requests, self.generate(requests, step), strict=True):
            assert self.difference(asked, found) < LIMIT

    def train(self, size: float = 0.1) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * size)


def request(
    key: int, prompt: Sequence[int] | None = None, position: int = 0, max_tokens: int = 24
) -> GenerationRequest:
    prompt_ids = list(prompt or [(key * 7 + index * 3) % 200 + 5 for index in range(12)])
    return GenerationRequest(prompt_ids, max_tokens, key, position, TASK, [], f"{key}-{position}")


@pytest.fixture
def make_trainer(town_model: Path, tmp_path: Path, server: VLLMProcess) -> Iterator[Callable[..., Trainer]]:
    made: list[Trainer] = []

    def make(**changes: Any) -> Trainer:
        made.append(Trainer(town_model, tmp_path, server, **changes))
        return made[-1]

    yield make
    for trainer in made:
        trainer.engine.close()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_the_trainer(make_trainer: Callable[..., Trainer], temperature: float) -> None:
    trainer = make_trainer(temperature=temperature)
    requests = [request(key) for key in range(32)]
    generations = trainer.generate(requests)
    assert len({tuple(generation.token_ids) for generation in generations}) > 16
    for asked, found in zip(requests, generations, strict=True):
        assert len(found.token_ids) == len(found.logprobs) <= asked.max_tokens
        assert found.finish_reason == ("stop" if found.token_ids[-1] == trainer.eos_id else "length")
        assert trainer.eos_id not in found.token_ids[:-1]
        assert trainer.difference(asked, found) < LIMIT


def test_a_seed_gives_the_same_tokens_in_any_company(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer()
    requests = [request(key) for key in range(16)]
    together = trainer.generate(requests)
    backwards = trainer.generate(requests[::-1])[::-1]
    alone = trainer.generate(requests[3:4])[0]
    assert [found.token_ids for found in together] == [found.token_ids for found in backwards]
    assert alone.token_ids == together[3].token_ids
    same_prompt = [request(key, prompt=range(10, 22)) for key in range(16)]
    assert len({tuple(found.token_ids) for found in trainer.generate(same_prompt)}) > 8


def test_a_turn_is_cut_off_at_its_limit(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer()
    whole = trainer.generate([request(key) for key in range(16)])
    key, long = next((key, found) for key, found in enumerate(whole) if len(found.token_ids) > 4)
    cut = trainer.generate([request(key, max_tokens=3)])[0]
    assert cut.token_ids == long.token_ids[:3] and cut.finish_reason == "length"


def test_later_turns_go_on_from_the_tokens_of_earlier_ones(make_trainer: Callable[..., Trainer]) -> None:
    """Ids go in as they came out, and log-probabilities hold with the prefix in the server's cache."""
    trainer = make_trainer()
    first = [request(key) for key in range(8)]
    answers = trainer.generate(first)
    second = [
        request(key, [*asked.prompt_ids, *found.token_ids, 9, 8, 7], position=len(found.token_ids) + 3)
        for key, (asked, found) in enumerate(zip(first, answers, strict=True))
    ]
    for asked, found in zip(second, trainer.generate(second), strict=True):
        assert trainer.difference(asked, found) < LIMIT


def test_a_cancelled_turn_leaves_nothing_behind(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer()

    async def cancel() -> None:
        tasks = [asyncio.create_task(trainer.engine.generate(request(key, max_tokens=200))) for key in range(8)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True)
        )

    trainer.play(cancel)
    trainer.train()
    trainer.assert_aligned(step=1)  # the cache can be reset, the weights are current


def test_trajectories_are_spread_over_servers_and_stay(
    make_trainer: Callable[..., Trainer], server: VLLMProcess
) -> None:
    urls = [server.base_url, f"http://localhost:{server.port}"]  # one server under two names
    trainer = make_trainer(options={"base_urls": urls, "sync": "none"})

    async def work() -> list[Generation]:
        for position in (0, 30):
            found = await asyncio.gather(
                *(trainer.engine.generate(request(key, position=position)) for key in range(8))
            )
        return list(found)

    trainer.play(work)
    assert [one.num_sessions for one in trainer.engine.servers] == [4, 4]


def test_each_phase_generates_with_the_weights_of_its_step(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer()
    before = trainer.generate([request(key) for key in range(8)])
    for step in range(1, 4):
        trainer.train()
        trainer.assert_aligned(step)
    after = trainer.generate([request(key) for key in range(8)], step=3)
    assert [found.token_ids for found in before] != [found.token_ids for found in after]


def test_adapters_are_published_and_used(make_trainer: Callable[..., Trainer]) -> None:
    make_trainer().generate([request(0)])  # the server's own weights are the base model's again
    trainer = make_trainer(lora_r=8)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer.model = get_peft_model(trainer.model, config)
    trainer.assert_aligned(step=0)
    for step in range(1, 4):
        trainer.train()
        trainer.assert_aligned(step)


def test_adapters_can_be_merged_on_the_way(make_trainer: Callable[..., Trainer], server: VLLMProcess) -> None:
    options = {"base_urls": server.base_url, "sync": "full", "sync_options": {"backend": "gloo"}}
    trainer = make_trainer(lora_r=8, options=options)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer.model = get_peft_model(trainer.model, config)
    for step in range(2):
        trainer.train()
        trainer.assert_aligned(step)


def test_a_server_restarted_between_phases_gets_the_current_weights(
    make_trainer: Callable[..., Trainer], server: VLLMProcess
) -> None:
    trainer = make_trainer()
    trainer.train()
    trainer.assert_aligned(step=1)
    server.restart()
    trainer.assert_aligned(step=1)  # the same step: nothing but the restart says that weights are missing


def test_an_adapter_above_the_servers_rank_is_refused(make_trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(RecipeError, match=r"lora_r: 64 .* rank 16 at most"):
        make_trainer(lora_r=64)


def test_a_server_with_another_way_to_take_weights_is_refused(
    make_trainer: Callable[..., Trainer], server: VLLMProcess
) -> None:
    with pytest.raises(RecipeError, match=r"backend: 'nccl' is not allowed; .* has 'gloo'"):
        make_trainer(options={"base_urls": server.base_url, "sync_options": {"backend": "nccl"}})


def test_an_output_layer_that_is_the_embeddings_gets_its_weights(town_model: Path, tmp_path: Path) -> None:
    tied = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(town_model, tie_word_embeddings=True))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    tied.save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(town_model).save_pretrained(tmp_path / "tied")
    server = VLLMProcess(tmp_path / "tied", tmp_path / "log.txt")
    try:
        server.start()
        trainer = Trainer(tmp_path / "tied", tmp_path, server)
        for step in range(3):
            trainer.assert_aligned(step)
            trainer.train()
        trainer.engine.close()
    finally:
        server.kill()


def test_weights_that_vllm_refuses_lose_the_server_and_it_can_come_back(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer()
    sync = trainer.engine._fleet._sync
    url = trainer.engine.servers[0].base_url
    trainer.assert_aligned()
    wrong = nn.ModuleDict({"no_such_layer": nn.Linear(3, 3)})
    assert url in sync.publish(wrong, 1, [url])
    sync.disconnect(url)
    trainer.train()
    sync.connect(url)
    assert sync.publish(trainer.model, 2, [url]) == {}
    trainer.assert_aligned(step=2)
