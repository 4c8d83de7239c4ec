"""Rewards, session effort and metrics, against the paper's numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from ppp.preferences import PREFERENCES
from ppp.rewards import (
    METRIC_VERSION,
    TERMS,
    RewardSettings,
    score_trajectory,
    session_effort,
    session_metrics,
    summarize,
)
from ppp.types import Answer, Effort, RecipeError, StopReason, Task, ToolCall, Trajectory, Turn

LOW, MEDIUM, HIGH = Effort.LOW, Effort.MEDIUM, Effort.HIGH
UNCLIPPED = RewardSettings(reward_clip=None)


def turn(answer: Answer | None) -> Turn:
    if answer is None:
        return Turn([1], [-0.5], {"role": "assistant", "content": ""}, call=ToolCall("look", {}), observation="seen")
    call = ToolCall("ask_user", {"query": "which?"})
    return Turn([1], [-0.5], {"role": "assistant"}, call=call, observation="so", question="which?", answer=answer)


def session(
    answers: Sequence[Effort | Answer] = (),
    *,
    productivity: float | None = 1.0,
    preference: str = "no_preference",
    precise: bool = False,
    num_bad: int = 0,
    environment: str = "town",
) -> Trajectory:
    """A session whose questions come first; the first `num_bad` of them break the preference."""
    given = [
        answer if isinstance(answer, Answer) else Answer("text", answer, number >= num_bad)
        for number, answer in enumerate(answers)
    ]
    task = Task("t", environment, "precise" if precise else "vague", "precise", preference, {})
    turns = [*map(turn, given), turn(None)]
    reason = StopReason.ERROR if productivity is None else StopReason.FINISHED
    return Trajectory(task, [0], turns, reason, productivity=productivity)


# --- terms -----------------------------------------------------------------------------------------------------------

TERM_CASES: list[tuple[str, dict[str, Any], dict[str, str], float]] = [
    ("productivity", {"productivity": 0.4}, {}, 0.4),
    ("proactivity", {}, {}, 0.0),
    ("proactivity", {"productivity": 0.0}, {}, 0.0),
    ("proactivity", {"answers": [LOW]}, {}, 0.05),
    ("proactivity", {"answers": [LOW, LOW]}, {}, 0.05),
    ("proactivity", {"answers": [LOW, MEDIUM]}, {}, -0.1),
    ("proactivity", {"answers": [MEDIUM, MEDIUM]}, {}, -0.2),
    ("proactivity", {"answers": [LOW, MEDIUM, HIGH]}, {}, -0.6),
    ("proactivity", {"answers": [LOW], "precise": True}, {}, 0.05),
    ("personalization", {}, {}, 0.05),
    ("personalization", {"preference": "no_ask"}, {}, 0.05),
    ("personalization", {"preference": "no_ask", "answers": [LOW]}, {}, -1.0),
    ("personalization", {"preference": "concise_question"}, {}, 0.0),
    ("personalization", {"preference": "concise_question", "answers": [LOW]}, {}, 0.05),
    ("personalization", {"preference": "concise_question", "answers": [LOW] * 3, "num_bad": 2}, {}, -0.2),
    ("personalization", {"preference": "one_question", "answers": [LOW] * 3, "num_bad": 2}, {}, -1.0),
    ("personalization", {"preference": "answer_more", "answers": [LOW]}, {}, -2.0),
    ("personalization", {"preference": "answer_more", "answers": [LOW] * 3}, {}, 0.05),
    ("personalization", {"preference": "answer_more"}, {}, -3.0),
]
RELEASED = {"effort_costs": "released"}
RELEASED_CASES: list[tuple[str, dict[str, Any], dict[str, str], float]] = [
    ("proactivity", {}, RELEASED, 0.0),
    ("proactivity", {"productivity": 0.5}, RELEASED, -0.1),
    ("proactivity", {"productivity": 0.5, "precise": True}, RELEASED, 0.0),
    ("proactivity", {"productivity": 0.5, "answers": [LOW]}, RELEASED, 0.05),
    ("proactivity", {"answers": [LOW, LOW]}, RELEASED, 0.05),
    ("proactivity", {"answers": [LOW, MEDIUM, HIGH]}, RELEASED, -0.6),
    ("proactivity", {"answers": [Answer("", LOW, True, level=2)]}, RELEASED, -0.1),
    ("proactivity", {"answers": [Answer("", HIGH, True, level=4)]}, RELEASED, -0.3),
    ("proactivity", {"answers": [LOW, MEDIUM], "precise": True}, RELEASED, -0.8),
    ("proactivity", {"answers": [LOW], "environment": "deep_research"}, RELEASED, 0.05),
    ("proactivity", {"answers": [LOW, MEDIUM], "environment": "deep_research"}, RELEASED, 0.0),
    ("proactivity", {"answers": [MEDIUM, HIGH], "environment": "deep_research"}, RELEASED, -0.95),
    ("proactivity", {"answers": [LOW, MEDIUM], "environment": "deep_research", "precise": True}, RELEASED, -0.35),
    ("proactivity", {"productivity": 0.0, "environment": "deep_research"}, RELEASED, -0.1),
    ("personalization", {}, {"personalization": "released"}, 0.0),
    ("personalization", {"answers": [LOW]}, {"personalization": "released"}, 0.0),
    ("personalization", {"preference": "no_ask"}, {"personalization": "released"}, 0.0),
    ("personalization", {"preference": "length", "answers": [LOW]}, {"personalization": "released"}, 0.05),
    (
        "personalization",
        {"preference": "length", "answers": [LOW], "precise": True},
        {"personalization": "released"},
        0.0,
    ),
    (
        "personalization",
        {"preference": "length", "answers": [LOW], "num_bad": 1},
        {"personalization": "released"},
        -0.5,
    ),
]


@pytest.mark.parametrize(("term", "shape", "options", "expected"), TERM_CASES + RELEASED_CASES)
def test_term_has_the_value_of_the_paper_or_of_the_release(
    term: str, shape: dict[str, Any], options: dict[str, Any], expected: float
) -> None:
    assert TERMS[term](session(**shape), RewardSettings(**options)) == pytest.approx(expected)


@pytest.mark.parametrize("term", TERMS)
def test_every_term_is_tested_and_can_be_dropped(term: str) -> None:
    assert any(case[0] == term for case in TERM_CASES)
    trajectory = session([LOW, MEDIUM], productivity=0.7, preference="concise_question", num_bad=1)
    whole = score_trajectory(trajectory, UNCLIPPED)
    dropped = score_trajectory(trajectory, RewardSettings(weights={term: 0}, reward_clip=None))
    assert whole is not None and dropped is not None
    assert whole[term] == dropped[term] != 0
    assert dropped["reward"] == pytest.approx(whole["reward"] - whole[term])
    assert whole["reward"] == pytest.approx(sum(whole[name] for name in TERMS))


@pytest.mark.parametrize("preference", PREFERENCES)
def test_every_preference_can_earn_the_bonus_and_only_its_penalty_lowers_it(preference: str) -> None:
    kept = session(
        [] if preference == "no_ask" else [LOW] * (3 if preference == "answer_more" else 1), preference=preference
    )
    assert TERMS["personalization"](kept, UNCLIPPED) == pytest.approx(0.05)
    broken = session([LOW], preference=preference, num_bad=1)
    assert TERMS["personalization"](broken, UNCLIPPED) <= 0
    assert not session_metrics(broken)["follows_preference"]


@pytest.mark.parametrize(
    ("clip", "productivity", "expected"),
    [((0, 1), 0.0, 0.0), ([0.0, 1.0], 0.5, 0.45), (None, 1.0, 0.95), (None, 0.0, -0.05), ((0, 0.3), 1.0, 0.3)],
)
def test_reward_is_clipped_as_asked(clip: Any, productivity: float, expected: float) -> None:
    """The terms beside productivity are worth -0.1 + 0.05."""
    trajectory = session([MEDIUM], productivity=productivity, preference="concise_question")
    scores = score_trajectory(trajectory, RewardSettings(reward_clip=clip))
    assert scores is not None and scores["reward"] == pytest.approx(expected)


def test_failed_trajectory_has_no_reward() -> None:
    assert score_trajectory(session(productivity=None), RewardSettings()) is None


BAD_SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("term_weights.*'speed'.*productivity", {"weights": {"speed": 1.0}}),
    ("term_weights.*productivity", {"weights": {"productivity": -1.0}}),
    ("term_weights", {"weights": {"productivity": math.nan}}),
    ("term_weights", {"weights": {"productivity": "1"}}),
    ("effort_costs.*'free'.*paper, released", {"effort_costs": "free"}),
    ("personalization.*'loose'", {"personalization": "loose"}),
    ("reward_clip", {"reward_clip": (1, 0)}),
    ("reward_clip", {"reward_clip": (0, 1, 2)}),
    ("reward_clip", {"reward_clip": (0, math.inf)}),
    ("reward_clip", {"reward_clip": 1}),
]


@pytest.mark.parametrize(("message", "options"), BAD_SETTINGS)
def test_setting_that_makes_no_sense_is_refused(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=message):
        RewardSettings(**options)


# --- effort and metrics ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({"productivity": 1.0}, LOW),
        ({"productivity": 0.99}, HIGH),
        ({"productivity": 0.0, "precise": True}, LOW),
        ({"productivity": 0.0, "answers": [LOW]}, LOW),
        ({"answers": [LOW, MEDIUM, LOW]}, MEDIUM),
        ({"answers": [LOW, MEDIUM, HIGH, LOW]}, HIGH),
    ],
)
def test_session_effort_is_the_highest_and_silent_failure_is_high(shape: dict[str, Any], expected: Effort) -> None:
    assert session_effort(session(**shape)) is expected


def test_metrics_of_a_set_of_sessions() -> None:
    sessions = [
        session([LOW], preference="concise_question"),  # all well
        session([LOW, HIGH], preference="concise_question", num_bad=1, productivity=0.5),
        session([], preference="answer_more"),  # solved in silence: low effort, breaks the preference
        session([], preference="no_ask", productivity=0.0),  # failed in silence: high effort
        session([MEDIUM], preference="no_ask"),
        session([], precise=True, productivity=0.25),
        session(productivity=None),
    ]
    summary = summarize(sessions)
    assert summary == {
        "productivity": 62.5,
        "proactivity": 50.0,
        "personalization": 33.33,
        "ask_ratio": 50.0,
        "ask_ratio_willing": 50.0,
        "num_sessions": 6,
        "num_failed": 1,
        "effort": {"low": 0.3333, "medium": 0.1667, "high": 0.1667},
        "metric_version": METRIC_VERSION,
    }
    # The silence of answer_more counts as broken here; that of no_ask is what it wants and still counts for nothing.
    assert summarize(sessions, "released") == {**summary, "personalization": 25.0}


def test_only_one_that_wants_no_questions_is_not_willing() -> None:
    sessions = [session([LOW], preference="no_ask"), session([], preference="no_ask"), session([LOW]), session([])]
    assert summarize(sessions[:3])["ask_ratio_willing"] == 100.0
    assert summarize(sessions)["ask_ratio_willing"] == 50.0
    assert summarize(sessions[:2])["ask_ratio_willing"] is None


def test_metrics_of_nothing_are_undefined() -> None:
    for sessions in ([], [session(productivity=None)]):
        summary = summarize(sessions)
        assert summary["num_sessions"] == 0 and summary["num_failed"] == len(sessions)
        for name in ("productivity", "proactivity", "personalization", "ask_ratio", "ask_ratio_willing"):
            assert summary[name] is None
        assert summary["effort"] == {"low": None, "medium": None, "high": None}
    assert summarize([session()])["personalization"] is None


def test_unknown_variant_of_the_metric_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"personalization.*'mine'"):
        summarize([], "mine")


def test_metrics_of_one_session() -> None:
    assert session_metrics(session([LOW, MEDIUM], productivity=0.5)) == {
        "productivity": 0.5,
        "session_effort": "medium",
        "follows_preference": True,
        "num_questions": 2,
        "effort": {"low": 1, "medium": 1, "high": 0},
    }


def test_unscored_session_has_no_metrics() -> None:
    with pytest.raises(ValueError, match="never scored"):
        session_metrics(session(productivity=None))
