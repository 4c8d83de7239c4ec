"""Real issues for `func_loc.py`, from a JSONL file in the style of SWE-bench and local copies of the repositories.

Nothing is downloaded here, and nothing is checked out. The expansion over preferences is `data.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ppp.types import RecipeError, Task

PROMPT_KINDS = ("both", "vague", "precise")
_REQUIRED_TEXTS = ("instance_id", "repo", "base_commit", "problem_statement")


def func_loc_task_rows(
    path: str | Path, repositories: str | Path | Mapping[str, str], *, skip_empty_gold: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield one task row per issue, with keys task_id, environment, vague_prompt, precise_prompt and payload.

    `vague_prompt` is None for an issue that has no vague form. A row of the file needs instance_id, repo
    ("owner/name"), base_commit, problem_statement and edited_functions; vague_statement and hints_text are optional.

    Args:
        repositories: "owner/name" -> folder of a git repository, or a folder that holds such repositories as
            `owner/name`, `owner+name`, `owner__name` or `name`, each with or without `.git` at the end.
        skip_empty_gold: leave out issues without an edited function instead of refusing the file.

    Raises:
        RecipeError: names the file, the line and the field; also where the file or a repository is missing.
    """
    if not isinstance(path, str | Path) or not Path(path).is_file():
        raise RecipeError(f"path: {path!r} is not a file; allowed: a JSONL file of issues")
    if not isinstance(repositories, str | Path | Mapping):
        raise RecipeError(f"repositories: {repositories!r}; allowed: a folder, or owner/name -> folder")
    file = Path(path)
    found: dict[str, str] = {}
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            row = _parse_row(line, where)
            if not row["edited_functions"]:
                if skip_empty_gold:
                    continue
                raise RecipeError(f"{where}: edited_functions is empty; allowed: one function or more")
            repo = row["repo"]
            if repo not in found:
                found[repo] = find_repository(repo, repositories)
            yield {
                "task_id": row["instance_id"],
                "environment": "func_loc",
                "vague_prompt": row.get("vague_statement") or None,
                "precise_prompt": row["problem_statement"],
                "payload": {
                    "source": found[repo],
                    "commit": row["base_commit"],
                    "gold_functions": row["edited_functions"],
                    "hints_text": row.get("hints_text") or "",
                    "repo": repo,
                },
            }


def load_func_loc_tasks(
    path: str | Path,
    repositories: str | Path | Mapping[str, str],
    *,
    prompts: str = "both",
    skip_empty_gold: bool = False,
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


def find_repository(repo: str, repositories: str | Path | Mapping[str, str]) -> str:
    """The local copy of "owner/name".

    Raises:
        RecipeError: there is none.
    """
    if isinstance(repositories, Mapping):
        if repo not in repositories:
            known = ", ".join(sorted(repositories)) or "none"
            raise RecipeError(f"repositories: no entry for {repo!r}; there is {known}")
        return repositories[repo]
    owner, _, name = repo.partition("/")
    stems = (repo, f"{owner}+{name}", f"{owner}__{name}", name)
    candidates = [Path(repositories) / (stem + suffix) for stem in stems for suffix in ("", ".git")]
    for candidate in candidates:
        if (candidate / ".git").exists() or (candidate / "objects").is_dir():
            return str(candidate.resolve())
    names = ", ".join(candidate.name for candidate in candidates[2:])
    raise RecipeError(f"repositories: no copy of {repo!r} in {str(repositories)!r}; allowed names: {repo}, {names}")


def _parse_row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise RecipeError(f"{where}: a row must be a JSON object, not {type(row).__name__}")
    for name in _REQUIRED_TEXTS:
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise RecipeError(f"{where}: {name} is {row.get(name)!r}; allowed: a text that is not blank")
    for name in ("vague_statement", "hints_text"):
        if not isinstance(row.get(name), str | None):
            raise RecipeError(f"{where}: {name} is {row[name]!r}; allowed: a text or null")
    gold = row.get("edited_functions")
    if not isinstance(gold, list) or not all(isinstance(name, str) and ":" in name for name in gold):
        raise RecipeError(f"{where}: edited_functions is {gold!r}; allowed: a list of 'path.py:Class.method'")
    return row
