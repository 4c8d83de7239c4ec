"""Issues and task rows of software issues: what they hold, how one becomes the other, and loading them for `func_loc`.

An issue is a row in the style of SWE-bench (`instance_id`, `repo`, `base_commit`, `problem_statement`, ...); a task row
is what a recipe trains on. Nothing is downloaded or checked out here. Whole data sets are converted by `prepare.py`;
the expansion over preferences is `ppp/data.py`'s, when a task row is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ppp.types import RecipeError, Task

PROMPT_KINDS = ("both", "vague", "precise")
REQUIRED_TEXTS = ("instance_id", "repo", "base_commit", "problem_statement")
OPTIONAL_TEXTS = ("vague_statement", "hints_text", "patch", "test_patch")
TEST_LISTS = ("FAIL_TO_PASS", "PASS_TO_PASS")  # a list, or a list written as JSON
LABEL_LISTS = ("edited_functions", "added_functions", "edited_classes")
# What runs the tests of a fix or holds the fix itself; kept in the file, and out of the tasks that `func_loc` plays.
EVALUATION = "evaluation"
EVALUATION_FIELDS = ("patch", "test_patch", *TEST_LISTS, "version", "environment_setup_commit")

Repositories = str | Path | Mapping[str, str]


def func_loc_task_rows(
    path: str | Path, repositories: Repositories | None = None, *, skip_empty_gold: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield the task rows in a JSONL file of task rows (`ppp data`, `ppp vaguenize`) or of issues with labels.

    An issue needs the fields of `REQUIRED_TEXTS` and edited_functions; vague_statement and hints_text are optional.
    `vague_prompt` is None where there is no vague form.

    Args:
        repositories: "owner/name" -> folder of a git repository, or a folder that holds such repositories as
            `owner/name`, `owner+name`, `owner__name` or `name`, each with or without `.git` at the end. Task rows that
            say where their repository is do without.
        skip_empty_gold: leave out rows without an edited function instead of refusing the file.

    Raises:
        RecipeError: names the file, the line and the field; also where the file or a repository is missing.
    """
    if not isinstance(path, str | Path) or not Path(path).is_file():
        raise RecipeError(f"path: {path!r} is not a file; allowed: a JSONL file of task rows or issues")
    if not isinstance(repositories, str | Path | Mapping | None):
        raise RecipeError(f"repositories: {repositories!r}; allowed: a folder, or owner/name -> folder")
    file = Path(path)
    found: dict[str, str] = {}
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                row = _to_task_row(json.loads(line))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise RecipeError(f"{where}: not valid JSON ({error})") from error
            except RecipeError as error:
                raise RecipeError(f"{where}: {error}") from error
            payload = row["payload"]
            if not payload["gold_functions"]:
                if skip_empty_gold:
                    continue
                raise RecipeError(f"{where}: edited_functions is empty; allowed: one function or more")
            if repositories is not None or not payload.get("source"):
                payload["source"] = _located(payload.get("repo"), repositories, found, where)
            yield row


def _to_task_row(raw: Any) -> dict[str, Any]:
    """A task row, made of an issue where `raw` is one; without what only tests need."""
    if not isinstance(raw, dict):
        raise RecipeError(f"a row must be a JSON object, not {type(raw).__name__}")
    if "payload" not in raw:
        issue = check_issue(raw)
        row = make_task_row(issue, check_functions(issue.get("edited_functions"), "edited_functions"), None)
        row["payload"].pop(EVALUATION)
        return row
    payload = raw["payload"]
    if not isinstance(payload, dict):
        raise RecipeError(f"payload is {str(payload)[:80]!r}; allowed: an object")
    check_functions(payload.get("gold_functions"), "payload.gold_functions")
    return {**raw, "payload": {name: value for name, value in payload.items() if name != EVALUATION}}


def _located(repo: Any, repositories: Repositories | None, found: dict[str, str], where: str) -> str:
    """The folder of a row's repository, looked up once."""
    if not isinstance(repo, str):
        raise RecipeError(f"{where}: payload.repo is {repo!r}; allowed: the owner/name of a repository")
    if repositories is None:
        raise RecipeError(f"repositories: missing; {where} is of {repo!r} and does not say where that is")
    if repo not in found:
        found[repo] = find_repository(repo, repositories)
    return found[repo]


