"""The twenty users of UserVille in one table: what the agent is told, a judge is asked, the rule, penalty and split.

How a rule judges a question stands in `questions/`; the judges of the rest, a scripted or a model user, in `users/`.
What following a preference is worth stands in `rewards.py`. A new preference is one entry here.
Source: PPP section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import overload

from ppp.questions import rules
from ppp.types import Preference, RecipeError, Trajectory

NUM_ANSWER_MORE = 3  # questions that the user of `answer_more` wants at least


def undecided(question: str) -> bool | None:
    """Rule of the preferences that one question alone cannot follow or break by its letters."""
    return None


def no_penalty(trajectory: Trajectory) -> float:
    return 0.0


def per_question(trajectory: Trajectory, weight: float) -> float:
    """`weight` for each question that was not put the way this user likes."""
    return 0.0 - weight * trajectory.num_off_preference


def too_few_questions(trajectory: Trajectory) -> float:
    return 0.0 - max(0, NUM_ANSWER_MORE - len(trajectory.asked))


def asked_late(trajectory: Trajectory) -> float:
    """1 if a question came after the agent's first turn, whatever that turn did."""
    return -1.0 if any(turn.answer is not None for turn in trajectory.turns[1:]) else 0.0


def too_many_questions(trajectory: Trajectory, limit: int) -> float:
    """1 if the user was asked more than `limit` times."""
    return -1.0 if len(trajectory.asked) > limit else 0.0


SLIGHT: Callable[[Trajectory], float] = partial(per_question, weight=0.1)
SEVERE: Callable[[Trajectory], float] = partial(per_question, weight=0.5)

