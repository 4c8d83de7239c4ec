"""The numbers of one batch of trajectories, as they stand in `metrics.jsonl` and in the progress bar.

Scores, ask ratios and efforts are `rewards.summarize` on the vague sessions of the batch; what else a learner needs
to see (flat groups, unreadable turns, stop reasons, failures) is counted here. Computed alike on every process, from
all of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from ppp.preferences import SEEN, UNSEEN
from ppp.rewards import TERMS, summarize
from ppp.types import StopReason, Trajectory

Score = Mapping[str, float] | None  # what score_trajectory returns; None for a failed trajectory
Metrics = dict[str, float]

FLAT = 1e-6  # rewards of a group that differ by less carry no signal
REWARD = ("reward",)
FAILURES = "failures/"  # share of the batch that failed, by the kind of failure


def slim(trajectory: Trajectory) -> Trajectory:
    """A copy without tokens and texts that no metric reads: what processes send each other."""
    turns = [
        replace(turn, completion_ids=[], logprobs=[], observation_ids=[], message={}, observation=None)
        for turn in trajectory.turns
    ]
    return replace(trajectory, prompt_ids=[], turns=turns, final_answer=None)


def batch_metrics(
    trajectories: Sequence[Trajectory],
    scores: Sequence[Score],
    num_generations: int,
    personalization: str,
    signals: Sequence[str] = REWARD,
) -> Metrics:
    """All numbers of one batch.

    Args:
        trajectories: group after group, each of `num_generations` copies.
        scores: of each trajectory.
        personalization: the variant of the metric, see `summarize`.
        signals: the values of a score that advantages are made of, see `flat_groups`.
    """
    metrics = session_scores(trajectories, personalization)
    metrics |= group_metrics(scores, num_generations, signals)
    metrics |= turn_metrics(trajectories)
    metrics["failure_rate"] = fmean(trajectory.failed for trajectory in trajectories)
    kinds = Counter(trajectory.error_kind or "unknown" for trajectory in trajectories if trajectory.failed)
    for kind, number in sorted(kinds.items()):
        metrics[f"{FAILURES}{kind}"] = number / len(trajectories)
    reasons = Counter(trajectory.stop_reason for trajectory in trajectories)
    for reason in StopReason:
        metrics[f"stop/{reason.value}"] = reasons[reason] / len(trajectories)
    for name in ("total", "generate", "tool", "user"):
        metrics[f"seconds/{name}"] = fmean(trajectory.timings.get(name, 0.0) for trajectory in trajectories)
    return metrics


def session_scores(trajectories: Sequence[Trajectory], personalization: str) -> Metrics:
    """The scores of the vague sessions in percent, the ask ratios of all kinds, the questions by effort."""
    vague = summarize([t for t in trajectories if not t.task.is_precise], personalization)
    precise = summarize([t for t in trajectories if t.task.is_precise], personalization)
    found = {
        "productivity": vague["productivity"],
        "proactivity": vague["proactivity"],
        "personalization": vague["personalization"],
        "ask_ratio/vague": vague["ask_ratio"],
        "ask_ratio/willing": vague["ask_ratio_willing"],
        "ask_ratio/precise": precise["ask_ratio"],
        "precise/productivity": precise["productivity"],
        "precise/proactivity": precise["proactivity"],
        **{f"effort/{effort}": number for effort, number in vague["effort"].items()},
    }
    positions = [
        number / len(trajectory.turns)
        for trajectory in trajectories
        for number, turn in enumerate(trajectory.turns)
        if turn.answer is not None
    ]
    if positions:  # a question loses its value after the first tenth of a run
        found["question_position"] = fmean(positions)
    return {name: value for name, value in found.items() if value is not None}


def flat_groups(scores: Sequence[Score], num_generations: int, signals: Sequence[str] = REWARD) -> list[int]:
    """The numbers of the groups that teach nothing: their copies differ in none of `signals`, or are not scored.

    Args:
        signals: the values of a score that advantages are made of: the reward, or terms that are normalised one by one.
    """
    flat = []
    for number, start in enumerate(range(0, len(scores), num_generations)):
        group = [score for score in scores[start : start + num_generations] if score is not None]
        if all(standard_deviation([score[name] for score in group]) < FLAT for name in signals):
            flat.append(number)
    return flat


def group_metrics(scores: Sequence[Score], num_generations: int, signals: Sequence[str] = REWARD) -> Metrics:
    """Mean of reward and terms, their spread within groups, and the share of groups that teach nothing."""
    whole = [score for score in scores if score is not None]
    groups = [scores[start : start + num_generations] for start in range(0, len(scores), num_generations)]
    metrics: Metrics = {}
    for name in ("reward", *TERMS) if whole else ():
        label = "session_reward" if name == "reward" else f"terms/{name}"
        metrics[label] = fmean(score[name] for score in whole)
        spreads = [standard_deviation([score[name] for score in group if score is not None]) for group in groups]
        metrics[f"{label}_group_std"] = fmean(spreads)
    metrics["flat_groups"] = len(flat_groups(scores, num_generations, signals)) / len(groups)
    return metrics


def standard_deviation(values: Sequence[float]) -> float:
    """Of all values there are, 0 of none; `statistics.pstdev` is exact and takes longer than all the rest here."""
    if not values:
        return 0.0
    centre = fmean(values)
    return math.sqrt(fmean((value - centre) ** 2 for value in values))


def turn_metrics(trajectories: Sequence[Trajectory]) -> Metrics:
    """How long sessions are and how much of what the policy wrote could be used."""
    turns = [turn for trajectory in trajectories if not trajectory.failed for turn in trajectory.turns]
    if not turns:
        return {}
    unreadable = [turn.call is None for turn in turns]
    return {
        "turns/mean": len(turns) / len(trajectories),
        "turns/unreadable": fmean(unreadable),
        "turns/refused_calls": fmean(turn.is_error and turn.call is not None for turn in turns),
        "turns/truncated": fmean(turn.truncated for turn in turns),
    }


def evaluation_metrics(trajectories: Sequence[Trajectory], scores: Sequence[Score], personalization: str) -> Metrics:
    """`batch_metrics` of an evaluation, and the scores by kind of session and by preference."""
    metrics = batch_metrics(trajectories, scores, 1, personalization)
    for name in ("flat_groups", *(key for key in metrics if key.endswith("_group_std"))):
        metrics.pop(name, None)
    slices = {
        "vague_seen": [t for t in trajectories if not t.task.is_precise and t.task.preference in SEEN],
        "vague_unseen": [t for t in trajectories if not t.task.is_precise and t.task.preference in UNSEEN],
        "precise": [t for t in trajectories if t.task.is_precise],
    }
    for preference in (*SEEN, *UNSEEN):
        members = [t for t in trajectories if not t.task.is_precise and t.task.preference == preference]
        slices[f"preference/{preference}"] = members
    for name, members in slices.items():
        if members:
            for key, value in _flat(summarize(members, personalization)).items():
                metrics[f"{name}/{key}"] = value
    return metrics


def _flat(summary: Mapping[str, Any]) -> Metrics:
    """The numbers of a summary without nesting, absent where no session can tell."""
    flat = {key: value for key, value in summary.items() if isinstance(value, int | float) and key != "metric_version"}
    efforts = {f"effort/{name}": value for name, value in summary["effort"].items() if value is not None}
    return {**flat, **efforts}
