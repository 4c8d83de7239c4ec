"""A vLLM engine on stubs, whose weights are a word: for tests in one process, and as a program for those in several.

    torchrun --nproc_per_node 2 tests/stub_engine.py URL NUM_JOBS...

plays one step on the server at URL, as many sessions per process as NUM_JOBS says, and prints a line of JSON for each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import httpx
import toy
from accelerate import Accelerator
from conftest import byte_tokenizer
from torch import nn
from vllm_stub import EOS, VLLMStub

from ppp.batch import RolloutSettings
from ppp.bookkeeping import Bookkeeper
from ppp.codec import Codec
from ppp.engines.base import Engine, EngineSettings
from ppp.engines.sync_base import WeightSync
from ppp.engines.vllm_server import VLLMServerEngine
from ppp.engines.weight_sync import SYNCS
from ppp.interruption import Interruption
from ppp.phase import Played, RolloutPhase
from ppp.rollout import Limits, RolloutJob, RolloutPool
from ppp.types import InfrastructureError, Task
from ppp.users.crowd import Crowds

MAX_TURNS = 4


class LabelSync(WeightSync):
    """Weights are a word, "w" and the step."""

    calls: ClassVar[list[tuple[str, Any]]] = []

    @classmethod
    def check_server(cls, settings: EngineSettings, info: Any) -> None:
        pass

    def connect(self, base_url: str) -> None:
        try:
            httpx.get(f"{base_url}/health", timeout=5, trust_env=False).raise_for_status()
        except httpx.HTTPError as error:
            raise InfrastructureError(f"no answer: {error}", kind="engine") from error
        self.calls.append(("connect", base_url))

    def publish(self, model: nn.Module, step: int, base_urls: Sequence[str]) -> dict[str, str]:
        self.calls.append(("publish", (step, tuple(base_urls))))
        for url in base_urls:
            httpx.post(f"{url}/stub/weights", json={"weights": f"w{step}"}, timeout=5, trust_env=False)
        return {}

    def disconnect(self, base_url: str) -> None:
        self.calls.append(("disconnect", base_url))


def settings_for(*stubs: VLLMStub, max_length: int = 4096, **changes: Any) -> EngineSettings:
    options = {"base_urls": [stub.url for stub in stubs], "max_outage_s": 20.0, **changes.pop("options", {})}
    return EngineSettings(
        **{
            "model_provider": lambda: nn.Linear(1, 1),
            "model_name": "tiny",
            "dtype": "float32",
            "lora_r": None,
            "eos_id": EOS,
            "max_concurrency": 1024,
            "max_length": max_length,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "deterministic": False,
            "output_dir": Path("unused"),
            "options": options,
            **changes,
        }
    )


def open_phase(engine: Engine, accelerator: Accelerator, **limits: Any) -> RolloutPhase:
    """What a trainer plays its batches with; every turn is as long as a stub makes it, or cut off."""
    toy.register()
    tokenizer = byte_tokenizer()
    pool = RolloutPool(
        engine,
        Codec.from_tokenizer(tokenizer),
        Limits(max_turns=MAX_TURNS, max_completion_tokens=4096, max_prompt_tokens=4096, **limits),
        interaction=False,
    )
    books = Bookkeeper(Crowds(pool.crowd, pool.crowd))
    return RolloutPhase(pool, RolloutSettings(), accelerator, Interruption(), books, None)


def toy_jobs(num: int, first: int = 0) -> list[RolloutJob]:
    task = Task("toy", "toy", "Fix it.", "Fix it in the parser.", "no_preference", {"gold": ["f1"]})
    return [RolloutJob(task, row=row, copy=0) for row in range(first, first + num)]


def describe(played: Played) -> dict[str, Any]:
    """The outcome in JSON values; tokens by the turn and its position."""
    sessions = []
    for trajectory in played.trajectories:
        turns, position = [], 0
        for turn in trajectory.turns:
            turns.append([position, turn.completion_ids])
            position += len(turn.completion_ids) + len(turn.observation_ids)
        sessions.append({"turns": turns, "error_kind": trajectory.error_kind})
    return {
        "sessions": sessions,
        "num_replayed": played.user_metrics.get("engine/replayed"),
        "all": len(played.everyone),
    }


def main(url: str, *nums: str) -> None:
    SYNCS["full"] = LabelSync
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    settings = settings_for(options={"base_urls": url})
    phase = open_phase(VLLMServerEngine.build(settings), accelerator)
    first = sum(map(int, nums[:rank]))
    played = phase.play(toy_jobs(int(nums[rank]), first), 0, "train")
    phase.pool.close()
    record = {"rank": rank, "first": first, "num_processes": accelerator.num_processes, **describe(played)}
    print(f"\nRECORD {json.dumps(record)}", flush=True)
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