_TABLE = (
    Preference(
        name="no_preference",
        description="This user has no particular wishes about how or when questions are asked.",
        criterion="",
        rule=undecided,
        penalty=no_penalty,
        split="seen",
        needs_question=False,
    ),
    Preference(
        name="concise_question",
        description=(
            "This user likes very short questions that come to the point: one short sentence of at most twelve "
            "words, without greeting, background or explanation."
        ),
        criterion="Is the question a single short sentence that comes straight to the point?",
        rule=rules.is_concise,
        penalty=SLIGHT,
        split="seen",
    ),
    Preference(
        name="detail_question",
        description=(
            "This user likes detailed questions: each one should say what is already known, why the information "
            "is needed and what exactly is being asked."
        ),
        criterion="Is the question detailed and set in context, so that it says what is known, what is asked and why?",
        rule=undecided,
        penalty=SLIGHT,
        split="seen",
    ),
    Preference(
        name="answer_more",
        description=(
            "This user enjoys being consulted and wants to be asked at least three times, each time in a "
            "message of its own."
        ),
        criterion="",
        rule=undecided,
        penalty=too_few_questions,
        split="seen",
    ),
    Preference(
        name="only_begin",
        description=(
            "This user answers at the very beginning only: whatever has to be asked must be asked in the first "
            "turn, before any other action, and never afterwards."
        ),
        criterion="",
        rule=undecided,
        penalty=asked_late,
        split="seen",
    ),
    Preference(
        name="no_ask",
        description=(
            "This user does not want to be asked anything at all: work out the task without asking a single question."
        ),
        criterion="",
        rule=undecided,
        penalty=partial(too_many_questions, limit=0),
        split="seen",
        needs_question=False,
    ),
    Preference(
        name="do_selection",
        description=(
            "This user answers multiple-choice questions only: each question must offer labelled options to "
            'choose from, such as "A) ... B) ... C) ...". To any other question this user says "I don\'t know".'
        ),
        criterion="Does the question offer labelled options (A, B, C or the like) to choose from?",
        rule=rules.offers_selection,
        penalty=SEVERE,
        split="seen",
    ),
    Preference(
        name="professional",
        description=(
            "This user is an expert in the field who understands technical terms and can answer technical questions."
        ),
        criterion="",
        rule=undecided,
        penalty=no_penalty,
        split="seen",
        needs_question=False,
    ),
    Preference(
        name="amateur",
        description=(
            "This user is a layperson who can answer simple, general questions in everyday words only. To a "
            'technical question this user says "I don\'t know".'
        ),
        criterion="Can a layperson understand and answer the question with common sense, without technical knowledge?",
        rule=undecided,
        penalty=SLIGHT,
        split="seen",
    ),
    Preference(
        name="ask_many",
        description=(
            "This user wants to be disturbed once only: everything that has to be asked must stand together in "
            "one single message."
        ),
        criterion="",
        rule=undecided,
        penalty=partial(too_many_questions, limit=1),
        split="seen",
    ),
    Preference(
        name="one_question",
        description="This user wants one question at a time: each message must ask exactly one thing.",
        criterion="Does the message ask exactly one thing?",
        rule=rules.is_one_question,
        penalty=SEVERE,
        split="seen",
    ),
    Preference(
        name="first_try",
        description=(
            "This user wants the work to be tried first: ask only when really blocked, and say then what was "
            "tried and what stands in the way."
        ),
        criterion=(
            "Does the question show what was tried before, and does it name a real blocker that the agent could "
            "not have overcome alone?"
        ),
        rule=undecided,
        penalty=SLIGHT,
        split="seen",
    ),
    Preference(
        name="lang_ita",
        description="This user speaks Italian only: every question must be written in Italian.",
        criterion="Is the question written in Italian only?",
        rule=rules.is_italian,
        penalty=SEVERE,
        split="unseen",
    ),
    Preference(
        name="lang_multi",
        description=(
            "This user loves languages: every question must use at least five different languages, with at "
            "least one full sentence in each; greetings do not count."
        ),
        criterion="Does the question use at least five languages, beyond mere greetings?",
        rule=rules.is_multilingual,
        penalty=SEVERE,
        split="unseen",
    ),
    Preference(
        name="capital",
        description=(
            "This user reads English in capital letters only: no lower-case letter may appear anywhere in a question."
        ),
        criterion="Is the question in English and entirely in capital letters?",
        rule=rules.is_capital,
        penalty=SEVERE,
        split="unseen",
    ),
    Preference(
        name="commas",
        description="This user cannot stand commas: no comma may appear anywhere in a question.",
        criterion="Is the question free of commas?",
        rule=rules.has_no_comma,
        penalty=SEVERE,
        split="unseen",
    ),
    Preference(
        name="json",
        description=(
            "This user reads JSON only: the whole question must be one valid JSON object or array, with no text "
            "and no code fence around it."
        ),
        criterion="Is the whole question one valid JSON object or array with nothing around it?",
        rule=rules.is_json,
        penalty=SEVERE,
        split="unseen",
    ),
    Preference(
        name="joke",
        description="This user wants to be entertained: every question must come with a humorous joke.",
        criterion="Does the question come with a humorous joke?",
        rule=undecided,
        penalty=SEVERE,
        split="unseen",
    ),
    Preference(
        name="snippet",
        description=(
            "This user wants to see what a question is about: every question must quote at least three lines of "
            "code or of a document, as a block, and name the file or the URL that they come from."
        ),
        criterion=(
            "Does the question quote at least three lines of code or of a document that bear on it, and name "
            "their file or URL?"
        ),
        rule=rules.has_snippet,
        penalty=SEVERE,
        split="unseen",
    ),
    Preference(
        name="length",
        description="This user wants every question to be exactly three sentences long.",
        criterion="Does the question consist of exactly three sentences?",
        rule=rules.is_three_sentences,
        penalty=SEVERE,
        split="unseen",
    ),
)

PREFERENCES: dict[str, Preference] = {preference.name: preference for preference in _TABLE}


class Names(Sequence[str]):
    """The names of some preferences in the order of the table, as it stands when it is looked at: it may get entries.

    Args:
        belongs: which preferences.
    """

    def __init__(self, belongs: Callable[[Preference], bool]) -> None:
        self._belongs = belongs

    def _names(self) -> tuple[str, ...]:
        return tuple(name for name, preference in PREFERENCES.items() if self._belongs(preference))

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self._names()[index]

    def __len__(self) -> int:
        return len(self._names())

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in PREFERENCES and self._belongs(PREFERENCES[name])


SEEN = Names(lambda preference: preference.split == "seen")
UNSEEN = Names(lambda preference: preference.split == "unseen")
PENALIZED = Names(lambda preference: preference.penalty is not no_penalty)


def check_preference(name: str) -> Preference:
    """The preference of this name.

    Raises:
        RecipeError: there is none; names those that there are.
    """
    if name not in PREFERENCES:
        raise RecipeError(f"preference: {name!r} is unknown; allowed: {', '.join(PREFERENCES)}")
    return PREFERENCES[name]


def follows_preference(trajectory: Trajectory) -> bool:
    """Whether the session followed its user's preference throughout (PPP section 3.3).

    A preference about the form of questions takes at least one question to be followed; silence shows nothing.
    """
    preference = check_preference(trajectory.task.preference)
    if preference.needs_question and not trajectory.asked:
        return False
    return preference.penalty(trajectory) == 0
