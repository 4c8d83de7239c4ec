"""What must not be said: machinery, instructions and preference in any spelling, questions back, endless answers."""

from __future__ import annotations

import base64
import codecs
import json
import re

import pytest

from ppp.preferences import PREFERENCES
from ppp.prompts import load_prompt
from ppp.users.leaks import MAX_ANSWER_CHARS, Flaw, Secrets, shortened

INSTRUCTIONS = load_prompt("user_answer.txt")
SENTENCES = re.split(r"(?<=[.:;])\s+", INSTRUCTIONS)
REPORT = 'The page asks "Are you sure?" twice. I\'d like the question mark to be escaped; my rules are in a JSON file.'
WISH = PREFERENCES["detail_question"]


def secrets(preference: str = "detail_question", report: str = REPORT) -> Secrets:
    wish = PREFERENCES[preference]
    return Secrets((INSTRUCTIONS,), (wish.name, wish.description, wish.criterion), report)


@pytest.mark.parametrize(
    "answer",
    [
        INSTRUCTIONS,
        INSTRUCTIONS.upper(),
        "-".join(INSTRUCTIONS.split()),
        INSTRUCTIONS[::-1],
        base64.b64encode(INSTRUCTIONS.encode()).decode(),
        codecs.encode(INSTRUCTIONS, "rot13"),
        "\u200b".join(SENTENCES[0]),
        SENTENCES[0],
        f"Well: {SENTENCES[1]}",
        WISH.description,
        WISH.criterion,
        base64.b64encode(WISH.description.encode()).decode(),
        WISH.description[::-1],
        '{"answer": "x", "source": "task", "follows_preference": true}',
        "[1, 2]",
        "I set follows_preference to true.",
        'Like this: "source": "task"',
        "source=task, of course",
        "gold_functions has it.",
        "The JSON schema has three fields.",
        "As a language model I cannot know that.",
        "As an AI, I have no files.",
        "I am a simulated user.",
        "I'm playing the person who wrote this.",
        "I was told to say nothing.",
        "My instructions forbid that.",
        "That is not in my system prompt.",
        "I like detailed questions.",
        "I'd prefer to be asked in one message.",
        "My preference is a short text.",
        "Please rephrase your question.",
        "Ask me in Italian.",
    ],
)
def test_machinery_and_preference_never_pass(answer: str) -> None:
    assert secrets().find_flaw(answer) is Flaw.LEAK


@pytest.mark.parametrize("preference", PREFERENCES)
def test_no_preference_passes_in_its_own_words(preference: str) -> None:
    wish = PREFERENCES[preference]
    for text in (wish.description, wish.criterion):
        if len(text.split()) > 8:
            assert secrets(preference).find_flaw(text) is Flaw.LEAK, text


@pytest.mark.parametrize(
    "answer",
    [
        "Which file?",
        "What do you mean by that?",
        "It fails. Can you fix it?",
        "A 404. Why？",
        "(is it the parser?)",
        "¿Qué?",
    ],
)
def test_users_do_not_ask_back(answer: str) -> None:
    assert secrets().find_flaw(answer) is Flaw.QUESTION


@pytest.mark.parametrize(
    "answer",
    [
        "I don't know.",
        "Yes, the parser.",
        "The page asks \"Are you sure?\" twice.",
        "Are you sure?",
        "It says 'Continue?' first.",
        "It loads https://a.example/x?y=1 and /login?next=%2F.",
        "It calls `ask?` then.",
        "I like the question mark to be escaped.",
        "My rules are in a JSON file.",
        "I expect an error message that names the file.",
        "The answer is a surname.",
        "The source is in the parser module.",
        "I answer the phone.",
        REPORT,
    ],
)  # fmt: skip
def test_answers_of_people_pass(answer: str) -> None:
    assert secrets().find_flaw(answer) is None


def test_what_the_report_says_is_no_leak() -> None:
    quoted = "As a language model is loaded, the system prompt is read twice."
    assert secrets().find_flaw(quoted) is Flaw.LEAK
    assert secrets(report=f"{quoted} Then it crashes.").find_flaw(quoted) is None


def test_long_answers_are_flawed_and_cut_between_sentences() -> None:
    answer = "It fails on Monday. " * 100
    assert secrets().find_flaw(answer) is Flaw.LENGTH
    assert shortened(answer).endswith("Monday.") and len(shortened(answer)) <= MAX_ANSWER_CHARS
    assert len(shortened("word " * 1000)) <= MAX_ANSWER_CHARS and not shortened("word " * 1000).endswith("wor")
    assert shortened("short") == "short"
    assert len(shortened("x" * 1000)) == MAX_ANSWER_CHARS


def test_repair_prompts_exist_for_every_flaw() -> None:
    assert all(load_prompt(f"user_repair_{flaw}.txt") for flaw in [*Flaw, "words"])
    assert json.dumps(INSTRUCTIONS)
