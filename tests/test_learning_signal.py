"""The guard names what keeps a run from learning: each cause by the metrics that show it, and in real short runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer
from toy import ToyEnvironment, register
from toy_trainer import UNCLIPPED, Player, build_trainer, read_metrics
from transformers import PreTrainedTokenizerBase, TrainerControl, TrainerState

from ppp.batch import RolloutSettings
from ppp.learning_signal import CAUSES, LearningSignalGuard, describe, missing_signals
from ppp.rewards import RewardSettings
from ppp.session import Limits
from ppp.trainer import PPPTrainer
from ppp.types import Task, ToolCall, Turn
from ppp.users.crowd import Crowd

# A step that teaches something, as the metrics tell it.
GOOD: dict[str, Any] = {
    "loss": 0.1,
    "learning_rate": 1e-6,
    "grad_norm": 1.0,
    "entropy": 0.5,
    "flat_groups": 0.5,
    "session_reward_group_std": 0.2,
    "terms/productivity": 0.5,
    "terms/productivity_group_std": 0.2,
    "turns/unreadable": 0.5,
    "failure_rate": 0.0,
    "stop/max_tokens": 0.1,
    "update/norm": 0.1,
    "update/changed": 1.0,
    "sampling/logprob_difference": 1e-6,
}
FLAT = {"flat_groups": 1.0, "session_reward_group_std": 0.0, "grad_norm": 0.0, "update/norm": 0.0}
EQUAL = {**FLAT, "terms/productivity_group_std": 0.0}

# cause -> what shows it, and more in which its consequences show as well
SHOWN: dict[str, list[dict[str, Any]]] = {
    "broken_weights": [{"update/norm": math.inf}, {**EQUAL, "update/norm": math.inf, "turns/unreadable": 1.0}],
    "broken_gradient": [{"grad_norm": math.nan}, {"grad_norm": math.inf, "update/norm": 0.0, "update/changed": 0.0}],
    "failures": [{**EQUAL, "failure_rate": 1.0, "failures/500": 1.0}, {**EQUAL, "failure_rate": 0.75}],
    "nothing_parses": [{"turns/unreadable": 1.0}, {**EQUAL, "turns/unreadable": 1.0, "stop/max_tokens": 1.0}],
    "all_truncated": [{**EQUAL, "stop/max_tokens": 1.0}, {"grad_norm": 0.0, "stop/max_tokens": 1.0}],
    "no_entropy": [{**EQUAL, "entropy": 1e-4}],
    "clipped_rewards": [FLAT, {**FLAT, "terms/productivity_group_std": 0.0, "terms/proactivity_group_std": 0.1}],
    "flat_groups": [EQUAL, {"flat_groups": 1.0, "terms/productivity_group_std": None}],
    "zero_learning_rate": [{"learning_rate": 0.0, "update/norm": 0.0, "update/changed": 0.0}],
    "zero_gradient": [{"grad_norm": 0.0, "update/norm": 0.0, "update/changed": 0.0}],
    "no_update": [{"update/norm": 0.0, "update/changed": 0.0}],
    "lost_updates": [{"update/changed": 0.001}],
    "different_engine": [{"sampling/logprob_difference": 0.5}],
}


@pytest.fixture(autouse=True)
def toy_environment() -> Iterator[None]:
    register()
    ToyEnvironment.reset()
    yield
    ToyEnvironment.reset()


def observe(guard: LearningSignalGuard, lines: Sequence[dict[str, Any]]) -> TrainerControl:
    """Tell the guard of steps until it stops the run."""
    state, control = TrainerState(is_world_process_zero=True), TrainerControl()
    for state.global_step, line in enumerate(lines, start=1):
        guard.on_log(None, state, control, line)
        if control.should_training_stop:
            break
    return control


@pytest.mark.parametrize("name", CAUSES)
def test_each_cause_is_named_alone_with_its_remedy(name: str, caplog: pytest.LogCaptureFixture) -> None:
    for change in SHOWN[name]:
        caplog.clear()
        control = observe(guard := LearningSignalGuard(warn_after=3, stop_after=4), [{**GOOD, **change}] * 9)
        assert len(caplog.records) == 1, change
        assert describe([name], {**GOOD, **change}) in caplog.text
        for other in set(CAUSES) - {name}:
            assert CAUSES[other].text not in caplog.text, (change, other)
        stops = CAUSES[name].weight != "warns"
        assert control.should_training_stop == stops
        assert (guard.stop_message is not None) == stops


def test_a_step_that_teaches_is_no_reason_to_say_anything(caplog: pytest.LogCaptureFixture) -> None:
    assert missing_signals(GOOD) == []
    assert not observe(LearningSignalGuard(1, 1), [GOOD] * 5).should_training_stop
    assert not caplog.records


def test_causes_that_do_not_follow_from_each_other_are_told_together(caplog: pytest.LogCaptureFixture) -> None:
    assert missing_signals({**GOOD, **FLAT, "turns/unreadable": 1.0}) == ["nothing_parses", "clipped_rewards"]
    assert missing_signals({**GOOD, **EQUAL, "learning_rate": 0.0}) == ["flat_groups", "zero_learning_rate"]


def test_what_only_explains_is_told_of_dead_steps_alone() -> None:
    for change in ({"stop/max_tokens": 1.0}, {"failure_rate": 0.6}, {"entropy": 0.0}):
        assert missing_signals({**GOOD, **change}) == []


@pytest.mark.parametrize("bad", [EQUAL, {"turns/unreadable": 1.0}, {"grad_norm": 0.0}])
def test_guard_warns_once_and_then_stops_when_steps_in_a_row_teach_nothing(
    bad: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    dead = {**GOOD, **bad}
    guard = LearningSignalGuard(warn_after=3, stop_after=5)
    assert not observe(guard, [GOOD, dead, dead, GOOD]).should_training_stop and not caplog.records
    guard = LearningSignalGuard(warn_after=3, stop_after=5)
    control = observe(guard, [GOOD, dead, dead, GOOD, *[dead] * 9])
    assert len(caplog.records) == 1 and "last 3 steps" in caplog.text
    assert control.should_training_stop and control.should_save
    assert guard.last_step == 9
    assert guard.stop_message is not None and "last 5 steps" in guard.stop_message
    assert "stop_without_signal_steps is 5" in guard.stop_message


def test_zero_steps_stand_for_never(caplog: pytest.LogCaptureFixture) -> None:
    lines = [{**GOOD, **EQUAL}] * 20
    assert not observe(LearningSignalGuard(0, 0), lines).should_training_stop
    assert not caplog.records


def test_broken_weights_end_the_run_at_once_and_are_not_saved() -> None:
    control = observe(guard := LearningSignalGuard(5, 50), [GOOD, {**GOOD, "update/norm": math.inf}])
    assert control.should_training_stop and not control.should_save
    assert guard.stop_message is not None and "last checkpoint" in guard.stop_message


def test_steps_between_two_logs_count(caplog: pytest.LogCaptureFixture) -> None:
    guard, state, control = LearningSignalGuard(0, 20), TrainerState(), TrainerControl()
    guard.on_train_begin(None, state, control)
    for state.global_step in (10, 20):
        assert not control.should_training_stop
        guard.on_log(None, state, control, {**GOOD, **EQUAL})
    assert control.should_training_stop


def test_a_resumed_run_counts_on_from_its_checkpoint() -> None:
    state, control = TrainerState(global_step=4), TrainerControl()
    state.log_history = [{**GOOD, "step": 1}, *[{**GOOD, **EQUAL, "step": step} for step in (2, 3, 4)], {"eval_x": 1}]
    guard = LearningSignalGuard(0, 4)
    guard.on_train_begin(None, state, control)
    assert not control.should_training_stop and guard.stop_message is None
    state.global_step = 5
    guard.on_log(None, state, control, {**GOOD, **EQUAL})
    assert control.should_training_stop
    assert guard.stop_message is not None and "last 4 steps" in guard.stop_message


# --- real runs ---------------------------------------------------------------------------------------------------


class Mumbler:
    """Writes nothing that could be read."""

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall | None]:
        return "Hm.", None


class Asker:
    """Asks and finishes."""

    def act(self, task: Task, turns: Sequence[Turn]) -> tuple[str, ToolCall | None]:
        if not turns:
            return "", ToolCall("ask_user", {"query": "Where?"})
        return "", ToolCall("finish", {"answer": "f1"})


@pytest.fixture
def run(
    tokenizer: PreTrainedTokenizerBase,
    make_model: Callable[..., Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> Callable[..., tuple[list[str], PPPTrainer]]:
    """Trains for five steps; the warnings of the guard and the trainer."""

    def run(settings: RolloutSettings | None = None, **options: Any) -> tuple[list[str], PPPTrainer]:
        settings = settings or RolloutSettings(UNCLIPPED, correction=False)
        guard = LearningSignalGuard(warn_after=3, stop_after=5)
        options = {"max_steps": 8, "lr_scheduler_type": "constant", **options}
        trainer = build_trainer(
            tokenizer, make_model(tokenizer), tmp_path / "run", settings=settings, callbacks=[guard], **options
        )
        trainer.train()
        if guard.stop_message is not None:
            assert trainer.state.global_step == 5
        warnings = [
            record.getMessage()
            for record in caplog.records
            if record.name == "ppp.learning_signal" and "nothing to learn" in record.getMessage()
        ]
        return warnings, trainer

    return run


def names(warnings: Sequence[str]) -> set[str]:
    """The causes that are named."""
    return {name for name, cause in CAUSES.items() if any(cause.text in warning for warning in warnings)}


Run = Callable[..., tuple[list[str], PPPTrainer]]


def test_a_run_that_learns_is_left_alone(run: Run) -> None:
    warnings, trainer = run()
    assert not warnings and trainer.state.global_step == 8
    for line in read_metrics(trainer)[:8]:
        assert line["update/norm"] > 0 and line["update/changed"] > 0.5 and line["grad_norm"] > 0


@pytest.mark.parametrize(("score", "how"), [(0.0, "too hard"), (1.0, "too easy"), (0.5, "")])
def test_equal_rewards_are_named(run: Run, score: float, how: str) -> None:
    ToyEnvironment.reset([score])
    warnings, trainer = run()
    assert names(warnings) == {"flat_groups"} and how in warnings[0]
    assert trainer.state.global_step == 5


def test_rewards_made_equal_by_the_clip_are_named(run: Run) -> None:
    clipped = RewardSettings(UNCLIPPED.weights, reward_clip=(2.0, 3.0))
    assert names(run(RolloutSettings(clipped, correction=False))[0]) == {"clipped_rewards"}


def test_turns_that_cannot_be_read_are_named(run: Run) -> None:
    assert names(run(player=Mumbler())[0]) == {"nothing_parses"}


def test_turns_that_cannot_be_read_are_named_where_rewards_are_equal_too(run: Run) -> None:
    ToyEnvironment.reset([0.0])
    assert names(run(player=Mumbler())[0]) == {"nothing_parses"}


def test_a_learning_rate_of_zero_is_named(run: Run) -> None:
    warnings, trainer = run(learning_rate=0.0)
    assert names(warnings) == {"zero_learning_rate"}
    assert {line["update/norm"] for line in read_metrics(trainer)[:5]} == {0.0}


def test_a_simulator_that_is_down_is_named(run: Run) -> None:
    with ChatServer(faults={"500": 1.0}) as server:
        user = {"kind": "llm", "model": "m", "base_url": server.base_url, "max_retries": 0, "max_outage_s": 600.0}
        settings = RolloutSettings(UNCLIPPED, correction=False, max_failure_rate=1.0)
        warnings, trainer = run(settings, player=Asker(), crowd=Crowd(user))
    assert names(warnings) == {"failures"}
    assert "100% of the batch" in warnings[0] and "a simulator" in warnings[0] and "'500'" in warnings[0]
    assert [line["failures/500"] for line in read_metrics(trainer)[:5]] == [1.0] * 5


def test_trajectories_that_all_run_out_of_tokens_are_named(run: Run) -> None:
    ToyEnvironment.reset([0.0])
    assert names(run(limits=Limits(max_completion_tokens=150))[0]) == {"all_truncated"}


def test_a_loss_without_tokens_is_named(run: Run) -> None:
    warnings, _ = run(limits=Limits(max_completion_tokens=150), mask_truncated_completions=True)
    assert names(warnings) == {"all_truncated"}


def test_a_policy_that_nothing_can_change_is_named(run: Run) -> None:
    assert names(run(player=Player(), epsilon=0.2, max_grad_norm=0.0, learning_rate=1e-30)[0]) == {"no_update"}
