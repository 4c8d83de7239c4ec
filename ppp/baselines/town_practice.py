"""Reading exercises for the town: how a policy with random weights learns to copy a name out of a listing.

Demonstrations alone never teach it: one look-up in fifty tokens is too thin a signal for a model that starts from
nothing. So the warm start practises looking up first, many times in one sequence, from the barest form to that of a
session. An agent of the town says which object it looks for before it answers: with that word in front of it the
look-up is one step, without it two, which small models often fail to find. Listings are generated; no task of either
split occurs in them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

from ppp.environments.town import (
    MODULES,
    OPERATIONS,
    SYMPTOMS,
    draw_functions,
    file_path,
    is_held_out,
    render_issue,
    render_listing,
)

Segment = tuple[str, bool]  # text, and whether the loss is on it

REPEATED_SHARE = 0.3  # rows of the first exercise among those of a later one; without them its skill is overwritten


def repeat_pairs(rng: random.Random) -> list[Segment]:
    """The listing's bare pairs, and twelve of them again: the second word of a pair follows from its first."""
    functions = draw_functions(rng)
    segments: list[Segment] = [("".join(f" {obj} {name}" for obj, name in functions), False)]
    for _ in range(12):
        obj, name = rng.choice(functions)
        segments += [(f" {obj}", False), (f" {name}", True)]
    return segments


def play_sessions(rng: random.Random) -> list[Segment]:
    """Three sessions in the order of the real ones: issue, open, listing, the object in question, answer."""
    segments: list[Segment] = []
    for _ in range(3):
        functions = draw_functions(rng)
        obj, name = rng.choice(functions)
        module, operation = rng.choice(
            [place for place in itertools.product(MODULES, OPERATIONS) if not is_held_out(*place, obj)]
        )
        issue = render_issue(module, operation, obj, rng.choice(SYMPTOMS))
        segments += [
            (f"<|user|>{issue}<|end|><|assistant|><function=open_file>", False),
            (f" {file_path(module, operation)}", True),
            (f" </function><|end|><|tool|>{render_listing(functions)}<|end|><|assistant|>The", False),
            (f" {obj}", True),
            ("<function=finish>", False),
            (f" {name}", True),
            (" </function><|end|>", False),
        ]
    return segments


def mixed_sessions(rng: random.Random) -> list[Segment]:
    """Mostly whole sessions, with some bare pairs among them."""
    return repeat_pairs(rng) if rng.random() < REPEATED_SHARE else play_sessions(rng)


# In the order in which they are practised; the last one also accompanies the demonstrations.
EXERCISES: tuple[Callable[[random.Random], list[Segment]], ...] = (repeat_pairs, mixed_sessions)
