"""`ppp compare`: the folders of two evaluations side by side, and the sessions that changed most between them.

What is computed is `compare.py`'s, how it reads `compare_text.py`'s; here it is read, warned about and written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ppp.checks import check_at_least
from ppp.evaluation.compare import Pairs, differences_of, most_changed, pair_up
from ppp.evaluation.compare_text import changed_session, one_line, told
from ppp.evaluation.folder import RESULTS_FILE, flatten, may_differ, read_manifest
from ppp.evaluation.intervals import few_tasks_warning
from ppp.evaluation.records import GROUPS, Results, read_records
from ppp.run_folder import write_whole
from ppp.types import RecipeError
from ppp.users.terminal import printable

PROG = "ppp compare"
FORMATS = (".md", ".json")
DEFAULT_GROUPS = ("vague", "precise")
MAX_TOLD = 8  # settings that differ, damaged lines: as many are told one by one


@dataclass(frozen=True)
class Run:
    """One of the two evaluations.

    Attributes:
        label: "A" or "B".
        manifest: what was evaluated; None where that is unknown, and `problem` says why.
    """

    label: str
    folder: Path
    results: Results
    manifest: Mapping[str, Any] | None
    problem: str | None

    @property
    def agent(self) -> str:
        agent = (self.manifest or {}).get("agent")
        return one_line(str(agent.get("name", "unknown"))) if isinstance(agent, Mapping) else "unknown"


def read_run(label: str, folder: Path) -> Run:
    """Read the folder of an evaluation.

    Raises:
        RecipeError: it holds no sessions, or such as were counted by other rules.
    """
    if not (folder / RESULTS_FILE).is_file():
        raise RecipeError(f"run: {str(folder)!r} is not allowed; name the folder of an evaluation, with {RESULTS_FILE}")
    results = read_records(folder / RESULTS_FILE)
    if not results.records:
        damaged = f", only {len(results.damaged)} damaged lines" if results.damaged else ""
        raise RecipeError(f"run: {str(folder)!r} is not allowed; its {RESULTS_FILE} holds no session{damaged}")
    try:
        manifest = read_manifest(folder)
        problem = "it says nothing of its users and settings" if manifest is None else None
    except RecipeError as error:
        manifest, problem = None, str(error)
    return Run(label, folder, results, manifest, problem)


def warnings_of(runs: tuple[Run, Run], found: Pairs, num_tasks: int) -> list[str]:
    """Everything that keeps the differences from being those of the two agents alone, in sentences."""
    sentences = []
    for run, num_alone in zip(runs, found.num_unmatched, strict=True):
        for damaged in run.results.damaged[:MAX_TOLD]:
            sentences.append(f"{run.label}, {damaged}; skipped")
        if len(run.results.damaged) > MAX_TOLD:
            sentences.append(f"{run.label}: {len(run.results.damaged) - MAX_TOLD} further damaged lines, skipped")
        if run.problem is not None:
            sentences.append(f"{run.label}: {run.problem}, which may differ from those of the other")
        if num_alone:
            sentences.append(f"{run.label}: sessions without a pair, which are left out: {num_alone}")
    if found.num_failed:
        sentences.append(f"pairs of which a session failed, which are left out: {found.num_failed}")
    if found.num_other_prompts:
        sentences.append(f"pairs with different prompts, so that tasks of one name differ: {found.num_other_prompts}")
    few = few_tasks_warning(num_tasks)
    return [*sentences, *settings_that_differ(*runs), *([few] if few else [])]


def settings_that_differ(first: Run, second: Run) -> list[str]:
    """In which settings other than the agent two evaluations differ; which sessions there are is told by the pairs."""
    if first.manifest is None or second.manifest is None:
        return []
    ours, theirs = flatten(first.manifest), flatten(second.manifest)
    apart = ("agent", "preferences", "prompts", "sessions", "sessions_digest", "tasks")
    names = [
        name
        for name in [*ours, *(name for name in theirs if name not in ours)]
        if name.partition(".")[0] not in apart and not may_differ(name) and ours.get(name) != theirs.get(name)
    ]
    told = [f"{name} is {_value(ours, name)} in A and {_value(theirs, name)} in B" for name in names[:MAX_TOLD]]
    return [*told, f"{len(names) - MAX_TOLD} further settings differ"] if len(names) > MAX_TOLD else told


def _value(fields: Mapping[str, Any], name: str) -> str:
    return one_line(json.dumps(fields[name], ensure_ascii=False)) if name in fields else "not set"


def compare(first: Path, second: Path, groups: Sequence[str], num_changed: int) -> dict[str, Any]:
    """Everything that is told of two evaluations, as JSON values.

    Args:
        groups: in which the sessions that changed most are looked for.
        num_changed: how many of them.

    Raises:
        RecipeError: a folder that cannot be compared, or two without a common session.
    """
    runs = read_run("A", first), read_run("B", second)
    found = pair_up(runs[0].results.records, runs[1].results.records)
    if not found.pairs:
        failed_too = f" that did not fail ({found.num_failed} did)" if found.num_failed else ""
        raise RecipeError(f"runs: {str(first)!r} and {str(second)!r} share no session{failed_too}; nothing is compared")
    variants = {((run.manifest or {}).get("rewards") or {}).get("personalization", "paper") for run in runs}
    differences = differences_of(found, personalization=variants.pop() if len(variants) == 1 else "paper")
    num_tasks = min(group["num_tasks"] for group in differences["groups"].values())
    shown = [pair for pair in found.pairs if any(GROUPS[name](pair.first) for name in groups)]
    return {
        "runs": {run.label: {"folder": str(run.folder), "agent": run.agent} for run in runs},
        "warnings": warnings_of(runs, found, num_tasks),
        **differences,
        "most_changed": [changed_session(pair) for pair in most_changed(shown, num_changed)],
    }


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are RecipeErrors."""

    def error(self, message: str) -> NoReturn:
        raise RecipeError(message)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        RecipeError: a value that is not allowed.
    """
    parser = _Parser(
        prog=PROG,
        description="How the metrics of two evaluations of the same sessions differ, and the sessions that changed "
        "most.",
        allow_abbrev=False,
    )
    parser.add_argument("first", metavar="RUN_A", type=Path, help="folder of an evaluation")
    parser.add_argument("second", metavar="RUN_B", type=Path, help="another one; differences are B - A")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write it to FILE too: .md, or .json with all groups"
    )
    parser.add_argument(
        "--group",
        nargs="+",
        choices=(*GROUPS, "all"),
        default=list(DEFAULT_GROUPS),
        help=f"sessions to show (default: {' '.join(DEFAULT_GROUPS)})",
    )
    parser.add_argument("--num_changed", type=int, default=10, metavar="N", help="sessions to list (default: 10)")
    own = parser.parse_args(argv)
    check_at_least("num_changed", own.num_changed, 0)
    if own.output is not None and own.output.suffix not in FORMATS:
        raise RecipeError(f"output: {str(own.output)!r} is not allowed; its name must end in {' or '.join(FORMATS)}")
    if "all" in own.group:
        own.group = list(GROUPS)
    return own


def write_output(path: Path, comparison: Mapping[str, Any], groups: Sequence[str]) -> None:
    """Write a comparison as JSON or Markdown, by the file's ending.

    Raises:
        RecipeError: the file cannot be written.
    """
    if path.suffix == ".json":
        text = json.dumps(comparison, indent=2, ensure_ascii=False) + "\n"
    else:
        text = told(comparison, groups, markdown=True)
    try:
        write_whole(path, text)
    except OSError as error:
        raise RecipeError(f"output: {str(path)!r} cannot be written ({error.strerror})") from error


def main(argv: Sequence[str] | None = None) -> int:
    """`ppp compare RUN_A RUN_B`. Returns the exit status."""
    try:
        own = parse_arguments(argv)
        comparison = compare(own.first, own.second, own.group, own.num_changed)
        if own.output is not None:
            write_output(own.output, comparison, own.group)
    except RecipeError as error:
        sys.stderr.write(f"{PROG}: {printable(str(error))}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{PROG}: interrupted\n")
        return 130
    sys.stdout.write(told(comparison, own.group, markdown=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
