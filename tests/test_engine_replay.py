"""Sessions that were lost with their engine are played again, by all processes together, on the weights of the step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from stub_engine import MAX_TURNS, LabelSync, describe, open_phase, settings_for, toy_jobs
from vllm_stub import VLLMStub, tokens_of

from ppp.engines.base import Engine, Generation, GenerationRequest
from ppp.engines.completions import noise_seed
from ppp.engines.vllm_server import VLLMServerEngine
from ppp.engines.weight_sync import SYNCS
from ppp.phase import MAX_REPLAYS, RolloutPhase
from ppp.rollout import noise_key
from ppp.types import InfrastructureError, RunStoppedError

NUM_JOBS = 12


@pytest.fixture(autouse=True)
def label_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SYNCS, "full", LabelSync)
    LabelSync.calls = []


@pytest.fixture
def stub() -> Iterator[VLLMStub]:
    with VLLMStub() as server:
        yield server


@pytest.fixture
def phase(stub: VLLMStub) -> Iterator[RolloutPhase]:
    phase = open_phase(VLLMServerEngine.build(settings_for(stub)), Accelerator(cpu=True))
    yield phase
    phase.pool.close()
    phase.pool.engine.close()


def restart_at(stub: VLLMStub, count: int, only_life: int | None = 1) -> None:
    """Have the server die and come back as the n-th completion of its first life, or (None) of any, arrives."""

    def arrived() -> None:
        if len(stub.bodies()) == count and only_life in (None, stub.lives):
            threading.Thread(target=stub.restart).start()

    stub.on_completion = arrived


def assert_whole(record: dict[str, Any], first: int = 0, step: int = 0) -> None:
    """Every session has all its turns, and every turn the tokens of the step's weights."""
    for row, session in enumerate(record["sessions"], start=first):
        assert session["error_kind"] is None and len(session["turns"]) == MAX_TURNS
        key = noise_key(0, step, row, 0)
        for position, ids in session["turns"]:
            assert ids == tokens_of(noise_seed(key, position), f"w{step}", 1024)[0]


def test_a_step_survives_the_restart_of_its_only_server(stub: VLLMStub, phase: RolloutPhase) -> None:
    restart_at(stub, 20)
    for step in range(2):
        record = describe(phase.play(toy_jobs(NUM_JOBS), step, "train"))
        assert_whole(record, step=step)
        assert (record["num_replayed"] > 0) == (step == 0)
    assert stub.lives == 2 and not phase.books.left_out
    steps = [call[1][0] for call in LabelSync.calls if call[0] == "publish"]
    assert steps == [0, 0, 1], "the restarted server was given the weights of the step before its first request"


def test_a_replayed_session_is_the_one_that_was_lost(stub: VLLMStub, phase: RolloutPhase) -> None:
    before = describe(phase.play(toy_jobs(NUM_JOBS), 0, "train"))["sessions"]
    restart_at(stub, len(stub.requests) + 5)
    assert describe(phase.play(toy_jobs(NUM_JOBS), 0, "train"))["sessions"] == before and stub.lives == 2


def test_an_engine_that_is_lost_again_and_again_costs_its_sessions_in_the_end(
    stub: VLLMStub, phase: RolloutPhase
) -> None:
    restart_at(stub, 2, only_life=None)
    played = phase.play(toy_jobs(NUM_JOBS), 0, "train")
    lost = [trajectory for trajectory in played.trajectories if trajectory.failed]
    assert lost and {trajectory.error_kind for trajectory in lost} == {"engine"}
    assert played.user_metrics["engine/replayed"] >= MAX_REPLAYS * len(lost)
    assert phase.books.left_out == {"engine": len(lost)}


def test_a_server_that_stays_away_ends_the_run(stub: VLLMStub) -> None:
    engine = VLLMServerEngine.build(settings_for(stub, options={"max_outage_s": 0.1}))
    phase = open_phase(engine, Accelerator(cpu=True))
    stub.on_completion = lambda: threading.Thread(target=stub.die).start() if len(stub.requests) == 20 else None
    with pytest.raises(RunStoppedError, match="max_outage_s"):
        phase.play(toy_jobs(NUM_JOBS), 0, "train")
    phase.pool.close()


@pytest.mark.parametrize("kind", ["engine", "infrastructure"])
@pytest.mark.parametrize("recovers", [True, False])
def test_only_what_an_engine_lost_that_can_come_back_is_played_again(kind: str, recovers: bool) -> None:
    class Failing(Engine):
        num_asked = 0

        async def generate(self, request: GenerationRequest) -> Generation:
            self.num_asked += 1
            raise InfrastructureError("gone", kind=kind)

    Failing.recovers = recovers
    engine = Failing()
    phase = open_phase(engine, Accelerator(cpu=True))
    played = phase.play(toy_jobs(3), 0, "train")
    phase.pool.close()
    times = 1 + MAX_REPLAYS if recovers and kind == "engine" else 1
    assert engine.num_asked == 3 * times and all(trajectory.failed for trajectory in played.trajectories)
    assert played.user_metrics.get("engine/replayed") == (3 * (times - 1) if recovers else None)


def test_two_processes_bring_back_the_server_that_one_of_them_lost(stub: VLLMStub) -> None:
    """One process has nothing to play: it takes part all the same, or the other would wait for ever."""
    restart_at(stub, 15)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = str(Path(__file__).with_name("stub_engine.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launcher, script, stub.url, str(NUM_JOBS), "0"], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.removeprefix("RECORD ") for line in done.stdout.splitlines() if line.startswith("RECORD ")]
    records = sorted(map(json.loads, lines), key=lambda record: record["rank"])
    assert [(record["num_processes"], record["all"], len(record["sessions"])) for record in records] == [
        (2, NUM_JOBS, NUM_JOBS),
        (2, NUM_JOBS, 0),
    ]
    assert stub.lives == 2 and records[0]["num_replayed"] == records[1]["num_replayed"] > 0
    assert_whole(records[0], records[0]["first"])
