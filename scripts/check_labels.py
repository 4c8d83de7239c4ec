"""How far the functions read off patches agree with labels made elsewhere.

    python scripts/check_labels.py --issues issues.jsonl --repositories DIR [--rule edited]

`issues.jsonl` holds issues in the style of SWE-bench with their patches and `edited_functions` (for wider rules
`added_functions` and `edited_classes` too); DIR holds a git repository per project, which is read at the base commit.
Issues without a labelled function are left out. Every difference is named; the last line is JSON.
Exit status: 0 at least 95 % agree exactly, 1 fewer, 2 a mistake in the call.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ppp.swe.labels import RULES
from ppp.swe.prepare import PrepareOptions, prepare_tasks
from ppp.swe.sources import collect_issues, read_source
from ppp.types import RecipeError

WANTED_SHARE = 0.95


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--issues", required=True, help="JSONL or parquet file of issues with labels")
    parser.add_argument("--repositories", required=True, type=Path, help="folder with a git repository per project")
    parser.add_argument("--rule", default="edited", choices=RULES)
    options = parser.parse_args(argv)
    try:
        issues = collect_issues(read_source(options.issues)).issues
        given = PrepareOptions(labels="given", rule=options.rule)
        wanted = {row["task_id"]: row["payload"]["gold_functions"] for row in prepare_tasks(issues, given).rows}
        if not wanted:
            raise RecipeError(f"issues: {options.issues!r} holds no label under the rule {options.rule!r}")
        # Kept where the patch edits nothing: that is a difference too.
        computed = replace(given, labels="patch", repositories=options.repositories, keep_unlabelled=True)
        prepared = prepare_tasks([issue for issue in issues if issue.name in wanted], computed)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = {row["task_id"]: row["payload"]["gold_functions"] for row in prepared.rows}
    reasons = {problem.name: problem.message for problem in prepared.problems}
    num_exact = 0
    for name, functions in wanted.items():
        missing = [function for function in functions if function not in found.get(name, [])]
        extra = [function for function in found.get(name, []) if function not in functions]
        num_exact += not missing and not extra
        if missing or extra:
            print(f"{name}: missing {missing}, more {extra} {reasons.get(name, '')}".rstrip())
    share = num_exact / len(wanted)
    print(json.dumps({"rule": options.rule, "num_issues": len(wanted), "num_exact": num_exact, "share": share}))
    return 0 if share >= WANTED_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