def make_task_row(
    issue: Mapping[str, Any], gold_functions: Sequence[str], source: str | None, vague_prompt: str | None = None
) -> dict[str, Any]:
    """The task row of an issue that passed `check_issue`; the expansion over preferences comes when it is loaded.

    Args:
        source: folder of its repository; None leaves it to be named when the row is loaded.
        vague_prompt: None takes the issue's own `vague_statement`, if it has one.
    """
    payload = {
        **({} if source is None else {"source": source}),
        "commit": issue["base_commit"],
        "gold_functions": list(gold_functions),
        "hints_text": issue.get("hints_text") or "",
        "repo": issue["repo"],
        EVALUATION: {name: issue[name] for name in EVALUATION_FIELDS if issue.get(name) is not None},
    }
    return {
        "task_id": issue["instance_id"],
        "environment": "func_loc",
        "vague_prompt": vague_prompt or issue.get("vague_statement") or None,
        "precise_prompt": issue["problem_statement"],
        "payload": payload,
    }


def check_issue(raw: Any) -> dict[str, Any]:
    """The issue, its lists of tests as lists.

    Raises:
        RecipeError: naming the field, its value and what is allowed.
    """
    if not isinstance(raw, Mapping):
        raise RecipeError(f"a row must be a JSON object, not {type(raw).__name__}")
    row = dict(raw)
    for name in REQUIRED_TEXTS:
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise RecipeError(f"{name} is {_shown(row.get(name))}; allowed: a text that is not blank")
    for name in OPTIONAL_TEXTS:
        if not isinstance(row.get(name), str | None):
            raise RecipeError(f"{name} is {_shown(row[name])}; allowed: a text or null")
    for name in TEST_LISTS:
        tests = row.get(name)
        if isinstance(tests, str):
            try:
                tests = row[name] = json.loads(tests or "[]")
            except json.JSONDecodeError as error:
                raise RecipeError(f"{name} is {_shown(tests)}; allowed: a list of tests, or one as JSON") from error
        if tests is not None and not _is_texts(tests):
            raise RecipeError(f"{name} is {_shown(tests)}; allowed: a list of tests, or one as JSON")
    for name in LABEL_LISTS:
        if row.get(name) is not None:
            check_functions(row[name], name)
    return row


def check_functions(value: Any, field: str) -> list[str]:
    """`value` if it is a list of functions, which may be empty.

    Raises:
        RecipeError: it is not; names `field`.
    """
    if not _is_texts(value) or not all(":" in name for name in value):
        raise RecipeError(f"{field} is {_shown(value)}; allowed: a list of 'path.py:Class.method'")
    return list(value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def load_func_loc_tasks(
    path: str | Path, repositories: Repositories | None = None, *, prompts: str = "both", skip_empty_gold: bool = False
) -> list[Task]:
    """Tasks for a user without a preference: for every issue the precise one, the vague one where it has one, or both.

    Raises:
        RecipeError: as `func_loc_task_rows`, or `prompts` is unknown, or no task is left.
    """
    if prompts not in PROMPT_KINDS:
        raise RecipeError(f"prompts: {prompts!r} is unknown; allowed: {', '.join(PROMPT_KINDS)}")
    tasks = []
    for row in func_loc_task_rows(path, repositories, skip_empty_gold=skip_empty_gold):
        for kind in ("precise", "vague"):
            prompt = row[f"{kind}_prompt"]
            if prompts in (kind, "both") and prompt is not None:
                name = f"{row['task_id']}:{kind}"
                precise = row["precise_prompt"]
                tasks.append(Task(name, "func_loc", prompt, precise, "no_preference", row["payload"]))
    if not tasks:
        raise RecipeError(f"path: {str(path)!r} holds no issue with a {prompts} prompt; allowed: at least one")
    return tasks


def find_repository(repo: str, repositories: Repositories) -> str:
    """The local copy of "owner/name".

    Raises:
        RecipeError: there is none.
    """
    if isinstance(repositories, Mapping):
        if repo not in repositories:
            known = ", ".join(sorted(repositories)) or "none"
            raise RecipeError(f"repositories: no entry for {repo!r}; there is {known}")
        return repositories[repo]
    if repo.startswith("/") or ".." in repo.split("/"):  # a name in a data set, not a way out of the folder
        raise RecipeError(f"repositories: {repo!r} is not a repository's name; allowed: owner/name")
    owner, _, name = repo.partition("/")
    stems = (repo, f"{owner}+{name}", f"{owner}__{name}", name)
    candidates = [Path(repositories) / (stem + suffix) for stem in stems for suffix in ("", ".git")]
    for candidate in candidates:
        if (candidate / ".git").exists() or (candidate / "objects").is_dir():
            return str(candidate.resolve())
    names = ", ".join(candidate.name for candidate in candidates[2:])
    raise RecipeError(f"repositories: no copy of {repo!r} in {str(repositories)!r}; allowed names: {repo}, {names}")
