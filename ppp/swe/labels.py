"""Which functions a patch edits: its lines looked up in the syntax trees of the files before and after.

Removed lines belong to the old tree, added ones to the new one. What stands in a function belongs to the outermost
function: closures, classes in functions, decorators, docstrings. Comments, blank lines, imports and the docstrings of
modules and classes belong to nothing. Names have the form `path.py:Class.method`, the path as it is at the base commit.
Only Python files are looked at. Patches are read and applied in `patches.py`; rows are in `rows.py`.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from ppp.swe.patches import Applied, FileChange, PatchError, apply_change, parse_patch

# Rule -> what counts, as parts of `Labels`.
RULES: Mapping[str, tuple[str, ...]] = {
    "edited": ("edited",),
    "edited+added": ("edited", "added"),
    "edited+added+classes": ("edited", "added", "classes"),
}
SUFFIXES = (".py", ".pyi", ".pyw")
# Comments and strings of a file that parses; comments and short strings only so that no quote in them misleads.
_STRINGS = re.compile(
    r"""#[^\n]*|(\"{3}|'{3})(?:[^\\]|\\.)*?\1|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'""",
    re.DOTALL,
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class Labels:
    """What a patch edits; each name once, in the order of the patch.

    Attributes:
        functions: the label under the rule that was asked for.
        edited: functions of the old files whose lines go or that get new ones.
        added: functions that are new.
        classes: classes with changed lines of their own, outside their functions; new classes too.
        module_level: files with changed lines outside functions and classes.
        problems: files that have no tree, or whose hunks stand elsewhere than they say: what could not be told.
        num_moved_hunks: hunks that applied at another line than their header says.
    """

    functions: tuple[str, ...]
    edited: tuple[str, ...]
    added: tuple[str, ...]
    classes: tuple[str, ...]
    module_level: tuple[str, ...]
    problems: tuple[str, ...]
    num_moved_hunks: int = 0


@dataclass
class Outline:
    """What each line of code belongs to: (kind, name), kind "function", "class" or "module"; other lines are left out.

    Attributes:
        owners: line number, from 1 -> owner.
        functions: name of each function that is not inside another one -> the texts of its definitions.
    """

    owners: dict[int, tuple[str, str]] = field(default_factory=dict)
    functions: dict[str, list[str]] = field(default_factory=dict)


def edited_functions(patch: str, read_old: Callable[[str], str | None], rule: str = "edited") -> Labels:
    """The labels of a patch.

    Args:
        patch: a unified diff.
        read_old: path -> text of the file at the base commit, None where there is none.
        rule: a key of `RULES`.

    Raises:
        PatchError: the patch cannot be read or does not apply, or a file that it changes is missing.
    """
    found: dict[str, dict[str, None]] = {name: {} for name in ("edited", "added", "classes", "module_level")}
    problems: list[str] = []
    num_moved = 0
    for change in parse_patch(patch):
        if change.is_binary or not change.hunks or not change.path.endswith(SUFFIXES):
            continue
        old = "" if change.old_path is None else read_old(change.old_path)
        if old is None:
            raise PatchError(f"{change.path}: there is no such file at the base commit")
        applied = apply_change(change, old)
        num_moved += applied.num_moved
        try:
            before, after = outline(old), outline(applied.text)
        except SyntaxError as error:
            problems.append(f"{change.path}: not valid Python ({error.msg}, line {error.lineno})")
            continue
        for part, name in _touched(change, applied, before, after):
            found[part][name] = None
    parts = {name: tuple(names) for name, names in found.items()}
    functions = tuple(name for part in RULES[rule] for name in parts[part])
    return Labels(functions, **parts, problems=tuple(problems), num_moved_hunks=num_moved)


def _touched(change: FileChange, applied: Applied, before: Outline, after: Outline) -> Iterator[tuple[str, str]]:
    """(part of `Labels`, name) of every owner of changed lines of code, in the order of the patch."""
    signs: dict[tuple[str, str], set[str]] = {}
    for sign, line in applied.changed:
        owner = (before if sign == "-" else after).owners.get(line)
        if owner is not None:
            signs.setdefault(owner, set()).add(sign)
    for (kind, name), seen in signs.items():
        if kind == "module":
            yield "module_level", change.path
        elif kind == "class":
            yield "classes", f"{change.path}:{name}"
        elif name not in before.functions:
            yield "added", f"{change.new_path}:{name}"
        # A new function after one that ends alike can come as the end of the old one and all but the end of the new.
        elif len(seen) > 1 or before.functions[name] != after.functions.get(name):
            yield "edited", f"{change.path}:{name}"


@lru_cache(maxsize=64)  # what one commit makes of a file is what the next one finds
def outline(text: str) -> Outline:
    """What the lines of a Python file belong to.

    Raises:
        SyntaxError: this is no Python (of the version that runs this), also where the parser gives up otherwise.
    """
    # Lines as a patch counts them: to Python a lone carriage return ends a line as well.
    source = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", " ")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like are theirs
            tree = ast.parse(source)
            code = set(_code_lines(source))
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError(str(error) or type(error).__name__) from error
    owners: dict[int, tuple[str, str]] = dict.fromkeys(code, ("module", ""))
    found = Outline(owners)
    _own(tree, "", source.split("\n"), found)
    found.owners = {line: owner for line, owner in owners.items() if line in code and owner[0] != "nothing"}
    return found


def _own(node: ast.AST, prefix: str, lines: Sequence[str], found: Outline) -> None:
    """Write the owners of the lines of a module, a class, or a statement in one of them; later, inner ones win."""
    if isinstance(node, ast.Module | ast.ClassDef):
        head = node.body[0] if node.body else None
        if isinstance(head, ast.Expr) and isinstance(head.value, ast.Constant) and isinstance(head.value.value, str):
            _mark(head, ("nothing", ""), found)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _FUNCTIONS):
            name = prefix + child.name
            first, last = _mark(child, ("function", name), found)
            found.functions.setdefault(name, []).append("\n".join(lines[first - 1 : last]))
        elif isinstance(child, ast.ClassDef):
            _mark(child, ("class", prefix + child.name), found)
            _own(child, f"{prefix}{child.name}.", lines, found)
        elif isinstance(child, ast.Import | ast.ImportFrom):
            _mark(child, ("nothing", ""), found)
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            _own(child, prefix, lines, found)


def _mark(node: ast.stmt, owner: tuple[str, str], found: Outline) -> tuple[int, int]:
    """Write the owner of a statement's lines, decorators included; returns the first and the last of them."""
    decorators = node.decorator_list if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) else []
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    last = node.end_lineno or node.lineno
    found.owners.update(dict.fromkeys(range(first, last + 1), owner))
    return first, last


def _code_lines(source: str) -> Iterator[int]:
    """Lines that hold more than a comment; all lines of a string of several count. `tokenize` would take longer."""
    for number, line in enumerate(source.split("\n"), start=1):
        text = line.strip()
        if text and text != "\\" and not text.startswith("#"):
            yield number
    line_number = position = 0
    for match in _STRINGS.finditer(source):
        first, last = match.span()
        if "\n" in match.group():
            line_number += source.count("\n", position, first)
            num_more = source.count("\n", first, last)
            yield from range(line_number + 1, line_number + num_more + 2)
            line_number, position = line_number + num_more, last
