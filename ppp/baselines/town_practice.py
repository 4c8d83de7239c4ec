"""Reading exercises for the town: how a policy with random weights learns to copy a name out of a listing.

Demonstrations alone never teach it: one look-up in fifty tokens is too thin a signal for a model that starts from nothing.
So the warm start first practises looking up, many times in one sequence, and goes from the barest form to the form of a
session. Exercises are made of generated listings; no task of either split occurs in them.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from ppp.environments.town import (
    MODULES,
    OPERATIONS,
    SYMPTOMS,
    draw_functions,
    file_path,
    render_issue,
    render_listing,
)

Segment = tuple[str, bool]  # text, and whether the loss is on it

ANSWER = "<|end|><|assistant|><function=finish>"
END_OF_ANSWER = " </function><|end|>"


def repeat_pairs(rng: random.Random) -> list[Segment]:
    """The listing's bare pairs, and twelve of them again: the second word of a pair follows from its first."""
    functions = draw_functions(rng)
    segments: list[Segment] = [("".join(f" {obj} {name}" for obj, name in functions), False)]
    for _ in range(12):
        obj, name = rng.choice(functions)
        segments += [(f" {obj}", False), (f" {name}", True)]
    return segments


def answer_issues(rng: random.Random) -> list[Segment]:
    """A listing and six issues about it, each answered."""
    functions = draw_functions(rng)
    segments: list[Segment] = [(f"<|tool|>{render_listing(functions)}<|end|>", False)]
    for _ in range(6):
        obj, name = rng.choice(functions)
        issue = render_issue(rng.choice(MODULES), rng.choice(OPERATIONS), obj, rng.choice(SYMPTOMS))
        segments += [(f"<|user|>{issue}{ANSWER}", False), (f" {name}", True), (END_OF_ANSWER, False)]
    return segments


def play_sessions(rng: random.Random) -> list[Segment]:
    """Three sessions in the order of the real ones: issue, open, listing, answer."""
    segments: list[Segment] = []
    for _ in range(3):
        functions = draw_functions(rng)
        obj, name = rng.choice(functions)
        module, operation = rng.choice(MODULES), rng.choice(OPERATIONS)
        issue = render_issue(module, operation, obj, rng.choice(SYMPTOMS))
        call = f"<function=open_file> {file_path(module, operation)} </function>"
        before = f"<|user|>{issue}<|end|><|assistant|>{call}<|end|><|tool|>{render_listing(functions)}{ANSWER}"
        segments += [(before, False), (f" {name}", True), (END_OF_ANSWER, False)]
    return segments


# In the order in which they are practised; the last one also accompanies the demonstrations.
EXERCISES: tuple[Callable[[random.Random], list[Segment]], ...] = (repeat_pairs, answer_issues, play_sessions)
