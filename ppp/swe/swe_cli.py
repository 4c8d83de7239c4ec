"""`ppp data swe SOURCE OUT [--repositories DIR] ...`: a published data set of issues as a folder of task rows.

OUT gets `train.jsonl`, `test.jsonl` (those that have rows) and `manifest.json`: arguments, versions, counts, what could
not be used and why, and a hash of every file. All of them appear at the end, or none. Options and files only: issues
are read in `sources.py` and become tasks in `prepare.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from ppp import __version__
from ppp.checks import refuse
from ppp.swe.labels import RULES
from ppp.swe.prepare import (
    LABEL_SOURCES,
    PROBLEM_KINDS,
    ContentKeys,
    Prepared,
    PrepareOptions,
    TaskRow,
    content_keys,
    leave_out,
    prepare_tasks,
    split_by_name,
    split_by_share,
)
from ppp.swe.sources import HUB_SOURCES, Collected, Problem, collect_issues, describe_source, read_source
from ppp.types import RecipeError
from ppp.vaguenizer.rows import as_line

SPLITS = ("train", "test")
MANIFEST = "manifest.json"
MAX_SHOWN_PROBLEMS = 20  # the manifest has all of them
INTERRUPTED = 130

DESCRIPTION = """\
Make task rows for func_loc of a data set of issues: both prompts, the functions to find, hints for the user.
A task is one row here; it becomes 13 sessions (12 preferences with the vague prompt, one precise) when a recipe is
read. Where vague prompts are missing, `ppp vaguenize` writes them.
Exit status: 0 all rows used, 1 some could not be (they are named), 2 a mistake in the call."""


class Parser(argparse.ArgumentParser):
    """Mistakes in the call are one sentence, like all others."""

    def error(self, message: str) -> NoReturn:
        raise RecipeError(message)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options.

    Raises:
        RecipeError: one is unknown, or has a value that is not allowed.
    """
    parser = Parser(
        prog="ppp data swe",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = ", ".join(HUB_SOURCES)
    parser.add_argument("source", metavar="SOURCE", help=f"{names}, a data set on the Hub, or a file: JSONL or parquet")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for train.jsonl, test.jsonl and manifest.json")
    parser.add_argument("--split", help="of a data set on the Hub; default: train, for SWE-bench test")
    parser.add_argument(
        "--repositories", metavar="DIR", help="folder with a git repository per project: owner/name or owner__name.git"
    )
    parser.add_argument("--rule", default="edited", help=f"what counts as a function to edit: {', '.join(RULES)}")
    parser.add_argument(
        "--labels",
        default="auto",
        help=f"{', '.join(LABEL_SOURCES)}: those that came with the issues, or from patches and files; "
        "auto takes given ones where there are any",
    )
    parser.add_argument("--unlabelled", default="skip", help="keep or skip issues whose fix edits no function")
    parser.add_argument("--vague", default="given", help="given or none: whether to keep vague forms of the source")
    parser.add_argument("--test_share", type=float, default=0.0, help="share of the tasks for test.jsonl, 0 to 1")
    parser.add_argument(
        "--test_instances", type=Path, metavar="FILE", help="ids of the tasks for test.jsonl, one a line, or JSONL"
    )
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="FILE", help="leave out what is in these files of issues or tasks"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw for --test_share")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier run")
    return parser.parse_args(argv)


def check_arguments(options: argparse.Namespace) -> None:
    """Find out before anything is read whether the call makes sense.

    Raises:
        RecipeError: it does not.
    """
    for name, allowed in (("unlabelled", ("skip", "keep")), ("vague", ("given", "none"))):
        if vars(options)[name] not in allowed:
            raise refuse(name, vars(options)[name], f"allowed: {', '.join(allowed)}")
    if not 0 <= options.test_share <= 1:
        raise refuse("test_share", options.test_share, "must be between 0 and 1")
    if options.test_instances is not None and options.test_share:
        raise RecipeError("test_share: not allowed together with test_instances; name one of them")
    if options.repositories is not None and not Path(options.repositories).is_dir():
        raise refuse("repositories", options.repositories, "must be a folder that exists")
    check_output(options.output, options.overwrite)


def check_output(output: Path, overwrite: bool) -> None:
    """Raise `RecipeError` where the files cannot go to, or would replace others that they may not."""
    if output.exists() and not output.is_dir():
        raise refuse("OUT", str(output), "must be a folder, or not exist yet")
    taken = [name for name in (*(f"{split}.jsonl" for split in SPLITS), MANIFEST) if (output / name).exists()]
    if taken and not overwrite:
        raise RecipeError(f"OUT: {str(output)!r} holds {taken[0]} already; name another folder, or use --overwrite")


