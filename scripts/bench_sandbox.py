"""What the sandbox costs: a command in it against the same command without it, and whether sessions leave anything.

    python scripts/bench_sandbox.py --repository path/to/a/git/repository [--commit HEAD]

Both sides run the same mix of grep, find, sed and git commands on the same read-only tree, in turns, so that whatever
else the machine does falls on both. The last line is JSON:
    overhead_ms     median of a command's extra milliseconds, one session, commands of the two sides in turns
    ratio_64x20     time of 64 sessions at once with 20 commands each, start and end included, over that of plain bash
    setup_ms        median of taking a tree from the store and starting a sandbox on it, the store warm
    left_behind     processes, mounts and files that are still there after a trainer with open sessions was killed
    rss_growth_mb, open_files_growth    of this process, over the last nine tenths of 2,000 sessions
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil

from ppp.environments.sandbox import BubblewrapSandbox, check_sandbox
from ppp.environments.sandbox_output import Captured, show
from ppp.swe.mirrors import resolve_commit
from ppp.swe.trees import TreeStore

NUM_SESSIONS = 64
NUM_TURNS_OF_MIX = 5  # for the overhead of one command
NUM_SETUPS = 50
NUM_FOR_LEAKS, NUM_AT_ONCE = 2_000, 8
MIX = (  # $N is the number of the session, so that sessions do not all look at the same file
    "ls",
    "git log --oneline -20",
    "find . -name '*.py' -not -path './.git/*' | sort | head -50",
    "grep -rn 'import os' --include='*.py' . | head -20",
    "git ls-files '*.py' | sed -n '{N}p'",
    'sed -n "1,120p" "$(git ls-files "*.py" | sed -n "{N}p")"',
    "grep -rln 'def test_' --include='*.py' . | wc -l",
    "git grep -n 'class ' -- '*.py' | sed -n '{N},+20p'",
    "git show --stat HEAD | head -30",
    "find . -type d -not -path './.git/*' | head -40",
    'grep -n "^def \\|^class " "$(git ls-files "*.py" | sed -n "{N}p")"',
    "git log -5 --stat | tail -40",
    "git status --short | head",
    'sed -n "40,80p" "$(git ls-files "*.py" | sed -n "{N}p")"',
    "grep -rniE 'error|warn' --include='*.py' . | sed -n '{N},+10p'",
    'git log -3 --format="%h %s" -- "$(git ls-files "*.py" | sed -n "{N}p")"',
    "find . -name '*.md' -o -name '*.rst' | head",
    "git grep -c 'self' -- '*.py' | sort -t: -k2 -n | tail -5",
    'git blame -L 1,10 -- "$(git ls-files "*.py" | sed -n "{N}p")" | head',
    "wc -l $(git ls-files '*.py' | head -100) | tail -1",
)
TRAINER = """
import asyncio, sys
from pathlib import Path
from ppp.environments.sandbox import BubblewrapSandbox

async def main():
    sandboxes = [BubblewrapSandbox(Path(sys.argv[1]), mount_at=sys.argv[2]) for _ in range(8)]
    await asyncio.gather(*(sandbox.setup() for sandbox in sandboxes))
    await asyncio.gather(*(sandbox.run("head -c 1M /dev/zero > /tmp/x; mktemp -d; cd /tmp") for sandbox in sandboxes))
    print("up", flush=True)
    await asyncio.gather(*(sandbox.run("setsid -f sleep 600; sleep 600 & yes > /dev/null") for sandbox in sandboxes))

