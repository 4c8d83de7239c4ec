"""How a session went, for the person who took part: answer, productivity, each question, and the reward as a sum.

The numbers come from `ppp/rewards.py`; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping

from ppp.preferences import PREFERENCES
from ppp.rewards import RewardSettings, session_metrics, silent_failure
from ppp.types import Answer, Effort, StopReason, Trajectory
from ppp.users.terminal import Terminal, one_line, wrapped

ENDINGS = {
    StopReason.FINISHED: "{who} gave an answer.",
    StopReason.MAX_TURNS: "{who} used up all turns without an answer.",
    StopReason.MAX_TOKENS: "{who} used up all tokens without an answer.",
    StopReason.PROMPT_TOO_LONG: "The task is longer than the agent can read.",
}
DECIDERS = {"rule": "a rule", "evidence": "the evidence", "judge": "a judge", "person": "you"}
MAX_QUESTION_CHARS = 200
LABEL_WIDTH = 16


def show_outcome(
    terminal: Terminal,
    trajectory: Trajectory,
    score: Mapping[str, float] | None,
    rewards: RewardSettings,
    *,
    is_agent: bool,
) -> None:
    """Show how a session that has ended went.

    Args:
        score: see `score_trajectory`.
        is_agent: the person played the agent, and otherwise the user.
    """
    terminal.say("\nThe session is over.", "bold")
    if score is None or trajectory.stop_reason is None or trajectory.failed:
        terminal.say(f"Something failed, so it counts for nothing: {one_line(str(trajectory.error))}", "red")
        return
    terminal.say(ENDINGS[trajectory.stop_reason].format(who="You" if is_agent else "The agent"))
    if trajectory.final_answer is not None:
        terminal.quote(trajectory.final_answer)
    metrics = session_metrics(trajectory)
    productivity = metrics["productivity"]
    _row(terminal, "productivity", f"{productivity:.2f}", "green" if productivity == 1 else "yellow")
    for number, (question, answer) in enumerate(zip(trajectory.questions, trajectory.answers, strict=True), start=1):
        _row(terminal, f"question {number}", *_verdict(answer, "this user likes" if is_agent else "you like"))
        terminal.quote(question, MAX_QUESTION_CHARS)
    if not trajectory.answers:
        _row(terminal, "questions", "none were asked")
    why = " (nothing was asked, and the answer is wrong)" if silent_failure(trajectory) else ""
    _row(terminal, "session effort", f"{metrics['session_effort']}{why}")
    _row(terminal, "preference", _preference(trajectory, metrics["follows_preference"]))
    _row(terminal, "reward", reward_sum(score, rewards), "bold")


def _row(terminal: Terminal, label: str, text: str, *styles: str) -> None:
    lines = wrapped(text, terminal.width - LABEL_WIDTH).replace("\n", "\n" + " " * LABEL_WIDTH)
    terminal.say(f"{label:<{LABEL_WIDTH}}{lines}", *styles)


def _verdict(answer: Answer, liking: str) -> tuple[str, str]:
    """What is said of one question, and how it is coloured."""
    put = f"put as {liking} it" if answer.follows_preference else f"NOT put as {liking} it"
    decider = DECIDERS.get(answer.decided_by, answer.decided_by)
    good = answer.follows_preference and answer.effort is Effort.LOW
    return f"{answer.effort.label} effort, {put} (decided by {decider})", "green" if good else "yellow"


def _preference(trajectory: Trajectory, follows: bool) -> str:
    name = trajectory.task.preference
    if follows and PREFERENCES[name].needs_question and not trajectory.answers:
        return f"{name}: nothing was asked that could have followed it"
    return f"{name}: {'followed' if follows else 'broken'}"


def reward_sum(score: Mapping[str, float], rewards: RewardSettings) -> str:
    """The reward as the sum of its parts, each with its weight where that is not 1."""
    parts: list[str] = []
    total = 0.0
    for name, value in score.items():
        if name == "reward":
            continue
        weight = rewards.weights.get(name, 1.0)
        total += weight * value
        factor = "" if weight == 1 else f"{weight:g} x "
        sign = "-" if value < 0 else "+"
        parts.append(f"{sign} {factor}{abs(value):.2f} {name}")
    text = " ".join(parts).removeprefix("+ ").replace("- ", "-", 1) if parts[0][0] == "-" else " ".join(parts)[2:]
    limited = f", limited to {score['reward']:.2f}" if round(total, 9) != round(score["reward"], 9) else ""
    return f"{text} = {total:.2f}{limited}"