def read_names(path: Path) -> set[str]:
    """The instance ids in a file: one a line, or JSONL with instance_id.

    Raises:
        RecipeError: there is no such file, or a line has none.
    """
    if not path.is_file():
        raise refuse("test_instances", str(path), "must be a file of instance ids")
    names = set()
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        text = line.strip()
        if text.startswith("{"):
            try:
                text = json.loads(text)["instance_id"]
            except (json.JSONDecodeError, KeyError) as error:
                raise RecipeError(f"{path}, line {number}: no JSON object with instance_id ({error!r})") from error
        if text:
            names.add(str(text))
    return names


def read_content(path: str) -> ContentKeys:
    """The content of a file of issues or task rows that is only compared with.

    Raises:
        RecipeError: there is no such file, or a row of it cannot be read.
    """
    taken: ContentKeys = set()
    for where, raw, problem in read_source(path):
        if problem or not isinstance(raw, Mapping):
            raise RecipeError(f"without: {path}, {where}: {problem or 'not an object'}")
        taken |= content_keys(raw)
    return taken


def divide(
    rows: Sequence[TaskRow], options: argparse.Namespace, test_names: set[str], taken: ContentKeys
) -> tuple[dict[str, list[TaskRow]], dict[str, int]]:
    """Rows by split, and what was left out on the way."""
    kept = leave_out(rows, taken)
    left_out = {"without": len(rows) - len(kept)}
    if options.test_instances is None:
        train, test = split_by_share(kept, options.test_share, options.seed)
        return {"train": train, "test": test}, left_out
    train, test, twins = split_by_name(kept, test_names)
    left_out |= {"same_as_test": len(twins), "unknown_test_instances": len(test_names) - len(test)}
    if not test:
        raise refuse("test_instances", str(options.test_instances), "at least one of its ids must be in SOURCE")
    return {"train": train, "test": test}, left_out


def build_manifest(
    options: argparse.Namespace,
    collected: Collected,
    prepared: Prepared,
    splits: Mapping[str, Sequence[TaskRow]],
    left_out: Mapping[str, int],
) -> dict[str, Any]:
    """Everything that the files came from and hold, as JSON values; no times, so that the same input gives the same."""
    rows = [row for split in splits.values() for row in split]
    problems = [*collected.problems, *prepared.problems]
    numbers = sorted(len(row["payload"]["gold_functions"]) for row in rows)
    return {
        "command": "ppp data swe",
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "source": describe_source(options.source, options.split) | {"sha256": _hash_of_issues(collected)},
        "versions": {"ppp": __version__, "python": platform.python_version(), "unidiff": version("unidiff")},
        "counts": {
            "rows": collected.num_rows,
            "repeated": collected.num_repeated,
            "other_environments": collected.num_other,
            "issues": len(collected.issues),
            "unlabelled": prepared.counts["unlabelled"],
            "labels_given": prepared.counts["labels_given"],
            "labels_from_patch": prepared.counts["labels_from_patch"],
            "moved_hunks": prepared.counts["moved_hunks"],
            "left_out": dict(left_out),
            "problems": dict(Counter(problem.kind for problem in problems)),
            "tasks": len(rows),
            **{split: len(part) for split, part in splits.items()},
            "without_vague_prompt": sum(row["vague_prompt"] is None for row in rows),
            "repositories": dict(sorted(Counter(row["payload"]["repo"] for row in rows).items())),
            "functions_per_task": {"mean": statistics.mean(numbers), "max": numbers[-1]} if numbers else {},
        },
        "problems": [{"instance": item.name, "kind": item.kind, "message": item.message} for item in problems],
    }


