"""What a finished trajectory earns, and the four metrics of a set of them.

R = productivity + proactivity + personalization (PPP section 3.3): each term is one function in `TERMS`, with a weight
in the recipe, so that an ablation is a weight of 0. Group advantages are not here, they are TRL's (`trainer.py`).
Where paper and released code differ, `RewardSettings` offers both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ppp.preferences import PREFERENCES
from ppp.types import Effort, RecipeError, Trajectory

METRIC_VERSION = 1
VARIANTS = ("paper", "released")

BONUS = 0.05
EFFORT_COSTS = {Effort.LOW: 0.0, Effort.MEDIUM: 0.1, Effort.HIGH: 0.5}

# The released code's grades, for answers whose user gives only an effort: 1 to 5, in deep research 1 to 3.
LEVELS = {Effort.LOW: 1, Effort.MEDIUM: 3, Effort.HIGH: 5}
RESEARCH_ENVIRONMENT = "deep_research"
RESEARCH_LEVELS = {Effort.LOW: 1, Effort.MEDIUM: 2, Effort.HIGH: 3}
RESEARCH_COSTS = {1: 0.0, 2: 0.05, 3: 0.9}
SILENCE_COST = 0.1

# What `session_ratios` knows of a session: shares, told in percent, and questions by what the answers took.
SHARES = ("productivity", "proactivity", "personalization", "ask_ratio", "ask_ratio_willing")
EFFORTS = tuple(effort.label for effort in Effort)
LEAST_EFFORT = EFFORTS[0]
RATIOS = (*SHARES, *(f"effort/{effort}" for effort in EFFORTS))


@dataclass(frozen=True)
class RewardSettings:
    """How the terms are computed and put together.

    Attributes:
        weights: term -> weight >= 0; a term that is not named has weight 1.
        effort_costs: "paper" (PPP section 3.3) or "released" (the authors' code: graded levels).
        personalization: "paper", or "released": the bonus only on vague prompts, only after a question, and only for
            preferences with a penalty; the metric then counts preferences broken by silence as well.
        reward_clip: bounds of the reward, None for none.

    Raises:
        RecipeError: a value that is not allowed.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    effort_costs: str = "paper"
    personalization: str = "paper"
    reward_clip: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if name not in TERMS:
                raise RecipeError(f"term_weights: {name!r} is unknown, allowed are {', '.join(TERMS)}")
            if not is_number(weight) or weight < 0:
                raise RecipeError(f"term_weights.{name}: {weight!r} is not allowed, allowed are numbers >= 0")
        require_variant("effort_costs", self.effort_costs)
        require_variant("personalization_bonus", self.personalization)
        clip = self.reward_clip
        pair = isinstance(clip, tuple | list) and len(clip) == 2 and all(map(is_number, clip))
        if clip is not None and not (pair and clip[0] < clip[1]):
            raise RecipeError(f"reward_clip: {clip!r} is not allowed, allowed are [low, high] with low < high, or null")


def is_number(value: object) -> bool:
    """Whether `value` is a finite number (a bool is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def require_variant(name: str, value: str) -> None:
    """Raise `RecipeError` unless `value` is one of `VARIANTS`."""
    if value not in VARIANTS:
        raise RecipeError(f"{name}: {value!r} is unknown, allowed are {', '.join(VARIANTS)}")


def solved(trajectory: Trajectory) -> float:
    """The productivity of a trajectory that did not fail, in [0, 1]."""
    if trajectory.productivity is None:
        raise ValueError(f"{trajectory.task.task_id}: a trajectory that was never scored has no reward and no metrics")
    return trajectory.productivity


def answer_levels(trajectory: Trajectory) -> list[int]:
    """The released code's grade of each answer."""
    levels = RESEARCH_LEVELS if trajectory.task.environment == RESEARCH_ENVIRONMENT else LEVELS
    return [levels[answer.effort] if answer.level is None else answer.level for answer in trajectory.answers]


def silent_failure(trajectory: Trajectory) -> bool:
    """The prompt was vague, nothing was asked, and the solution was wrong (PPP section 3.2)."""
    return not trajectory.task.is_precise and not trajectory.answers and solved(trajectory) < 1


def session_effort(trajectory: Trajectory) -> Effort:
    """The highest effort of any answer; high for a silent failure, low for other sessions without a question."""
    if silent_failure(trajectory):
        return Effort.HIGH
    return max((answer.effort for answer in trajectory.answers), default=Effort.LOW)


def follows_preference(trajectory: Trajectory) -> bool:
    """Whether every question was put the way this user likes, and the session as a whole was, too."""
    preference = PREFERENCES[trajectory.task.preference]
    return trajectory.num_off_preference == 0 and preference.penalty(trajectory) == 0


def productivity(trajectory: Trajectory, settings: RewardSettings) -> float:
    """The task's own metric, in [0, 1]. Source: PPP section 3.3."""
    return solved(trajectory)


def proactivity(trajectory: Trajectory, settings: RewardSettings) -> float:
    """A bonus for asking at low effort only, a cost for each answer that took more. Source: PPP section 3.3."""
    if settings.effort_costs == "released":
        return released_proactivity(trajectory)
    efforts = [answer.effort for answer in trajectory.answers]
    bonus = BONUS if efforts and max(efforts) is Effort.LOW else 0.0
    return bonus - sum(EFFORT_COSTS[effort] for effort in efforts)


def released_proactivity(trajectory: Trajectory) -> float:
    """The same term by the authors' code: graded levels, dearer on precise prompts, a cost for silent failures."""
    levels, precise = answer_levels(trajectory), trajectory.task.is_precise
    if trajectory.task.environment == RESEARCH_ENVIRONMENT:
        cost = sum(RESEARCH_COSTS[level] for level in levels) + (0.1 * sum(levels) if precise else 0.0)
        earned = 1 in levels
    else:
        cost = 0.2 * sum(levels) if precise else 0.1 * sum(level - 1 for level in levels)
        earned = bool(levels) and max(levels) == 1
    bonus = BONUS if earned and not precise else 0.0
    return bonus - cost - (SILENCE_COST if silent_failure(trajectory) else 0.0)


def personalization(trajectory: Trajectory, settings: RewardSettings) -> float:
    """The preference's penalty, and a bonus for following it throughout. Source: PPP section 3.3.

    A preference about the form of questions needs a question to be followed.
    """
    preference = PREFERENCES[trajectory.task.preference]
    asked = bool(trajectory.answers)
    if settings.personalization == "released":
        # `no_ask` never earns it here: it can only be followed without a question.
        earned = asked and preference.needs_question and not trajectory.task.is_precise
    else:
        earned = asked or not preference.needs_question
    bonus = BONUS if earned and follows_preference(trajectory) else 0.0
    return bonus + preference.penalty(trajectory)


# name of the term -> (trajectory, settings) -> value before its weight
TERMS: dict[str, Callable[[Trajectory, RewardSettings], float]] = {
    "productivity": productivity,
    "proactivity": proactivity,
    "personalization": personalization,
}


def score_trajectory(trajectory: Trajectory, settings: RewardSettings) -> dict[str, float] | None:
    """The value of each term (unweighted) and, as "reward", their weighted and clipped sum; None if it failed."""
    if trajectory.failed:
        return None
    values = {name: term(trajectory, settings) for name, term in TERMS.items()}
    reward = sum(settings.weights.get(name, 1.0) * value for name, value in values.items())
    if settings.reward_clip is not None:
        low, high = settings.reward_clip
        reward = min(max(reward, low), high)
    return {**values, "reward": reward}


def session_metrics(trajectory: Trajectory) -> dict[str, Any]:
    """The verdicts on one session from which `summarize` makes its shares; for the trajectory log as well."""
    efforts = [answer.effort for answer in trajectory.answers]
    return {
        "productivity": solved(trajectory),
        "session_effort": session_effort(trajectory).label,
        "follows_preference": follows_preference(trajectory),
        "num_questions": len(efforts),
        "effort": {effort.label: efforts.count(effort) for effort in Effort},
    }


def summarize(trajectories: Iterable[Trajectory], personalization: str = "paper") -> dict[str, Any]:
    """The metrics of a set of sessions, in percent with two decimals; None where no session can tell.

    Failed trajectories are left out and counted. Source: PPP section 4.1.

    Args:
        trajectories: finished ones.
        personalization: "paper" takes the share of sessions that follow the preference over those with a question,
            "released" also counts those that break it without asking.

    Returns:
        productivity, proactivity, personalization, ask_ratio, ask_ratio_willing (without the users who want no
        questions), num_sessions, num_failed, effort (mean questions per session by effort), metric_version.
    """
    require_variant("personalization", personalization)
    played = list(trajectories)
    whole = [trajectory for trajectory in played if not trajectory.failed]
    parts = [session_ratios(t.task.preference, session_metrics(t), personalization) for t in whole]
    sums = {name: _total([part[name] for part in parts]) for name in RATIOS}
    return {
        **{name: in_percent(*sums[name]) for name in SHARES},
        "num_sessions": len(whole),
        "num_failed": len(played) - len(whole),
        "effort": {effort: in_units(*sums[f"effort/{effort}"]) for effort in EFFORTS},
        "metric_version": METRIC_VERSION,
    }


def session_ratios(preference: str, session: Mapping[str, Any], personalization: str) -> dict[str, tuple[float, float]]:
    """What one session adds to each metric of a set, which is the sum of the first numbers over that of the second.

    Args:
        preference: of the session's user.
        session: what `session_metrics` tells of it.
        personalization: the variant of the metric, see `summarize`.

    Returns:
        name in `RATIOS` -> (numerator, denominator).
    """
    asked, follows = session["num_questions"] > 0, session["follows_preference"]
    judged = asked or (personalization == "released" and not follows)
    willing = preference != "no_ask"
    return {
        "productivity": (session["productivity"], 1),
        "proactivity": (session["session_effort"] == LEAST_EFFORT, 1),
        "personalization": (judged and follows, judged),
        "ask_ratio": (asked, 1),
        "ask_ratio_willing": (willing and asked, willing),
        **{f"effort/{effort}": (session["effort"][effort], 1) for effort in EFFORTS},
    }


def _total(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    numerators, denominators = zip((0.0, 0.0), *pairs, strict=True)
    return sum(numerators), sum(denominators)


def in_units(numerator: float, denominator: float) -> float | None:
    """A metric that is a mean, with four decimals; None of no values."""
    return round(float(numerator / denominator), 4) if denominator else None


def in_percent(numerator: float, denominator: float) -> float | None:
    """A metric that is a share, as a percentage with two decimals; None of no values."""
    return round(float(100 * numerator / denominator), 2) if denominator else None
