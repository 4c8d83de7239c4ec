"""The table of the twenty preferences: complete, well formed, and with the penalties of PPP section 2.2."""

from __future__ import annotations

import pickle

import pytest

from ppp.preferences import PREFERENCES, SEEN, UNSEEN, check_preference, follows_preference
from ppp.types import Answer, Effort, RecipeError, Task, Trajectory, Turn

DECIDED_BY_RULE = {
    *("capital", "commas", "json", "length", "lang_ita", "lang_multi"),
    *("one_question", "do_selection", "concise_question", "snippet"),
}
DECIDED_BY_JUDGE = {"detail_question", "amateur", "first_try", "joke"}


def play(name: str, turns: str) -> Trajectory:
    """A session: per letter a turn that uses a tool (t), or asks as this user likes (g) or dislikes (b)."""
    task = Task("t0", "town", "vague", "precise", name, {})
    made = []
    for letter in turns:
        asks = letter in "gb"
        made.append(
            Turn(
                completion_ids=[1],
                logprobs=[0.0],
                message={"role": "assistant", "content": ""},
                question="Which module?" if asks else None,
                answer=Answer("parser", Effort.LOW, letter == "g") if asks else None,
            )
        )
    return Trajectory(task=task, turns=made)


def test_twelve_are_seen_and_eight_are_not_in_the_order_of_the_paper() -> None:
    assert list(SEEN) == [
        *("no_preference", "concise_question", "detail_question", "answer_more", "only_begin", "no_ask"),
        *("do_selection", "professional", "amateur", "ask_many", "one_question", "first_try"),
    ]
    assert tuple(UNSEEN) == ("lang_ita", "lang_multi", "capital", "commas", "json", "joke", "snippet", "length")
    assert tuple(PREFERENCES) == (*SEEN, *UNSEEN)


@pytest.mark.parametrize("name", PREFERENCES)
def test_every_entry_is_well_formed(name: str) -> None:
    preference = PREFERENCES[name]
    assert preference.name == name
    assert preference.description.startswith("This user ") and preference.description.endswith(".")
    assert "  " not in preference.description
    assert bool(preference.criterion) == (name in DECIDED_BY_RULE | DECIDED_BY_JUDGE)
    assert preference.needs_question == (name not in ("no_preference", "professional", "no_ask"))
    for question in ("", "Which module is affected?", "\ud800\x00 ?", "{", "(" * 50):
        assert isinstance(preference.rule(question), bool) == (name in DECIDED_BY_RULE)
    assert pickle.loads(pickle.dumps(preference)).name == name


@pytest.mark.parametrize(
    ("name", "turns", "penalty", "follows"),
    [
        ("no_preference", "", 0.0, True),
        ("no_preference", "bb", 0.0, True),
        ("professional", "tb", 0.0, True),
        *((name, "gbb", -0.2, False) for name in ("concise_question", "detail_question", "amateur", "first_try")),
        *((name, "gbb", -1.0, False) for name in ("do_selection", "one_question", *UNSEEN)),
        *((name, "tgg", 0.0, True) for name in (*UNSEEN, *sorted(DECIDED_BY_RULE | DECIDED_BY_JUDGE))),
        *((name, "tt", 0.0, False) for name in (*UNSEEN, *sorted(DECIDED_BY_RULE | DECIDED_BY_JUDGE))),
        ("answer_more", "", -3.0, False),
        ("answer_more", "tgt", -2.0, False),
        ("answer_more", "gtgg", 0.0, True),
        ("answer_more", "gggg", 0.0, True),
        ("only_begin", "", 0.0, False),
        ("only_begin", "gtt", 0.0, True),
        ("only_begin", "gg", -1.0, False),
        ("only_begin", "tg", -1.0, False),
        ("only_begin", "tggg", -1.0, False),
        ("no_ask", "", 0.0, True),
        ("no_ask", "tt", 0.0, True),
        ("no_ask", "tg", -1.0, False),
        ("no_ask", "ggg", -1.0, False),
        ("ask_many", "", 0.0, False),
        ("ask_many", "tg", 0.0, True),
        ("ask_many", "gtgg", -1.0, False),
    ],
)
def test_penalty_and_verdict_of_a_session(name: str, turns: str, penalty: float, follows: bool) -> None:
    trajectory = play(name, turns)
    assert PREFERENCES[name].penalty(trajectory) == pytest.approx(penalty)
    assert str(PREFERENCES[name].penalty(trajectory)) != "-0.0"
    assert follows_preference(trajectory) is follows


def test_unknown_preference_is_refused_with_the_allowed_names() -> None:
    assert check_preference("joke") is PREFERENCES["joke"]
    with pytest.raises(RecipeError, match=r"preference: 'jokes' is unknown; allowed: no_preference, .*, length"):
        check_preference("jokes")
