"""`ppp data mine REPO OUT ...`: the history of a local git repository as a folder of task rows.

OUT gets the files of `ppp data swe`: `train.jsonl`, `test.jsonl` and `manifest.json`. A run that is interrupted writes
what it has, and the same call goes on from there. Options and files only: which commits become tasks is in
`mine_filters.py`, how in `mine.py`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ppp import __version__
from ppp.checks import refuse
from ppp.interruption import Interruption
from ppp.swe.labels import RULES
from ppp.swe.mine import Miner
from ppp.swe.mine_filters import FILTERS, LEAKS, MERGES, MineOptions
from ppp.swe.prepare import TaskRow
from ppp.swe.sources import Problem
from ppp.swe.swe_cli import INTERRUPTED, MANIFEST, SPLITS, Parser, check_output, next_steps, write_files
from ppp.types import RecipeError

COMMAND = "ppp data mine"
MAX_SHOWN_PROBLEMS = 20  # the manifest has all of them
NOT_COMPARED = ("overwrite", "output")  # arguments that a run may be gone on with under others

DESCRIPTION = """\
Make task rows for func_loc of the commits of a local git repository that change sources and tests: the message and
the entry in the changelog are the issue, the first parent is the code to search, the edited functions are the label.
The repository is only read. Nothing has a vague prompt yet; `ppp vaguenize` writes them.
Exit status: 0 done, 1 some commits could not be read (they are named), 2 a mistake in the call, 130 interrupted: the
same call goes on."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options.

    Raises:
        RecipeError: one is unknown, or has a value that is not allowed.
    """
    parser = Parser(
        prog=COMMAND,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    default = MineOptions()
    parser.add_argument("repository", type=Path, metavar="REPO", help="folder of a git repository, bare or not")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for train.jsonl, test.jsonl and manifest.json")
    parser.add_argument("--repo", metavar="NAME", help="owner/name for the rows; default: of its origin, or the folder")
    parser.add_argument("--ref", default=default.ref, help="branch, tag or commit whose history is read; default: HEAD")
    parser.add_argument("--since", metavar="DATE", help="leave out commits before this date, such as 2020-01-31 (UTC)")
    parser.add_argument("--until", metavar="DATE", help="leave out commits from this date on")
    parser.add_argument("--rule", default=default.rule, help=f"what counts as a function to edit: {', '.join(RULES)}")
    parser.add_argument(
        "--merges",
        default=default.merges,
        help=f"{', '.join(MERGES)}: a merged pull request is one task and its commits are none, or merges are none and "
        f"every commit is looked at; default: {default.merges}",
    )
    parser.add_argument(
        "--leaks",
        default=default.leaks,
        help=f"{', '.join(LEAKS)} texts that name every function to find; default: {default.leaks}, as real issues do",
    )
    for name, words in (
        ("min_words", "words of an issue, at least"),
        ("max_files", "source files of a commit, at most"),
        ("max_functions", "functions to find, at most"),
        ("max_lines", "changed lines of Python outside tests, at most"),
    ):
        parser.add_argument(f"--{name}", type=int, default=vars(default)[name], help=f"{words}; default: %(default)s")
    parser.add_argument(
        "--source_folders", nargs="+", default=(), metavar="DIR", help="where sources are; default: outside tests, docs"
    )
    parser.add_argument("--test_pattern", default=default.test_pattern, help="regular expression for paths of tests")
    parser.add_argument(
        "--without",
        nargs="+",
        default=(),
        metavar="FILE",
        help="leave out the fixes of these issues or tasks",
    )
    parser.add_argument("--max_tasks", type=int, help="draw so many of the tasks")
    parser.add_argument("--seed", type=int, default=default.seed, help="of the draw")
    parser.add_argument("--test_share", type=float, default=0.0, help="share of the tasks for test.jsonl: the newest")
    parser.add_argument("--overwrite", action="store_true", help="begin anew and replace the files of an earlier run")
    return parser.parse_args(argv)


def read_options(arguments: argparse.Namespace) -> MineOptions:
    """What becomes a task.

    Raises:
        RecipeError: a value that is not allowed.
    """
    if not 0 <= arguments.test_share <= 1:
        raise refuse("test_share", arguments.test_share, "must be between 0 and 1")
    if not arguments.repository.is_dir():
        raise refuse("REPO", str(arguments.repository), "must be the folder of a git repository")
    given = vars(arguments) | {name: tuple(vars(arguments)[name]) for name in ("source_folders", "without")}
    return MineOptions(**{entry.name: given[entry.name] for entry in fields(MineOptions)})


def arguments_as_json(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments as a manifest has them."""
    values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    return values | {name: list(values[name]) for name in ("source_folders", "without")}


