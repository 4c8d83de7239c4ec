"""What is promised about the user made of rules: verdicts from a question's text alone, and three prices of answers."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from ppp.baselines.town_phrases import CARELESS, FORMS, SOLUTION, SUBJECTS, form_for, render_question
from ppp.environments.town import DETAILS, town_task_rows
from ppp.preferences import PREFERENCES
from ppp.types import Answer, Effort, RecipeError, Task, ToolCall, Turn
from ppp.users.scripted import ALREADY_SAID, CRITERIA, DONT_KNOW, REFUSERS, ScriptedUser

ROW = next(row for row in town_task_rows("train", 100) if len(row["payload"]["missing"]) == 3)
LOOKED = Turn([1], [0.0], {"role": "assistant", "content": ""}, call=ToolCall("open_file", {"path": "x"}))
FAILED = replace(LOOKED, is_error=True)
ASKED = replace(LOOKED, call=ToolCall("ask_user", {"query": "?"}), answer=Answer("x", Effort.LOW, True))

# preference -> the forms in which a question about one thing follows it; other forms break it
FOLLOWED_BY: dict[str, set[str]] = {
    "concise_question": {"short", "choice", "simple", "italian", "capitals", "commas", "json"},
    "detail_question": {"detail", "languages"},
    "do_selection": {"choice"},
    "amateur": set(FORMS) - {"jargon", "snippet"},
    "one_question": set(FORMS) - {"joke", "languages"},
    "first_try": {"try"},
    "lang_ita": {"italian"},
    "lang_multi": {"languages"},
    "capital": {"capitals"},
    "commas": set(FORMS) - {"plain", "detail", "simple", "jargon", "blunt", "try"},
    "json": {"json"},
    "joke": {"joke"},
    "snippet": {"snippet"},
    "length": {"joke", "sentences"},
}


def make_task(preference: str = "no_preference", *, precise: bool = False, **payload: Any) -> Task:
    prompt = ROW["precise_prompt" if precise else "vague_prompt"]
    return Task("t", "town", prompt, ROW["precise_prompt"], preference, {**ROW["payload"], **payload})


def ask(user: ScriptedUser, question: str, turns: Sequence[Turn] = ()) -> Answer:
    return asyncio.run(user.answer(question, turns))


def put(form: str, *subjects: str) -> str:
    return render_question(form, subjects, random.Random(0))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preference", PREFERENCES)
def test_every_form_before_every_preference(preference: str, form: str) -> None:
    user = ScriptedUser(make_task(preference))
    expected = form in FOLLOWED_BY.get(preference, FORMS)
    for subject in SUBJECTS:
        assert user.follows(put(form, subject), [LOOKED]) is expected, put(form, subject)


@pytest.mark.parametrize("preference", PREFERENCES)
def test_every_preference_accepts_the_form_made_for_it(preference: str) -> None:
    # Where no form is asked for, the careless ones do. Asking for several things is one question only by its letters.
    most = 1 if preference == "one_question" else 3
    for form in [form_for(preference)] if form_for(preference) else CARELESS:
        for number in range(1, most + 1):
            for subjects in itertools.permutations(DETAILS, number):
                answer = ask(ScriptedUser(make_task(preference)), put(str(form), *subjects), [LOOKED])
                assert answer.follows_preference and answer.effort is Effort.LOW, put(str(form), *subjects)


@pytest.mark.parametrize("preference", PREFERENCES)
def test_verdict_is_of_the_text_alone(preference: str) -> None:
    questions = [put(form, subject) for form in FORMS for subject in ("module", "color", SOLUTION)]
    first, other = ScriptedUser(make_task(preference)), ScriptedUser(make_task(preference, precise=True, missing=[]))
    verdicts = [ask(first, question, [LOOKED]).follows_preference for question in questions]
    assert verdicts == [ask(first, question, [LOOKED]).follows_preference for question in questions], "asked again"
    assert verdicts == [ask(other, question, [LOOKED]).follows_preference for question in questions], "other task"


@pytest.mark.parametrize(
    ("preference", "question", "turns", "expected"),
    [
        ("detail_question", " ".join(["word"] * 25), [], True),
        ("detail_question", " ".join(["word"] * 24), [], False),
        ("amateur", "What were you doing when it broke?", [], True),
        ("amateur", "Is there a race condition?", [], False),
        ("amateur", "Is it a RACE CONDITION?", [], False),
        ("amateur", "Is it in parser.py?", [], False),
        ("amateur", "Is `x` set?", [], False),
        ("amateur", "Is max_size set?", [], False),
        ("amateur", "Does run() fail?", [], False),
        ("amateur", "Is your trace of salt fine?", [], True),
        ("first_try", "I am stuck. Which module?", [LOOKED], True),
        ("first_try", "I CAN'T find it. Which module?", [LOOKED], True),
        ("first_try", "I am stuck. Which module?", [], False),
        ("first_try", "I am stuck. Which module?", [FAILED], False),
        ("first_try", "I am stuck. Which module?", [ASKED], False),
        ("first_try", "Which module?", [LOOKED], False),
        ("joke", "Why did it crash? Because it was tired! Which module?", [], True),
        ("joke", "Ha ha! Which module?", [], False),
        ("joke", "Why does it fail? Because of the cache?", [], False),
    ],
)
def test_criteria_where_no_rule_decides(preference: str, question: str, turns: list[Turn], expected: bool) -> None:
    assert ScriptedUser(make_task(preference)).follows(question, turns) is expected


def test_criteria_cover_just_what_only_a_judge_can_tell() -> None:
    undecided = {name for name, entry in PREFERENCES.items() if entry.rule("x") is None and entry.criterion}
    assert set(CRITERIA) == undecided
    assert all(ScriptedUser(make_task(name)).follows("", []) for name in set(PREFERENCES) - set(FOLLOWED_BY))


@pytest.mark.parametrize("preference", PREFERENCES)
def test_only_refusers_keep_silent_when_asked_in_another_way(preference: str) -> None:
    for form in FORMS:
        user = ScriptedUser(make_task(preference))
        answer = ask(user, put(form, "module"), [LOOKED])
        refused = preference in REFUSERS and not answer.follows_preference
        assert answer.effort is (Effort.MEDIUM if refused else Effort.LOW)
        assert (answer.text == DONT_KNOW) is refused
        if refused:
            assert "parser" not in ask(user, put(form, SOLUTION)).text, "nor does this user give the solution away"
            assert ask(user, put(str(form_for(preference)), "module")).effort is Effort.LOW, "nothing was told before"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_missing_details_are_told_at_low_effort_in_any_form_and_language(form: str, number: int) -> None:
    details = ROW["payload"]["details"]
    for subjects in itertools.permutations(DETAILS, number):
        answer = ask(ScriptedUser(make_task()), put(form, *subjects))
        assert answer.effort is Effort.LOW
        for detail in DETAILS:
            assert (f"the {detail} is {details[detail]}" in answer.text.lower()) is (detail in subjects)


def test_three_missing_details_serve_a_user_who_wants_three_questions() -> None:
    user = ScriptedUser(make_task("answer_more"))
    assert [ask(user, put("plain", detail)).effort for detail in DETAILS] == [Effort.LOW] * 3


def test_what_was_said_or_is_no_business_of_the_user_is_medium_effort() -> None:
    user = ScriptedUser(make_task())
    ask(user, put("plain", "module"))
    assert ask(user, put("plain", "module")) == Answer(ALREADY_SAID, Effort.MEDIUM, True)
    assert ask(user, put("plain", "version")) == Answer(DONT_KNOW, Effort.MEDIUM, True)
    assert ask(user, "") == ask(user, "How are you?") == Answer(DONT_KNOW, Effort.MEDIUM, True)
    rest = ask(user, put("plain", *DETAILS))
    assert rest.effort is Effort.LOW and "module" not in rest.text.lower(), "what is new counts, and it alone is told"


@pytest.mark.parametrize("task", [make_task(precise=True), make_task(missing=["object"])], ids=["precise", "in issue"])
def test_what_the_issue_states_already_is_medium_effort(task: Task) -> None:
    answer = ask(ScriptedUser(task), put("plain", "module", "operation"))
    assert answer == Answer(ALREADY_SAID, Effort.MEDIUM, True)


@pytest.mark.parametrize("form", FORMS)
def test_asking_for_the_solution_costs_most_and_tells_every_detail_but_not_the_function(form: str) -> None:
    for precise, subjects in ((False, (SOLUTION,)), (True, (SOLUTION,)), (False, ("object", SOLUTION))):
        answer = ask(ScriptedUser(make_task(precise=precise)), put(form, *subjects))
        details = ROW["payload"]["details"]
        assert answer.effort is Effort.HIGH
        assert all(f"the {detail} is {value}" in answer.text.lower() for detail, value in details.items())
        assert not any(function in answer.text for function in ROW["payload"]["gold"])


def test_what_came_with_the_solution_was_told() -> None:
    user = ScriptedUser(make_task())
    ask(user, put("plain", SOLUTION))
    for detail in DETAILS:
        assert ask(user, put("plain", detail)) == Answer(ALREADY_SAID, Effort.MEDIUM, True)


FUNC_LOC = Task(
    "f",
    "func_loc",
    "Something is slow.",
    "Something is slow. The template loader opens each template twice! It started with version 3.\nWindows only.",
    "no_preference",
    {"gold_functions": ["src/loader.py:Loader.load"]},
)


def test_task_without_details_is_answered_from_its_precise_prompt() -> None:
    user = ScriptedUser(FUNC_LOC)
    answer = ask(user, "Is it the template loader?")
    assert answer == Answer("The template loader opens each template twice!", Effort.LOW, True)
    assert ask(user, "Is it the template loader?") == Answer(DONT_KNOW, Effort.MEDIUM, True), "was said"
    assert ask(user, "Since which version?").text == "It started with version 3."
    assert ask(user, "Is something slow?").effort is Effort.MEDIUM, "the issue says so itself"
    assert ask(user, "What do you eat?").effort is Effort.MEDIUM


def test_task_without_details_gives_file_but_not_function_to_who_asks_for_the_solution() -> None:
    answer = ask(ScriptedUser(FUNC_LOC), "Which function must be changed?")
    assert answer.effort is Effort.HIGH and "src/loader.py" in answer.text and "Loader.load" not in answer.text
    precise = replace(FUNC_LOC, prompt=FUNC_LOC.precise_prompt)
    assert ask(ScriptedUser(precise), "Is it the template loader?").effort is Effort.MEDIUM, "all is said"


@pytest.mark.parametrize("text", ["\ud800\x00 ?", "(" * 500, "{", "?" * 2000, "why " * 500, "a_" * 500])
@pytest.mark.parametrize("preference", PREFERENCES)
def test_hostile_question_gets_an_answer(preference: str, text: str) -> None:
    assert isinstance(ask(ScriptedUser(make_task(preference)), text), Answer)


def test_option_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"user\.mood: unknown"):
        ScriptedUser.check_options({"mood": "good"})
