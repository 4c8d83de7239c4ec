"""Runs the examples of a page one after the other, as a reader would: `python guide.py PAGE.md FOLDER REPORT.json`.

With `--update` it writes what was printed into the page's blocks `text` instead of comparing them.
A block of Python whose first line is a comment with the name of a file becomes that file and is imported, one that is
called `test_*.py` is run by pytest, and any other is executed in one namespace for the whole page. A block of YAML with
such a line becomes a recipe, shell lines are commands of `ppp`, and a block `text` is what the block before it printed.
The report says of each block, by its line, what went wrong. GUIDE_BASE_URL takes the place of the page's endpoint.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib
import inspect
import io
import json
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
ENDPOINT = "http://127.0.0.1:8000/v1"
FILE_NAME = re.compile(r"# ([\w.]+\.(?:py|yaml))\n")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page: the line where it starts, its language, its text and the file that it stands for."""

    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        found = FILE_NAME.match(self.text)
        return found[1] if found else None


def read_blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        code = found[2].replace(ENDPOINT, os.environ.get("GUIDE_BASE_URL", ENDPOINT))
        yield Block(text.count("\n", 0, found.start()) + 1, found[1], code)


class Reader:
    """Somebody who does what a page says, in the current folder."""

    def __init__(self) -> None:
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.printed = ""

    def do(self, block: Block) -> None:
        """Carry out one block; what it prints is kept for the block behind it, and told where it fails."""
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                getattr(self, f"do_{block.language}")(block)
        except BaseException:
            sys.stdout.write(printed.getvalue())
            raise
        self.printed = printed.getvalue()

    def do_python(self, block: Block) -> None:
        if block.file is None:
            self._execute(block)
            return
        Path(block.file).write_text(block.text, encoding="utf-8")
        if block.file.startswith("test_"):
            quiet = "ignore::pytest.PytestAssertRewriteWarning"
            assert pytest.main(["-q", "-p", "no:cacheprovider", "-W", quiet, block.file]) == 0
        else:
            importlib.invalidate_caches()
            importlib.import_module(block.file.removesuffix(".py"))

    def _execute(self, block: Block) -> None:
        """As in a notebook, which allows `await` outside of a function."""
        code = compile(block.text, f"line {block.line}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, self.namespace))
        else:
            exec(code, self.namespace)

    def do_yaml(self, block: Block) -> None:
        from ppp.recipe import read_recipe
        from ppp.recipe_config import RecipeConfig

        if block.file is not None:
            Path(block.file).write_text(block.text, encoding="utf-8")
            read_recipe(["--config", block.file])
            return
        import yaml

        assert set(yaml.safe_load(block.text)) <= set(vars(RecipeConfig)["__dataclass_fields__"])

    def do_bash(self, block: Block) -> None:
        from ppp.cli import main

        for line in block.text.splitlines():
            words = shlex.split(line, comments=True)
            if not words:
                continue
            assert words[0] == "ppp", f"the tests can run ppp only: {line}"
            with contextlib.redirect_stderr(io.StringIO()) as said:
                status = main(words[1:])
            assert status == 0, f"{line}: {status}\n{said.getvalue()}"

    def do_text(self, block: Block) -> None:
        printed, shown = (
            [line.rstrip() for line in text.strip("\n").splitlines()] for text in (self.printed, block.text)
        )
        assert printed == shown, "the block before printed\n" + "\n".join(printed)


def main(page: Path, folder: Path, report: Path, update: bool = False) -> None:
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    reader, problems, printed = Reader(), {}, []
    for block in read_blocks(page):
        said = io.StringIO()
        try:
            if block.language == "text" and update:
                printed.append(reader.printed)
                continue
            with contextlib.redirect_stdout(said):
                reader.do(block)
        except (Exception, SystemExit):
            problems[block.line] = said.getvalue() + traceback.format_exc()
    report.write_text(json.dumps(problems))
    if update and not problems:
        page.write_text(with_printed(page.read_text(encoding="utf-8"), printed), encoding="utf-8")


def with_printed(text: str, printed: list[str]) -> str:
    """The page with what was printed in its blocks `text`."""
    left = iter(printed)

    def block(found: re.Match[str]) -> str:
        if found[1] != "text":
            return found[0]
        lines = "\n".join(line.rstrip() for line in next(left).strip("\n").splitlines())
        return f"```text\n{lines}\n```"

    return FENCE.sub(block, text)


if __name__ == "__main__":
    paths = [Path(argument).resolve() for argument in sys.argv[1:] if argument != "--update"]
    main(paths[0], paths[1], paths[2], "--update" in sys.argv)
