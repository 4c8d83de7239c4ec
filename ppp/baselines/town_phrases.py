"""How the agents of the town put things: the forms of a question, and the words with which a turn states its plan.

A form is a way of asking for some details, written so that the preference it is named for accepts it; `tests` hold
every form against every rule. What a user makes of a question is decided elsewhere, on the text alone (`preferences.py`
and `users/scripted.py`): nothing there reads these tables.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from ppp.environments.town import DETAILS, MODULES, OBJECTS, OPERATIONS

IRRELEVANT = ("version", "platform", "color")  # things one can ask that the users of the town know nothing of
SOLUTION = "function"  # asking for it is asking for the answer
SUBJECTS = (*DETAILS, *IRRELEVANT, SOLUTION)

ITALIAN = {
    "module": "modulo",
    "operation": "operazione",
    "object": "oggetto",
    "version": "versione",
    "platform": "piattaforma",
    "color": "colore",
    "function": "funzione",
}

# Turns open with a plan: whether to heed the user's wish, and if so, the wish in one word. The first words are the same
# for every user, which is what lets the decision to heed a wish carry over to wishes that RL never met.
HEED = "Their wish:"
IGNORE = "My way."
MISSING = "Missing:"
NOTHING = "nothing"
WISHES = {
    "no_preference": "none",
    "concise_question": "short",
    "detail_question": "detail",
    "answer_more": "three",
    "only_begin": "first",
    "no_ask": "never",
    "do_selection": "choice",
    "professional": "expert",
    "amateur": "simple",
    "ask_many": "together",
    "one_question": "single",
    "first_try": "try",
    "lang_ita": "italian",
    "lang_multi": "languages",
    "capital": "capitals",
    "commas": "commas",
    "json": "json",
    "joke": "joke",
    "snippet": "snippet",
    "length": "sentences",
}

# `{which}` stands for "which module and which operation", `{Which}` for the same with a capital, `{quale}` for Italian.
FORMS = {
    "plain": "Hello there, thank you for the report. Could you please tell me {which} is affected?",
    "short": "{Which}?",
    "detail": (
        "I have read your report with care, and as the same failure could come from several places in this code base,"
        " I need some more context. Could you explain {which} is affected in your setup?"
    ),
    "choice": "{Which} is it? A) {option_a} B) {option_b} C) another one",
    "simple": "In simple words, {which} is affected?",
    "jargon": "Given the stack trace and the regression in the last release, I ask you {which} has the race condition?",
    "blunt": "There is not enough in here for me to go on with, so tell me {which} is affected.",
    "try": "I opened the file first, but I am stuck. {Which} is affected?",
    "italian": "{Quale} è interessato?",
    "languages": (
        "{Which} is affected? Me lo può dire con precisione? ¿Me lo puede decir con más detalle?"
        " Pouvez-vous me le dire avec précision ? Können Sie mir das bitte genauer sagen?"
    ),
    "capitals": "{WHICH} IS AFFECTED?",
    "commas": "Please tell me {which} is affected.",
    "json": '{{"question": "{Which} is affected?"}}',
    "joke": "Why do programmers prefer the dark? Because light attracts bugs! {Which} is affected?",
    "snippet": "See main.py:\n```\nwith lock:\n    data = read()\n    run(data)\n```\n{Which} is affected?",
    "sentences": "I looked at the code. I need your help. {Which} is affected?",
}
CARELESS = ("plain", "jargon", "blunt")  # how an agent asks that does not mind the user's wish


def values_of(subject: str) -> Sequence[str]:
    """What can be offered as an option for a subject."""
    return {"module": MODULES, "operation": OPERATIONS, "object": OBJECTS}.get(subject, ("old", "new"))


def render_question(form: str, subjects: Sequence[str], rng: random.Random) -> str:
    """Ask for `subjects` in a form of the table. `rng` draws the options that the form `choice` offers."""
    which = " and ".join(f"which {subject}" for subject in subjects)
    quale = " e ".join(f"quale {ITALIAN[subject]}" for subject in subjects)
    option_a, option_b = rng.sample(values_of(subjects[0]), 2)
    return FORMS[form].format(
        which=which,
        Which=which[0].upper() + which[1:],
        WHICH=which.upper(),
        Quale=quale[0].upper() + quale[1:],
        option_a=option_a,
        option_b=option_b,
    )


def form_for(preference: str) -> str | None:
    """The form that a preference asks for; None where it asks for no form."""
    wish = WISHES[preference]
    return wish if wish in FORMS else None


def render_plan(preference: str, heed: bool, missing: Sequence[str]) -> str:
    """What the first turn says: whose way to ask, and which details the issue leaves out."""
    wish = f"{HEED} {WISHES[preference]}." if heed else IGNORE
    return f"{wish} {MISSING} {' and '.join(missing) or NOTHING}."