asyncio.run(main())
"""


def command_of(turn: int, session: int) -> str:
    return MIX[turn].replace("{N}", str(session + 1))


async def run_plainly(tree: Path, command: str) -> bytes:
    """The same command by bash as it is, in the tree."""
    process = await asyncio.create_subprocess_exec(
        *("/bin/bash", "--noprofile", "--norc", "-c", command),
        cwd=tree,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "GIT_OPTIONAL_LOCKS": "0", "HOME": "/nonexistent"},
    )
    output, _ = await process.communicate()
    return output


async def measure_overhead(tree: Path) -> dict[str, float]:
    """Milliseconds of each command of the mix, by turns without and with the sandbox; medians over all."""
    plain, boxed = [], []
    async with BubblewrapSandbox(tree) as sandbox:
        for repeat in range(NUM_TURNS_OF_MIX + 1):
            for turn in range(len(MIX)):
                command = command_of(turn, repeat)
                started = time.perf_counter()
                expected = await run_plainly(tree, command)
                between = time.perf_counter()
                result = await sandbox.run(command)
                ended = time.perf_counter()
                if not result.num_cut_chars:
                    limits = sandbox.limits
                    shown = show(Captured(expected), limits.max_output_chars, limits.max_line_chars).text
                    assert result.output == shown, f"{command}: {result} instead of {shown}"
                if repeat:  # the first one warms the caches
                    plain.append(between - started)
                    boxed.append(ended - between)
    extra = [with_it - without for without, with_it in zip(plain, boxed, strict=True)]
    return {
        "plain_ms": 1000 * statistics.median(plain),
        "boxed_ms": 1000 * statistics.median(boxed),
        "overhead_ms": 1000 * statistics.median(extra),
    }


async def run_sessions(tree: Path, *, boxed: bool) -> float:
    """Seconds of all sessions at once."""

    async def session(number: int) -> None:
        if not boxed:
            for turn in range(len(MIX)):
                await run_plainly(tree, command_of(turn, number))
            return
        async with BubblewrapSandbox(tree) as sandbox:
            for turn in range(len(MIX)):
                result = await sandbox.run(command_of(turn, number))
                assert not result.stopped_by, result

    started = time.perf_counter()
    await asyncio.gather(*map(session, range(NUM_SESSIONS)))
    return time.perf_counter() - started


async def measure_setup(store: TreeStore, repository: Path, commit: str) -> float:
    taken = []
    for _ in range(NUM_SETUPS):
        started = time.perf_counter()
        with store.tree(repository, commit) as tree:
            sandbox = BubblewrapSandbox(tree)
            await sandbox.setup()
            taken.append(time.perf_counter() - started)
            await sandbox.close()
    return 1000 * statistics.median(taken)


async def measure_leaks(tree: Path) -> dict[str, float]:
    """How memory and open files of this process grow from a tenth of the sessions to all of them."""
    process, left = psutil.Process(), iter(range(NUM_FOR_LEAKS))
    early: tuple[int, int] | None = None

    def now() -> tuple[int, int]:
        return process.memory_info().rss, process.num_fds()

    async def slot() -> None:
        nonlocal early
        for number in left:
            async with BubblewrapSandbox(tree) as sandbox:
                await sandbox.run("head -c 300000 /dev/zero | tr '\\0' x; echo x > /tmp/x; cd /tmp")
            if number == NUM_FOR_LEAKS // 10:
                early = now()

    await asyncio.gather(*(slot() for _ in range(NUM_AT_ONCE)))
    assert early is not None
    (rss, num_files), (early_rss, early_num_files) = now(), early
    return {
        "rss_growth_mb": (rss - early_rss) / 1e6,
        # Each slot may have had a session open at the earlier moment.
        "open_files_growth": max(0, num_files - early_num_files),
        "open_files": num_files,
    }


def find_left(mount_at: str, mounts: str, scratch: Path) -> list[str]:
    """What is there that would not be without the trainer that was killed."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if mount_at in " ".join(process.cmdline()):
                found.append(f"process {process.pid}")
    found += [f"mount {line}" for line in Path("/proc/self/mounts").read_text().splitlines() if line not in mounts]
    return found + [f"file {path}" for path in scratch.rglob("*")]


def measure_left_behind(tree: Path) -> int:
    """Kill a process that has eight sessions at work, and look a second later."""
    mount_at, mounts = f"/testbed-{uuid.uuid4().hex}", Path("/proc/self/mounts").read_text()
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-c", TRAINER, str(tree), mount_at]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": scratch}) as trainer:
            assert trainer.stdout is not None and trainer.stdout.readline() == b"up\n"
            time.sleep(0.5)
            num_before = len(find_left(mount_at, mounts, Path(scratch)))
            trainer.send_signal(signal.SIGKILL)
        time.sleep(1)
        left = find_left(mount_at, mounts, Path(scratch))
    print(f"killed with {num_before} processes, left behind: {', '.join(left) or 'nothing'}")
    return len(left)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, required=True, help="a git repository of Python code, bare or not")
    parser.add_argument("--commit", default="HEAD")
    parser.add_argument("--repeats", type=int, default=3, help="of the 64 sessions on either side; the medians count")
    arguments = parser.parse_args()
    check_sandbox("bubblewrap")
    commit = resolve_commit(arguments.repository, arguments.commit)  # tasks name theirs in full
    with tempfile.TemporaryDirectory() as folder:
        store = TreeStore(Path(folder))
        with store.tree(arguments.repository, commit) as tree:
            cost = asyncio.run(measure_overhead(tree))
            print(f"a command: {cost['plain_ms']:.1f} ms plain, {cost['boxed_ms']:.1f} ms in the sandbox (medians)")
            setup_ms = asyncio.run(measure_setup(store, arguments.repository, commit))
            print(f"set-up: {setup_ms:.1f} ms")
            plain, boxed = [], []
            for _ in range(arguments.repeats):
                plain.append(asyncio.run(run_sessions(tree, boxed=False)))
                boxed.append(asyncio.run(run_sessions(tree, boxed=True)))
                print(
                    f"{NUM_SESSIONS} x {len(MIX)}: {plain[-1]:.1f} s plain, {boxed[-1]:.1f} s in the sandbox",
                    flush=True,
                )
            leaks = asyncio.run(measure_leaks(tree))
            print(f"{NUM_FOR_LEAKS} sessions: {leaks['rss_growth_mb']:.1f} MB more, {leaks['open_files']} files open")
            left_behind = measure_left_behind(tree)
    result = {
        "overhead_ms": round(cost["overhead_ms"], 2),
        "ratio_64x20": round(statistics.median(boxed) / statistics.median(plain), 3),
        "setup_ms": round(setup_ms, 1),
        "left_behind": left_behind,
        "rss_growth_mb": round(leaks["rss_growth_mb"], 1),
        "open_files_growth": leaks["open_files_growth"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
