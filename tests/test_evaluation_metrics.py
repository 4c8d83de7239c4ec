"""The metrics of PPP section 2.4 on sessions made by hand, with every number worked out beside it.

A session is a word, see `made_records.made_turn`: "tLf" uses a tool, asks a question that costs low effort and that the
user dislikes, and finishes.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from made_records import as_record, made_record, made_session

from ppp.evaluation.intervals import Settings
from ppp.evaluation.metrics import METRICS, summarize_groups, summarize_records
from ppp.preferences import PREFERENCES, SEEN, UNSEEN
from ppp.rewards import summarize
from ppp.types import RecipeError

QUICK = Settings(num_resamples=200)


def metrics(*records: dict[str, Any], **options: Any) -> dict[str, Any]:
    return summarize_records(records, intervals=None, **options)


# --- the three scores ------------------------------------------------------------------------------------------------


def test_productivity_is_the_mean_of_the_tasks_own_metric() -> None:
    # (1 + 0.5 + 0.25) / 3 = 0.58333
    assert metrics(made_record("tf", 1.0), made_record("lf", 0.5), made_record("mf", 0.25))["productivity"] == 58.33


@pytest.mark.parametrize(
    ("turns", "productivity", "precise", "is_low"),
    [
        ("lf", 0.0, False, True),  # what was asked was low effort; that the answer is wrong is productivity's
        ("llf", 1.0, False, True),
        ("lmf", 1.0, False, False),  # the highest effort of any turn counts
        ("lhlf", 1.0, False, False),
        ("tf", 1.0, False, True),  # silent and right
        ("tf", 0.99, False, False),  # vague, silent, and not wholly right: high effort
        ("tf", 0.0, False, False),
        ("tf", 0.0, True, True),  # precise: the user had said everything
        ("uu", 0.0, False, False),  # never got as far as an answer
        ("Lf", 1.0, False, True),  # effort is one thing, the preference another
    ],
)
def test_proactivity_is_the_share_of_sessions_of_low_effort(
    turns: str, productivity: float, precise: bool, is_low: bool
) -> None:
    assert metrics(made_record(turns, productivity, precise=precise))["proactivity"] == (100.0 if is_low else 0.0)


def test_a_vague_prompt_a_wrong_answer_and_no_question_make_a_session_of_high_effort() -> None:
    silent = made_record("tf", 0.5)
    assert silent["session"]["session_effort"] == "high"
    # Low: the first. High: the silent one. Medium: the last. 1 of 3.
    assert metrics(made_record("lf", 0.5), silent, made_record("mf", 1.0))["proactivity"] == 33.33
    assert metrics(silent)["effort"] == {"low": 0, "medium": 0, "high": 0}, "no question was asked"


def test_personalization_is_the_share_that_follows_among_sessions_with_a_question() -> None:
    sessions = [
        made_record("lf", preference="json"),  # asked as wished
        made_record("lLf", preference="json"),  # one of two questions not as wished
        made_record("tf", preference="json"),  # silent: shows nothing
        made_record("tf", preference="no_ask"),  # silent as wished: shows nothing either
        made_record("lf", preference="no_ask"),  # asked although no question was wished
        made_record("tlf", preference="only_begin"),  # asked, but too late
        made_record("tf", preference="answer_more"),  # silent although three questions were wished
    ]
    # With a question: 4 (json twice, no_ask, only_begin). Of these 1 follows.
    assert metrics(*sessions)["personalization"] == 25.0
    # The release counts those that break it without asking as well: answer_more alone. 1 of 5.
    assert metrics(*sessions, personalization="released")["personalization"] == 20.0


def test_personalization_of_silent_sessions_is_undefined_and_not_zero() -> None:
    assert metrics(made_record("tf", preference="json"))["personalization"] is None
    assert metrics(made_record("tf", preference="no_ask"), personalization="released")["personalization"] is None


def test_ask_ratio_and_questions_per_session() -> None:
    sessions = [
        made_record("lmf"),  # 2 questions
        made_record("tf"),
        made_record("hhtf", preference="json"),  # 2 questions
        made_record("tf", preference="no_ask"),
    ]
    found = metrics(*sessions)
    assert found["ask_ratio"] == 50.0  # 2 of 4
    assert found["ask_ratio_willing"] == 66.67  # 2 of the 3 whose users do not mind
    assert found["questions"] == 1.0  # 4 / 4
    assert found["effort"] == {"low": 0.25, "medium": 0.25, "high": 0.5}  # 1, 1 and 2 questions in 4 sessions


# --- what whole records tell -----------------------------------------------------------------------------------------


def test_question_position_is_where_in_the_session_questions_stand() -> None:
    # "tlf": 1/3. "ltmf": 0/4 and 2/4. Mean of the three: (1/3 + 0 + 1/2) / 3 = 0.27778.
    found = metrics(made_record("tlf"), made_record("ltmf"), made_record("tf"))
    assert found["question_position"] == 0.2778
    assert found["question_tenths"] == [1, 0, 0, 1, 0, 1, 0, 0, 0, 0]
    assert metrics(made_record("tf"))["question_position"] is None


def test_questions_on_the_border_of_a_tenth_belong_to_the_later_one() -> None:
    assert metrics(made_record("lllllllllf"))["question_tenths"] == [1] * 9 + [0]
    assert metrics(made_record("l" * 20))["question_tenths"] == [2] * 10


def test_turns_tokens_and_unreadable_turns() -> None:
    found = metrics(made_record("lf"), made_record("tuuf"))
    assert found["turns"] == 3.0  # (2 + 4) / 2
    assert found["policy_tokens"] == 30.0  # 10 a turn: (20 + 40) / 2
    assert found["completion_tokens"] == 40.0  # and 5 for each observation: (20 + 5 + 40 + 15) / 2
    assert found["unreadable_turns"] == 33.33  # 2 of 6 turns


def test_failed_sessions_are_left_out_and_counted_by_kind() -> None:
    whole = [made_record("lf"), made_record("tt", 0.0, task="t1")]
    lost = [
        made_record("l", None, task="t2", error_kind="timeout"),
        made_record("", None, task="t2", error_kind="container"),
        made_record("hh", None, task="t3", error_kind="timeout"),
        {**made_record("", None), "error_kind": None},
    ]
    found, alone = metrics(*whole, *lost), metrics(*whole)
    assert found["num_failed"] == 4 and found["failures"] == {"timeout": 2, "container": 1, "unknown": 1}
    assert found["stop_reasons"] == {"finished": 1, "max_turns": 1}
    assert {**found, "num_failed": 0, "failures": {}} == alone
    assert alone["num_sessions"] == alone["num_tasks"] == 2


def test_metrics_of_nothing_are_undefined() -> None:
    for records in ([], [made_record("", None)]):
        found = summarize_records(records, intervals=QUICK)
        assert found["num_sessions"] == found["num_tasks"] == 0 and found["num_failed"] == len(records)
        assert all(found[name] is None for name in METRICS if name in found)
        assert found["effort"] == {"low": None, "medium": None, "high": None}
        assert found["intervals"] == dict.fromkeys(METRICS)
    assert summarize_groups([]) == {}


def test_a_persons_sessions_count_like_all_others() -> None:
    assert metrics(made_record("lMf", mode="play")) == metrics(made_record("lMf"))


def test_records_and_trajectories_are_counted_by_the_same_rules() -> None:
    sessions = [
        made_session(turns, productivity, preference=preference, precise=precise)
        for turns in ("lf", "tLf", "tf", "mhf")
        for productivity in (1.0, 0.4, None)
        for preference in PREFERENCES
        for precise in (False, True)
    ]
    for variant in ("paper", "released"):
        of_trajectories = summarize(sessions, variant)
        of_records = metrics(*map(as_record, sessions), personalization=variant)
        del of_trajectories["metric_version"]
        assert of_trajectories == {name: of_records[name] for name in of_trajectories}


def test_unknown_variant_of_the_metric_is_refused() -> None:
    for make in (summarize_records, summarize_groups):
        with pytest.raises(RecipeError, match=r"personalization.*'mine'"):
            make([], personalization="mine")


# --- groups ----------------------------------------------------------------------------------------------------------


def test_in_groups_of_vague_prompts_each_preference_counts_alike() -> None:
    records = [
        made_record("lf", 1.0, task="t0", preference="json"),
        made_record("tf", 1.0, task="t1", preference="json"),
        made_record("tf", 1.0, task="t2", preference="json"),
        made_record("tf", 0.0, task="t2", preference="json", precise=True),
        made_record("Mf", 0.0, task="t0", preference="length"),
        made_record("l", None, task="t1", preference="length"),  # failed: length has one session, not two
    ]
    vague = summarize_groups(records, intervals=QUICK)["vague"]
    assert vague["productivity"] == 50.0  # json 100, length 0; not 3 of 4
    assert vague["proactivity"] == 50.0  # json 100 (silent and right, or low), length 0
    # A session of json weighs 1/3, that of length 1. With a question: 1/3 + 1. Of these follow 1/3: 1/4.
    assert vague["personalization"] == 25.0
    assert vague["ask_ratio"] == 66.67  # (1/3 + 1) / 2
    assert vague["effort"] == {"low": 0.1667, "medium": 0.5, "high": 0.0}  # (1/3 + 0) / 2 and (0 + 1) / 2
    assert (vague["num_sessions"], vague["num_failed"], vague["num_tasks"]) == (4, 1, 3)
    low, high = vague["intervals"]["productivity"]
    assert low <= 50 < high
    plain = metrics(*(record for record in records if not record["is_precise"]))
    assert plain["productivity"] == 75.0  # each session alike: 3 of 4
    equal = metrics(*(record for record in records if not record["is_precise"]), equal_preferences=True)
    assert {name: equal[name] for name in METRICS if name in equal} == {
        name: vague[name] for name in METRICS if name in vague
    }


def test_with_as_many_sessions_each_the_mean_over_preferences_is_the_plain_share() -> None:
    records = [
        made_record("lf" if number % 3 else "tf", number % 2, task=f"t{number}", preference=preference)
        for number in range(6)
        for preference in ("json", "length", "no_ask")
    ]
    found = summarize_groups(records, intervals=None)["vague"]
    del found["preferences"]
    assert found == metrics(*records)


def test_groups_and_their_users_are_summed_up_apart() -> None:
    records = [
        made_record("lf", 1.0, preference=preference, task=task, precise=precise)
        for preference in PREFERENCES
        for task in ("t0", "t1")
        for precise in (False, True)
    ]
    records[0] = made_record("tf", 0.0, preference="no_preference", task="t0")
    groups = summarize_groups(records, intervals=QUICK)
    assert list(groups) == ["vague", "vague_seen", "vague_unseen", "vague_penalty", "precise"]
    # One of 40, of 24, none of 16, none of 36 (no_preference has no penalty), none of 40.
    assert [group["productivity"] for group in groups.values()] == [97.5, 95.83, 100.0, 100.0, 100.0]
    assert list(groups["vague"]["preferences"]) == list(PREFERENCES)
    assert list(groups["vague_seen"]["preferences"]) == list(SEEN)
    assert list(groups["vague_unseen"]["preferences"]) == list(UNSEEN)
    users = groups["vague_seen"]["preferences"]
    assert users["no_preference"]["productivity"] == 50.0 and users["no_ask"]["productivity"] == 100.0
    assert groups["precise"]["preferences"]["no_preference"]["productivity"] == 100.0
    assert users["no_preference"] == summarize_records(records[0:4:2], intervals=QUICK)
    assert json.loads(json.dumps(groups)) == groups


def test_a_group_whose_sessions_all_failed_is_told_and_one_without_sessions_is_not() -> None:
    groups = summarize_groups([made_record("", None, precise=True)])
    assert list(groups) == ["precise"]
    assert groups["precise"]["productivity"] is None and groups["precise"]["num_failed"] == 1


# --- intervals -------------------------------------------------------------------------------------------------------


def some_records(num_tasks: int) -> list[dict[str, Any]]:
    words = ("lf", "tf", "mLf", "tlf")
    return [
        made_record(words[(number + place) % 4], float((number * place) % 3 > 0), task=f"t{number}", preference=user)
        for number in range(num_tasks)
        for place, user in enumerate(("json", "length", "no_ask"))
    ]


def test_every_metric_has_an_interval_around_it_and_the_same_one_each_time() -> None:
    found = summarize_records(some_records(40), intervals=QUICK)
    flat = {**found, **{f"effort/{name}": value for name, value in found["effort"].items()}}
    assert set(found["intervals"]) == set(METRICS)
    for name in METRICS:
        low, high = found["intervals"][name]
        assert low <= flat[name] <= high, name
    assert found == summarize_records(some_records(40), intervals=QUICK)
    assert found == summarize_records(some_records(40)[::-1], intervals=QUICK), "whatever the order of the sessions"
    assert found["intervals"] != summarize_records(some_records(40), intervals=Settings(0.95, 200, 1))["intervals"]


def test_a_single_task_has_no_interval_and_sessions_of_one_task_are_one_task() -> None:
    records = [{**record, "task_id": f"t/{record['preference']}"} for record in some_records(40)]
    found = summarize_records(records, intervals=QUICK)
    assert found["num_tasks"] == 1 and found["intervals"] == dict.fromkeys(METRICS)


def test_tasks_of_the_same_name_in_two_environments_are_two() -> None:
    assert metrics(made_record(task="t0"), made_record(task="t0", environment="func_loc"))["num_tasks"] == 2


def test_more_sessions_of_the_same_tasks_do_not_make_an_interval_narrower() -> None:
    """Sessions of a task that are all alike tell no more than one of them."""
    once = [made_record("tf", float(number % 2), task=f"t{number}") for number in range(40)]
    ten_times = [record for record in once for _ in range(10)]
    few, many = (summarize_records(records, intervals=QUICK)["intervals"] for records in (once, ten_times))
    assert few["productivity"] == many["productivity"]
    low, high = few["productivity"]
    # Forty coins: 1.96 * sqrt(0.5 * 0.5 / 40) = 15.5 points to each side.
    assert math.isclose(high - low, 2 * 15.5, rel_tol=0.15)


def test_where_all_sessions_agree_the_interval_still_has_a_width() -> None:
    records = [made_record("tf", 1.0, task=f"t{number}") for number in range(100)]
    found = summarize_records(records, intervals=QUICK)["intervals"]
    # Were 3.62 % of all tasks unlike these, a hundred without one of them would come in (1 - 0.0362)^100 = 2.5 %.
    assert found["productivity"] == [pytest.approx(100 * 0.025 ** (1 / 100), abs=0.01), 100.0] == [96.38, 100.0]
    assert found["ask_ratio"] == [0.0, 3.62]
    assert found["turns"] == [2.0, 2.0], "no bound is known for a number of turns"
