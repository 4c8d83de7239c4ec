"""Small git repositories for tests, made with git itself, and what ought to be in them, worked out without it."""

from __future__ import annotations

import os
import random
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

GIT_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "C",
    "GIT_COMMITTER_EMAIL": "c@example.org",
    "GIT_AUTHOR_DATE": "1500000000 +0000",
    "GIT_COMMITTER_DATE": "1500000000 +0000",
}


def git(folder: Path, *arguments: str, stdin: bytes | None = None) -> str:
    """What git says, without the white space around it; the settings of whoever runs the tests do not count."""
    return git_text(folder, *arguments, stdin=stdin).strip()


def git_text(folder: Path, *arguments: str, stdin: bytes | None = None) -> str:
    """What git says, to the last character: a patch may end in spaces."""
    command = ["git", "-c", "safe.directory=*", "-c", "init.defaultBranch=main", *arguments]
    done = subprocess.run(command, cwd=folder, input=stdin, env=GIT_ENVIRONMENT, capture_output=True)
    assert done.returncode == 0, f"git {arguments}: {done.stderr.decode()}"
    return done.stdout.decode("utf-8", "surrogateescape")


@dataclass
class History:
    """A repository with commits 0, 1, ...; `parents` of each by number, `ids` by number."""

    path: Path
    ids: list[str]
    parents: list[list[int]]
    files: list[dict[str, bytes]] = field(default_factory=list)

    def generations(self, number: int, depth: int | None) -> set[int]:
        """Commits at most `depth - 1` parents away, itself among them; with None all that it descends from."""
        found, newest = {number}, {number}
        while newest and (depth is None or depth > 1):
            newest = {parent for commit in newest for parent in self.parents[commit]} - found
            found |= newest
            depth = None if depth is None else depth - 1
        return found

    def objects(self, numbers: set[int]) -> set[str]:
        """These commits with their trees and files, nothing else."""
        found = {self.ids[number] for number in numbers}
        for number in numbers:
            found.add(git(self.path, "rev-parse", f"{self.ids[number]}^{{tree}}"))
            for line in git(self.path, "ls-tree", "-r", "-t", self.ids[number]).splitlines():
                _, kind, rest = line.split(" ", 2)
                found |= {rest.split("\t")[0]} if kind != "commit" else set()
        return found


def random_history(path: Path, seed: int, num_commits: int = 14, object_format: str = "sha1") -> History:
    """Merges, branches, tags of both kinds, notes, a stash, a replaced commit, reflogs, and commits on no branch."""
    rng = random.Random(seed)
    path.mkdir(parents=True)
    git(path, "init", "--quiet", "--initial-branch=main", f"--object-format={object_format}")
    stream, parents, files = [], [], []
    for number in range(num_commits):
        mothers = rng.sample(range(number), k=min(number, rng.choice([1, 1, 1, 2]))) if number else []
        content = dict(files[mothers[0]]) if mothers else {}
        for _ in range(rng.randint(1, 3)):
            name = rng.choice(["a.py", "b/c.py", "b/d/e.txt", f"new{number}.py"])
            content[name] = f"# {rng.random()} of {number}\n".encode() * rng.randint(1, 30)
        parents.append(mothers)
        files.append(content)
        message = f"commit {number}"
        stream.append(f"commit refs/heads/c{number}\nmark :{number + 1}\n")
        stream.append(f"committer C <c@example.org> {1_500_000_000 + 1000 * number} +0000\n")
        stream.append(f"data {len(message)}\n{message}\n")
        stream += [f"{'merge' if index else 'from'} :{mother + 1}\n" for index, mother in enumerate(mothers)]
        stream.append("deleteall\n")
        for name, data in content.items():
            stream.append(f"M 100644 inline {name}\ndata {len(data)}\n{data.decode()}\n")
    git(path, "fast-import", "--quiet", "--export-marks=marks", stdin="".join(stream).encode())
    marks = dict(line.split() for line in (path / "marks").read_text().splitlines())
    (path / "marks").unlink()
    history = History(path, [marks[f":{number + 1}"] for number in range(num_commits)], parents, files)
    _add_refs(history, rng)
    return history


def _add_refs(history: History, rng: random.Random) -> None:
    path, ids, last = history.path, history.ids, len(history.ids) - 1
    git(path, "reset", "--hard", "--quiet", ids[last])
    git(path, "reset", "--hard", "--quiet", ids[last // 2])  # ORIG_HEAD and reflogs know the later one
    for number in range(0, last + 1, 3):
        git(path, "tag", f"light{number}", ids[number])
        git(path, "tag", "-a", "-m", f"told by tag {number}", f"heavy{number}", ids[number])
        git(path, "notes", "add", "-m", f"told by note {number}", ids[number])
    (path / "a.py").write_text("stashed = True\n")
    git(path, "add", "-A")
    git(path, "stash", "--quiet")
    git(path, "replace", ids[0], ids[last])
    git(path, "fetch", "--quiet", ".", "HEAD")  # FETCH_HEAD
    tree = git(path, "rev-parse", "HEAD^{tree}")
    git(path, "commit-tree", "-p", ids[last], "-m", "dangling", tree)
    git(path, "hash-object", "-w", "--stdin", stdin=b"def the_answer(): ...\n")
    for number in rng.sample(range(last), k=last // 2):
        git(path, "branch", "-D", "--quiet", f"c{number}")
    if rng.random() < 0.7:
        git(path, "repack", "-a", "-d", "-k", "--quiet", *(["-b"] if rng.random() < 0.5 else []))
        git(path, "pack-refs", "--all")
        git(path, "commit-graph", "write", "--reachable")
