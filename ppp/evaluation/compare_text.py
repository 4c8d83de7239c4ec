"""How the comparison of two evaluations reads: tables of differences, and the sessions that changed most.

Texts of agents and users come from models: each is one line of limited length, and nothing in it reaches a terminal
that is not plain text. What is compared is read in `compare_cli.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from ppp.evaluation.compare import Pair, excludes_zero
from ppp.evaluation.records import Record
from ppp.reporting.content import Table
from ppp.reporting.formats import estimate, number, to_markdown
from ppp.users.terminal import printable

MAX_QUESTIONS = 5  # of one session
MAX_TEXT = 200  # letters of one text of a model

# Metric -> what its row is called, digits.
ROWS = {
    "productivity": ("productivity, %", 1),
    "proactivity": ("proactivity, %", 1),
    "personalization": ("personalization, %", 1),
    "ask_ratio": ("sessions with a question, %", 1),
    "ask_ratio_willing": ("the same without users who want none, %", 1),
    "questions": ("questions per session", 2),
    "effort/low": ("of low effort", 2),
    "effort/medium": ("of medium effort", 2),
    "effort/high": ("of high effort", 2),
    "question_position": ("where they stand (0: first turn)", 2),
    "turns": ("turns per session", 1),
    "unreadable_turns": ("unreadable turns, %", 1),
    "policy_tokens": ("tokens of the agent", 0),
    "completion_tokens": ("tokens with observations", 0),
}
NOTE = (
    "B - A over the sessions that both played, with 95 % intervals (bootstrap over tasks) in brackets; * marks those "
    "that exclude 0, as one in twenty does by chance."
)


def one_line(text: str) -> str:
    """A text of a model on one line, cut where it is long."""
    shown = " ".join(printable(text[: 10 * MAX_TEXT]).split())
    return shown if len(shown) <= MAX_TEXT else f"{shown[: MAX_TEXT - 3]}..."


def group_table(name: str, group: Mapping[str, Any]) -> Table:
    """The differences in one group."""
    rows = []
    for metric, (label, digits) in ROWS.items():
        interval = group["intervals"][metric]
        cells = [number(group[side][metric], digits) for side in ("first", "second")]
        change = estimate(group["difference"][metric], interval, digits, sign=True)
        rows.append([label, *cells, change, "*" if excludes_zero(interval) else ""])
    changes = "; ".join(
        f"{key} better in {counts['better']}, worse in {counts['worse']}, equal in {counts['equal']}"
        for key, counts in group["sessions"].items()
    )
    title = f"{name.replace('_', ', ')}: {group['num_pairs']} pairs of sessions, {group['num_tasks']} tasks"
    return Table(name, title, ["", "A", "B", "B - A", ""], rows, note=f"{changes}.")


def changed_session(pair: Pair) -> dict[str, Any]:
    """What a reader has to know of a session that changed."""
    record = pair.first
    return {
        "task_id": record["task_id"],
        "environment": record["environment"],
        "preference": record["preference"],
        "is_precise": record["is_precise"],
        "row": record["row"],
        "prompt": record["prompt"],
        "first": outcome(pair.first),
        "second": outcome(pair.second),
    }


def outcome(record: Record) -> dict[str, Any]:
    """How one agent played a session."""
    session = record["session"]
    return {
        "reward": record["score"]["reward"],
        "productivity": session["productivity"],
        "session_effort": session["session_effort"],
        "follows_preference": session["follows_preference"],
        "stop_reason": record["stop_reason"],
        "num_turns": len(record["turns"]),
        "final_answer": record["final_answer"],
        "questions": [
            {
                "text": turn["question"],
                "effort": turn["answer"]["effort"],
                "follows_preference": turn["answer"]["follows_preference"],
            }
            for turn in record["turns"]
            if "answer" in turn
        ],
    }


def told_session(session: Mapping[str, Any], number_of: int) -> list[str]:
    """A session that changed, as lines."""
    kind = "precise" if session["is_precise"] else "vague"
    rewards, scores = (
        " -> ".join(f"{session[side][key]:.2f}" for side in ("first", "second")) for key in ("reward", "productivity")
    )
    lines = [
        f"{number_of}. {one_line(session['task_id'])} ({session['environment']}, {kind}, "
        f"{one_line(session['preference'])}): reward {rewards}, productivity {scores}",
        f"   prompt: {one_line(session['prompt'])}",
    ]
    for label, side in (("A", "first"), ("B", "second")):
        found = session[side]
        kept = "kept" if found["follows_preference"] else "not kept"
        answer = "no answer" if found["final_answer"] is None else f"answer {one_line(found['final_answer'])!r}"
        lines.append(
            f"   {label}: {found['stop_reason']} after {found['num_turns']} turns, {found['session_effort']} effort, "
            f"preference {kept}, {answer}"
        )
        lines += [
            f"      asked ({question['effort']}{'' if question['follows_preference'] else ', not as wished'}): "
            f"{one_line(question['text'])}"
            for question in found["questions"][:MAX_QUESTIONS]
        ]
        if len(found["questions"]) > MAX_QUESTIONS:
            lines.append(f"      and {len(found['questions']) - MAX_QUESTIONS} more questions")
    return lines


def told(comparison: Mapping[str, Any], groups: Sequence[str], markdown: bool) -> str:
    """A comparison as text for a terminal, or as Markdown."""
    # In Markdown a block of code keeps every sign of a foreign text what it is; no line of it can close the block.
    block = _code if markdown else "\n".join
    parts = [block([f"{label}: {run['folder']} ({run['agent']})" for label, run in comparison["runs"].items()])]
    parts += [block([f"Warning: {sentence}." for sentence in comparison["warnings"]])]
    tables = [group_table(name, comparison["groups"][name]) for name in groups if name in comparison["groups"]]
    parts += [f"{name.replace('_', ', ')}: no pair of sessions." for name in groups if name not in comparison["groups"]]
    parts += [to_markdown(table) if markdown else _plain_table(table) for table in tables]
    sessions = [told_session(session, place) for place, session in enumerate(comparison["most_changed"], start=1)]
    parts += [NOTE, "Sessions that changed most:" if sessions else "No session changed in reward or productivity."]
    parts += [block(lines) for lines in sessions]
    return printable("\n\n".join(part.strip("\n") for part in parts if part)) + "\n"


def _plain_table(table: Table) -> str:
    body = tabulate(
        table.rows, table.header, "simple", disable_numparse=True, colalign=("left", *["right"] * 3, "left")
    )
    return f"{table.title}\n\n{body}\n\n{table.note}"


def _code(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)
