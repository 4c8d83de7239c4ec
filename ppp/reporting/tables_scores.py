"""The paper's tables, from evaluations: methods by domains, user models, preferences, settings, before and after.

Scores and intervals come from `ppp/evaluation/`; here they are only put into rows. Source: PPP section 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

from ppp.evaluation.compare import paired_differences
from ppp.evaluation.metrics import summarize_records
from ppp.evaluation.records import EFFORTS, Record
from ppp.preferences import PREFERENCES
from ppp.reporting.content import Table
from ppp.reporting.formats import MISSING, estimate, number
from ppp.reporting.run_types import SCORES, SETTING_PREFERENCE, Evaluation, Runs

# Group of sessions -> (ending of the table's name, what the group is)
GROUP_TITLES = {
    "vague": ("", "vague prompts, mean over all preferences"),
    "vague_seen": ("_seen", "vague prompts, preferences seen in training"),
    "vague_unseen": ("_unseen", "vague prompts, held-out preferences"),
    "vague_penalty": ("_penalty", "vague prompts, preferences with a penalty"),
}
# Name -> (prompt is precise, with interaction). Source: PPP section 5, figure 4.
SETTINGS = {
    "precise, no interaction": (True, False),
    "vague, no interaction": (False, False),
    "vague, with interaction": (False, True),
}
CHANGE_GROUPS = {
    "vague": "vague",
    "vague_seen": "vague, seen preferences",
    "vague_unseen": "vague, unseen preferences",
    "precise": "precise",
}
# Metric -> digits
CHANGE_METRICS = {**dict.fromkeys(SCORES, 1), "ask_ratio": 1, "ask_ratio_willing": 1}
NOTE = (
    "Percent, with 95 % intervals (bootstrap over tasks) in brackets. Of several preferences each counts alike; "
    "personalization is over sessions with a question."
)


def score_cells(scores: Mapping[str, Any] | None, metrics: Sequence[str] = SCORES) -> list[str]:
    if scores is None:
        return [MISSING] * len(metrics)
    return [estimate(scores[metric], scores["intervals"].get(metric)) for metric in metrics]


def table_2(runs: Runs) -> list[Table]:
    """Methods by domains and scores, for each group of vague prompts. Source: PPP section 5, table 2."""
    environments = sorted({name for run in runs.compared for name in run.by_environment})
    tables = []
    for group, (ending, title) in GROUP_TITLES.items():
        rows = []
        for run in runs.compared:
            found = [run.by_environment.get(name, {}).get(group) for name in environments]
            if any(found):
                values = [None if scores is None else scores[m] for scores in found for m in SCORES]
                whole = [value for value in values if value is not None]
                average = fmean(whole) if len(whole) == len(values) else None
                cells = [cell for scores in found for cell in score_cells(scores)]
                sessions = sum(scores["num_sessions"] for scores in found if scores is not None)
                rows.append([run.name, number(average), *cells, str(sessions)])
        if rows:
            header = ["method", "Avg", *(f"{name} {score}" for name in environments for score in SCORES), "sessions"]
            tables.append(Table(f"table_2{ending}", f"Table 2: {title}", header, rows, note=NOTE + variants(runs)))
    return tables


def variants(runs: Runs) -> str:
    """A sentence on the runs whose personalization is not the paper's."""
    names = [run.name for run in runs.compared if run.personalization != "paper"]
    formula = "Personalization as the released code counts it, those included that break a preference silently"
    return f" {formula}: {', '.join(names)}." if names else ""


def table_3(runs: Runs) -> list[Table]:
    """The same agent with other users at test time. Source: PPP section 5, table 3."""
    talking = [run for run in runs.compared if run.interaction and "vague" in run.groups]
    rows = []
    for _, members in groupby(sorted(talking, key=lambda run: run.agent_key), key=lambda run: run.agent_key):
        same = list(members)
        if len({run.user_name for run in same}) > 1:
            agent = same[0].agent_name
            rows += [
                [agent, run.user_name, name, *score_cells(groups.get("vague")), sessions(groups)]
                for run in same
                for name, groups in run.by_environment.items()
            ]
    header = ["agent", "user", "domain", *SCORES, "sessions"]
    title = "Table 3: the same agent with other users, vague prompts"
    return [Table("table_3", title, header, rows, num_left=3, note=NOTE)] if rows else []


def sessions(groups: Mapping[str, Any]) -> str:
    return str(groups["vague"]["num_sessions"]) if "vague" in groups else MISSING


