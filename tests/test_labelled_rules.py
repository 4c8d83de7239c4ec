"""The questions that ship with the package: whole, balanced, and what the rules get right of them."""

from __future__ import annotations

import pytest

from ppp.labelled import ASKED, COUNTED, LabelledQuestion, labelled_questions
from ppp.preferences import PREFERENCES, follows_preference
from ppp.types import Answer, Effort, Task, Trajectory, Turn

MIN_PRECISION_AND_RECALL = {
    **dict.fromkeys(("capital", "commas", "json", "length", "one_question", "do_selection"), 0.98),
    **dict.fromkeys(("lang_ita", "lang_multi", "concise_question", "snippet"), 0.95),
}
JUDGED = ("detail_question", "amateur", "first_try", "joke", "snippet")
MIN_OF_A_RULE = 30
MIN_OF_A_JUDGE = 14
MIN_OF_A_COUNT = 4


def rows_of(preference: str, decided_by: str) -> list[LabelledQuestion]:
    return [row for row in labelled_questions() if (row.preference, row.decided_by) == (preference, decided_by)]


@pytest.mark.parametrize(("preference", "least"), MIN_PRECISION_AND_RECALL.items())
def test_rule_agrees_with_the_labels(preference: str, least: float) -> None:
    rows = rows_of(preference, "rule")
    verdicts = {row.id: PREFERENCES[preference].rule(row.question) for row in rows}
    true_positives = sum(verdicts[row.id] is True and row.follows for row in rows)
    precision = true_positives / sum(verdict is True for verdict in verdicts.values())
    recall = true_positives / sum(row.follows for row in rows)
    wrong = [row for row in rows if verdicts[row.id] is not row.follows]
    listed = "\n".join(f"{row.id}: labelled {row.follows} ({row.note}): {row.question!r}" for row in wrong)
    assert min(precision, recall) >= least, f"precision {precision:.3f}, recall {recall:.3f}; wrong:\n{listed}"


@pytest.mark.parametrize("preference", MIN_PRECISION_AND_RECALL)
def test_rules_meet_enough_questions_of_both_kinds_half_of_them_hard(preference: str) -> None:
    rows = rows_of(preference, "rule")
    assert len(rows) >= MIN_OF_A_RULE
    assert sum(row.hard for row in rows) >= len(rows) / 2
    assert 0.35 <= sum(row.follows for row in rows) / len(rows) <= 0.65
    assert all(any(row.hard and row.follows is follows for row in rows) for follows in (True, False))


@pytest.mark.parametrize("preference", [name for name in JUDGED if name != "snippet"])
def test_judges_meet_enough_questions_of_both_kinds(preference: str) -> None:
    rows = rows_of(preference, "judge")
    assert len(rows) >= MIN_OF_A_JUDGE
    assert 0.35 <= sum(row.follows for row in rows) / len(rows) <= 0.65
    assert sum(row.hard for row in rows) >= 5
    assert all(PREFERENCES[preference].rule(row.question) is None for row in rows)


def test_excerpts_that_wait_for_a_judge_have_passed_the_rule() -> None:
    rows = rows_of("snippet", "judge")
    assert {row.follows for row in rows} == {True, False}
    assert [row.id for row in rows if not PREFERENCES["snippet"].rule(row.question)] == []


def played(row: LabelledQuestion) -> Trajectory:
    """The session that `context` describes, ended right after the labelled question."""
    answer = Answer("I don't know.", Effort.MEDIUM, follows_preference=True)
    last = Turn([], [], {"role": "assistant", "content": ""}, question=row.question, answer=answer)
    return Trajectory(Task("t", "town", "vague", "precise", row.preference, {}), turns=[*row.earlier_turns(), last])


@pytest.mark.parametrize("preference", COUNTED)
def test_counting_agrees_with_the_labels(preference: str) -> None:
    rows = rows_of(preference, "rule")
    assert len(rows) >= MIN_OF_A_COUNT
    assert [row.id for row in rows if follows_preference(played(row)) is not row.follows] == []


def test_ids_and_questions_are_unique() -> None:
    rows = labelled_questions()
    assert len({row.id for row in rows}) == len(rows)
    assert len({(row.preference, row.question, row.context) for row in rows}) == len(rows)


def test_all_users_are_asked_and_every_row_is_complete() -> None:
    rows = labelled_questions()
    assert {row.preference for row in rows} == set(PREFERENCES)
    for row in rows:
        assert row.question.strip() and row.note.strip(), row.id
        assert row.id.startswith(f"{row.preference}-"), row.id
        assert row.decided_by == ("judge" if row.preference in JUDGED else "rule") or row.preference == "snippet", (
            row.id
        )


def test_context_becomes_the_turns_before_the_question() -> None:
    row = next(row for row in labelled_questions() if any(entry.startswith(ASKED) for entry in row.context))
    turns = row.earlier_turns()
    assert len(turns) == len(row.context)
    for entry, turn in zip(row.context, turns, strict=True):
        assert (turn.answer is not None) is entry.startswith(ASKED)
        assert turn.question == (entry.removeprefix(ASKED) if entry.startswith(ASKED) else None)