def resume(miner: Miner, arguments: argparse.Namespace) -> bool:
    """Go on with what an interrupted run of the same call left in OUT; whether there is such a thing.

    Raises:
        RecipeError: what is in OUT is damaged.
    """
    output: Path = arguments.output
    if arguments.overwrite or not (output / MANIFEST).is_file():
        return False
    try:
        manifest = json.loads((output / MANIFEST).read_bytes())
        files = [output / f"{split}.jsonl" for split in SPLITS if f"{split}.jsonl" in manifest["files"]]
        rows = [json.loads(line) for file in files for line in file.read_bytes().splitlines()]
        if manifest["command"] != COMMAND or "examined" not in manifest["counts"] or not manifest["interrupted"]:
            return False
        theirs, ours = manifest["arguments"], arguments_as_json(arguments)
        if any(theirs[name] != ours[name] for name in ours if name not in NOT_COMPARED):
            return False
        if manifest["source"]["commit"] != miner.head:
            return False
        problems = [Problem(item["instance"], item["kind"], item["message"]) for item in manifest["problems"]]
        miner.resume(rows, manifest["counts"]["removed"], problems, manifest["counts"]["examined"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"OUT: {str(output)!r} cannot be gone on with ({error!r}); use --overwrite") from error
    return True


def build_manifest(
    arguments: argparse.Namespace, miner: Miner, splits: Mapping[str, Sequence[TaskRow]]
) -> dict[str, Any]:
    """What the files came from and hold, as JSON values; no times of the run, so that the same call gives the same."""
    rows = [row for split in splits.values() for row in split]
    numbers = sorted(len(row["payload"]["gold_functions"]) for row in rows)
    mined = [row["mined"] for row in rows]
    return {
        "command": COMMAND,
        "arguments": arguments_as_json(arguments),
        "source": {"repository": str(miner.folder), "repo": miner.name, "commit": miner.head},
        "versions": {"ppp": __version__, "python": platform.python_version(), "unidiff": version("unidiff")},
        "interrupted": not miner.is_finished,
        "counts": {
            "commits": miner.num_commits,
            "removed": {name: miner.removed[name] for name in FILTERS},
            "candidates": len(miner.drafts),
            "examined": miner.num_done,
            "problems": len(miner.problems),
            "tasks": len(rows),
            **{split: len(part) for split, part in splits.items()},
            "without_vague_prompt": len(rows),
            "pull_requests": sum(about["is_pull_request"] for about in mined),
            "text_from": dict(sorted(Counter("+".join(about["text_from"]) for about in mined).items())),
            "functions_named": dict(sorted(Counter(about["names"] for about in mined).items())),
            "functions_per_task": {"mean": statistics.mean(numbers), "max": numbers[-1]} if numbers else {},
        },
        "problems": [{"instance": item.name, "kind": item.kind, "message": item.message} for item in miner.problems],
    }


def summary(output: Path, manifest: Mapping[str, Any]) -> str:
    """What came out, what each filter took away, and how to go on, for the terminal."""
    counts = manifest["counts"]
    lines = [f"{counts['commits']} commits: {counts['train']} tasks for training, {counts['test']} for test"]
    lines += [f"{num:7} {FILTERS[name].words} ({name})" for name, num in counts["removed"].items() if num]
    if counts["candidates"] > counts["examined"]:
        why = "the run was interrupted" if manifest["interrupted"] else "there are max_tasks already"
        lines.append(f"{counts['candidates'] - counts['examined']:7} not looked at, as {why}")
    if counts["tasks"]:
        lines += next_steps(output, manifest, has_source=True)
        lines.append("the tasks have no vague prompt: ppp vaguenize writes them")
    return "\n".join(lines) + "\n"


def mine(miner: Miner, interruption: Interruption) -> None:
    """Work until all is done, or until somebody ends it, which takes effect between two steps."""
    with tqdm(total=len(miner.drafts), initial=miner.num_done, desc="mine", unit="commit", disable=None) as bar:
        while not miner.is_finished and interruption.told_by is None:
            bar.update(miner.step())


def run(arguments: argparse.Namespace) -> int:
    """Make the files; returns the exit status.

    Raises:
        RecipeError: a mistake in the call, before anything is written.
        KeyboardInterrupt: there was nothing to keep yet.
    """
    options = read_options(arguments)
    interruption = Interruption()
    with interruption.handled():
        with interruption.interruptible():
            check_output(arguments.output, overwrite=True)
            miner = Miner(arguments.repository, options, arguments.repo)
            if not resume(miner, arguments):
                check_output(arguments.output, arguments.overwrite)
        mine(miner, interruption)
        if miner.is_finished and not miner.rows and not miner.problems:
            raise RecipeError(f"REPO: {miner.nothing_left()}")
        train, test = miner.split(arguments.test_share)
        splits = {"train": train, "test": test}
        manifest = build_manifest(arguments, miner, splits)
        write_files(arguments.output, splits, manifest)
    sys.stdout.write(summary(arguments.output, manifest))
    for problem in miner.problems[:MAX_SHOWN_PROBLEMS]:
        sys.stderr.write(f"{COMMAND}: {problem.name}: {problem.message}\n")
    if miner.problems:
        place = arguments.output / MANIFEST
        sys.stderr.write(f"{COMMAND}: {len(miner.problems)} commits could not be used; all are in {place}\n")
    if not miner.is_finished:
        sys.stderr.write(f"{COMMAND}: interrupted; the same call goes on\n")
        return INTERRUPTED
    return 1 if miner.problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    """`ppp data mine REPO OUT ...`. Returns the exit status."""
    try:
        return run(parse_arguments(argv))
    except RecipeError as error:
        sys.stderr.write(f"{COMMAND}: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{COMMAND}: interrupted; nothing was written\n")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