def preference_tables(runs: Runs) -> list[Table]:
    """A row per preference, vague prompts: a table for each evaluation, that of the main one first."""
    ordered = sorted(runs.compared, key=lambda run: run is not runs.main)
    tables = []
    for index, run in enumerate(ordered):
        found = run.groups.get("vague", {}).get("preferences", {})
        names = [*(name for name in PREFERENCES if name in found), *(name for name in found if name not in PREFERENCES)]
        rows = [
            [name, split(name), *score_cells(found[name], (*SCORES, "ask_ratio")), str(found[name]["num_sessions"])]
            for name in names
        ]
        if rows:
            title = f"Scores by preference, vague prompts: {run.name}"
            header = ["preference", "split", *SCORES, "ask ratio", "sessions"]
            name = "preferences" if index == 0 else f"preferences_{index + 1}"
            tables.append(Table(name, title, header, rows, num_left=2, note=NOTE))
    return tables


def split(preference: str) -> str:
    return PREFERENCES[preference].split if preference in PREFERENCES else MISSING


def setting_scores(run: Evaluation, setting: str) -> dict[str, Any] | None:
    """Scores of an evaluation's sessions in one of `SETTINGS`; None where it has none."""
    precise, interaction = SETTINGS[setting]
    if run.interaction != interaction:
        return None
    chosen: list[Record] = [
        record
        for record in run.records
        if record["is_precise"] == precise and record["preference"] == SETTING_PREFERENCE
    ]
    return summarize_records(chosen, personalization=run.personalization) if chosen else None


def by_setting(runs: Runs) -> dict[str, dict[str, dict[str, Any]]]:
    """Agent -> setting -> scores, for agents that were evaluated without interaction."""
    agents: dict[str, dict[str, dict[str, Any]]] = {}
    silent = {run.agent_key for run in runs.evaluations if not run.interaction}
    for run in runs.evaluations:
        for setting in SETTINGS if run.agent_key in silent else ():
            scores = setting_scores(run, setting)
            if scores is None:
                continue
            found = agents.setdefault(runs.agent_name(run), {})
            # The same setting may be part of an evaluation with all users, and one of its own with more sessions.
            if setting not in found or scores["num_sessions"] > found[setting]["num_sessions"]:
                found[setting] = scores
    return agents


def settings(runs: Runs) -> list[Table]:
    """Productivity with and without interaction. Source: PPP section 5, figure 4."""
    found = by_setting(runs)
    rows = [
        [agent, *(cell for name in SETTINGS for cell in score_cells(scores.get(name), ("productivity",)))]
        for agent, scores in found.items()
    ]
    title = f"Productivity in three settings, preference {SETTING_PREFERENCE}"
    return [Table("settings", title, ["agent", *SETTINGS], rows, note=NOTE)] if rows else []


def before_after(runs: Runs) -> list[Table]:
    """Scores before and after, and their difference, session by session where both played the same ones."""
    tables: list[Table] = []
    for run in runs.compared:
        before = runs.before(run)
        if before is None or not run.records or not before.records:
            continue
        paired = paired_differences(before.records, run.records, personalization=run.personalization)
        rows = [row for group in CHANGE_GROUPS for row in change_rows(group, before, run, paired)]
        note = f"{NOTE} Change: points after minus before, over the sessions that both played."
        header = ["prompts", "metric", "before", "after", "change"]
        name = "before_after" if not tables else f"before_after_{len(tables) + 1}"
        tables.append(Table(name, f"Before and after: {before.name}, {run.name}", header, rows, 2, note))
    return tables


def change_rows(group: str, before: Evaluation, after: Evaluation, paired: Mapping[str, Any]) -> list[list[str]]:
    if group not in before.groups or group not in after.groups:
        return []
    old, new = before.groups[group], after.groups[group]
    label = CHANGE_GROUPS[group]
    rows = []
    for metric, digits in CHANGE_METRICS.items():
        cells = [estimate(scores[metric], scores["intervals"].get(metric), digits) for scores in (old, new)]
        rows.append([label, metric.replace("_", " "), *cells, change_cell(group, metric, digits, paired)])
    for effort in EFFORTS:
        metric = f"effort/{effort}"
        cells = [estimate(scores["effort"][effort], scores["intervals"].get(metric), 2) for scores in (old, new)]
        rows.append([label, f"questions, {effort} effort", *cells, change_cell(group, metric, 2, paired)])
    pairs = paired["groups"].get(group, {}).get("num_pairs", 0)
    counts = [str(scores["num_sessions"]) for scores in (old, new)]
    return [*rows, [label, "sessions", *counts, f"{pairs} pairs"]]


def change_cell(group: str, metric: str, digits: int, paired: Mapping[str, Any]) -> str:
    """The difference of a metric with its interval, over the sessions that both played."""
    found = paired["groups"].get(group)
    if found is None:
        return MISSING
    return estimate(found["difference"][metric], found["intervals"][metric], digits, sign=True)