def _hash_of_issues(collected: Collected) -> str:
    digest = hashlib.sha256()
    for issue in collected.issues:
        digest.update(json.dumps(issue.fields, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def write_files(output: Path, splits: Mapping[str, Sequence[TaskRow]], manifest: dict[str, Any]) -> None:
    """Write everything beside its place, then put it there, the manifest last; what is left of an earlier run goes.

    Raises:
        RecipeError: the folder cannot be written to, or the disk is full.
    """
    contents = {f"{split}.jsonl": b"".join(map(as_line, rows)) for split, rows in splits.items() if rows}
    manifest["files"] = {
        name: {
            "sha256": hashlib.sha256(content).hexdigest(),
            "num_bytes": len(content),
            "num_rows": content.count(b"\n"),
        }
        for name, content in contents.items()
    }
    contents[MANIFEST] = (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")
    partial = {name: output / f"{name}.partial" for name in contents}
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            partial[name].write_bytes(content)
        for name in contents:
            partial[name].replace(output / name)
        for split in SPLITS:
            if f"{split}.jsonl" not in contents:
                (output / f"{split}.jsonl").unlink(missing_ok=True)
    except OSError as error:
        raise RecipeError(f"OUT: {str(output)!r} cannot be written to ({error})") from error
    finally:
        for path in partial.values():
            with suppress(OSError):
                path.unlink()


def next_steps(output: Path, manifest: Mapping[str, Any], has_source: bool) -> Iterator[str]:
    """The lines of a recipe that use the files, and the commands that write their vague prompts."""
    for split in SPLITS:
        file = output / f"{split}.jsonl"
        if file.name not in manifest["files"]:
            continue
        place = "" if has_source else ", repositories: DIR"
        yield f"{split}_tasks: {{func_loc: {{path: {file}{place}}}}}".replace("test_tasks", "eval_tasks")
        if manifest["counts"]["without_vague_prompt"]:
            yield f"  ppp vaguenize {file} {output / f'{split}_vague.jsonl'} --model NAME"


def summary(output: Path, manifest: Mapping[str, Any], has_source: bool) -> str:
    """What was made, what is missing, and how to go on, for the terminal."""
    counts = manifest["counts"]
    lines = [
        f"{counts['rows']} rows, {counts['issues']} issues: {counts['train']} tasks for training, {counts['test']} for "
        f"test; {counts['unlabelled']} without a label, {len(manifest['problems'])} that could not be used"
    ]
    for name, words in (
        ("without", "left out because they are in the files of --without"),
        ("same_as_test", "left out because their text or fix is that of a test task"),
        ("unknown_test_instances", "ids of --test_instances that are no task here"),
    ):
        if counts["left_out"].get(name):
            lines.append(f"{counts['left_out'][name]} {words}")
    lines += next_steps(output, manifest, has_source)
    if counts["without_vague_prompt"]:
        given = counts["tasks"] - counts["without_vague_prompt"]
        also = f", and others in place of the {given} given ones" if given else ""
        lines.append(f"{counts['without_vague_prompt']} tasks have no vague prompt: ppp vaguenize writes them{also}")
    return "\n".join(lines) + "\n"


def complain(problems: Sequence[Problem], manifest: Path) -> None:
    """Name what could not be used."""
    for problem in problems[:MAX_SHOWN_PROBLEMS]:
        sys.stderr.write(f"ppp data swe: {problem.name}: {problem.message}\n")
    if problems:
        kinds = Counter(problem.kind for problem in problems)
        listed = ", ".join(f"{num} {PROBLEM_KINDS[kind]}" for kind, num in kinds.items())
        sys.stderr.write(f"ppp data swe: {len(problems)} rows could not be used: {listed}; all are in {manifest}\n")


def run(options: argparse.Namespace) -> int:
    """Make the files; returns the exit status."""
    check_arguments(options)
    plan = PrepareOptions(
        repositories=options.repositories,
        rule=options.rule,
        labels=options.labels,
        keep_unlabelled=options.unlabelled == "keep",
        keep_vague=options.vague == "given",
    )
    test_names = set() if options.test_instances is None else read_names(options.test_instances)
    taken: ContentKeys = set().union(*map(read_content, options.without))
    collected = collect_issues(read_source(options.source, options.split))
    if not collected.num_rows:
        raise RecipeError(f"SOURCE: {options.source!r} holds no row; at least one is needed")
    with tqdm(total=len(collected.issues), desc="label", unit="issue", disable=None) as bar:
        advance: Callable[[], object] = bar.update
        prepared = prepare_tasks(collected.issues, plan, advance)
    splits, left_out = divide(prepared.rows, options, test_names, taken)
    manifest = build_manifest(options, collected, prepared, splits, left_out)
    write_files(options.output, splits, manifest)
    sys.stdout.write(summary(options.output, manifest, plan.repositories is not None))
    problems = [*collected.problems, *prepared.problems]
    complain(problems, options.output / MANIFEST)
    return 1 if problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    """`ppp data swe SOURCE OUT ...`. Returns the exit status."""
    try:
        return run(parse_arguments(argv))
    except RecipeError as error:
        sys.stderr.write(f"ppp data swe: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("ppp data swe: interrupted; nothing was written\n")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
