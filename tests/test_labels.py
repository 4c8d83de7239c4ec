"""The label of a patch is the function that was edited."""

from __future__ import annotations

import json
import os
import random
import runpy
import subprocess
import sysconfig
from collections import defaultdict
from functools import cache
from pathlib import Path
from types import CodeType

import pytest
from test_patches import make_patch

from ppp.swe.labels import RULES, Labels, edited_functions, outline
from ppp.swe.patches import PatchError, parse_patch

ROOT = Path(__file__).parent.parent


def label(old: str | None, new: str | None, path: str = "a.py", rule: str = "edited") -> Labels:
    """The labels of the patch from `old` to `new`; None is no file."""
    patch = make_patch(old or "", new or "", path)
    if old is None:
        patch = patch.replace(f"--- a/{path}", "--- /dev/null")
    if new is None:
        patch = patch.replace(f"+++ b/{path}", "+++ /dev/null")
    return edited_functions(patch, {path: old}.get, rule)


BASE = '''\
"""A module."""

import os
import typing

LIMIT = 3


def free(x):
    """What it does."""
    # a remark
    return x


class Outer:
    """A class."""

    field = 1

    def method(self):
        import json

        return json

    class Inner:
        def method(self):
            return 1

        async def later(self):
            return 2

    @property
    def value(self):
        return self._value

    @value.setter
    def value(self, new):
        self._value = new


def outer():
    def closure():
        return 1

    class Local:
        def method(self):
            return 2

    return closure, Local, lambda: 3


if os.name == "nt":

    def by_system():
        return "nt"

else:

    def by_system():
        return "posix"


@typing.overload
def over(x: int) -> int: ...


@typing.overload
def over(x: str) -> str: ...


def over(x):
    return x


try:
    pass
except ImportError:

    def rescued():
        return None


match LIMIT:
    case 3:

        def matched():
            return 3


last = {
    "a": 1,
}
'''

MATCH = "\n\n\nmatch LIMIT:\n    case 3:\n\n        def matched():\n            return "
FREE = 'def free(x):\n    """What it does."""\n    # a remark\n    return x\n\n\n'
NEW_CLASS = "class New:\n    def m(self):\n        pass\n\n\n"
NEW_METHOD = "    def new(self):\n        return 1\n\n"

# What is replaced, by what -> what is edited, added, which classes; MODULE where something of the module's own changes.
MODULE = "the module"
EDITS: dict[str, tuple[str, str, dict[str, list[str]]]] = {
    "a body": ("return x\n\n\nclass", "return x + 1\n\n\nclass", {"edited": ["free"]}),
    "a docstring": ("What it does.", "What it really does.", {"edited": ["free"]}),
    "a signature": ("def free(x)", "def free(x, y=None)", {"edited": ["free"]}),
    "lines that go": ("import json\n\n        return json", "pass", {"edited": ["Outer.method"]}),
    "a nested class": ("return 1\n\n        async", "return 5\n\n        async", {"edited": ["Outer.Inner.method"]}),
    "async": ("return 2\n\n    @property", "return 4\n\n    @property", {"edited": ["Outer.Inner.later"]}),
    "a decorator": ("@property", "@functools.cached_property", {"edited": ["Outer.value"]}),
    "a new decorator": ("def outer", "@cache\ndef outer", {"edited": ["outer"]}),
    "a setter": ("self._value = new", "self._value = int(new)", {"edited": ["Outer.value"]}),
    "a closure": ("return 1\n\n    class", "return 7\n\n    class", {"edited": ["outer"]}),
    "a method of a local class": ("return 2\n\n    return", "return 8\n\n    return", {"edited": ["outer"]}),
    "a new closure": ("def closure", "def second():\n        pass\n\n    def closure", {"edited": ["outer"]}),
    "in one branch": ('return "nt"', 'return "win"', {"edited": ["by_system"]}),
    "a handler": ("return None", "return 0", {"edited": ["rescued"]}),
    "a case": ("            return 3", "            return 4", {"edited": ["matched"]}),
    "an overload": ("x: str) -> str", "x: bytes) -> bytes", {"edited": ["over"]}),
    "an import in a function": ("import json", "import simplejson as json", {"edited": ["Outer.method"]}),
    "two functions": (f"return None{MATCH}3", f"return 0{MATCH}4", {"edited": ["rescued", "matched"]}),
    "a new function": ("def outer", "def new():\n    return 1\n\n\ndef outer", {"added": ["new"]}),
    "a new method": ("    class Inner", NEW_METHOD + "    class Inner", {"added": ["Outer.new"]}),
    "a new class": ("def outer", NEW_CLASS + "def outer", {"added": ["New.m"], "classes": ["New"]}),
    "another name": ("def free(x):", "def freed(x):", {"edited": ["free"], "added": ["freed"]}),
    "a whole function goes": (FREE, "", {"edited": ["free"]}),
    "a field of a class": ("field = 1", "field = 2", {"classes": ["Outer"]}),
    "a base of a class": ("class Outer:", "class Outer(Base):", {"classes": ["Outer"]}),
    "a line of the module": ("LIMIT = 3", "LIMIT = 4", {MODULE: []}),
    "an entry of the module": ('"a": 1', '"a": 2', {MODULE: []}),
    "a remark": ("# a remark", "# another remark", {}),
    "a blank line": ("\n    # a remark", "\n\n    # a remark", {}),
    "an import": ("import os", "import os.path", {}),
    "the docstring of a class": ("A class.", "Another class.", {}),
    "the docstring of the module": ("A module.", "Another module.", {}),
    "a remark after code": ("return x\n\n\nclass", "return x  # as it is\n\n\nclass", {"edited": ["free"]}),
}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_labelled_with_what_it_edits(name: str, newline: str) -> None:
    gone, come, expected = EDITS[name]
    assert BASE.count(gone) == 1
    old, new = (text.replace("\n", newline) for text in (BASE, BASE.replace(gone, come)))
    labels = label(old, new)
    for part, names in {"edited": labels.edited, "added": labels.added, "classes": labels.classes}.items():
        assert set(names) == {f"a.py:{one}" for one in expected.get(part, [])}
    assert labels.module_level == (("a.py",) if MODULE in expected else ())
    assert not labels.problems


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_says_what_counts(rule: str) -> None:
    new = BASE.replace("return x\n\n\nclass", "return 0\n\n\nclass").replace("field = 1", "field = 2")
    new = new.replace("def outer", "def new():\n    pass\n\n\ndef outer")
    labels = label(BASE, new, rule=rule)
    expected = {"edited": ["free"], "added": ["new"], "classes": ["Outer"]}
    assert labels.functions == tuple(f"a.py:{name}" for part in RULES[rule] for name in expected[part])


def test_all_of_a_new_file_is_added_and_all_of_a_deleted_one_edited() -> None:
    names = {f"a.py:{name}" for name in outline(BASE).functions}
    assert set(label(None, BASE).added) == names == set(label(BASE, None).edited)
    assert not label(None, BASE).edited and not label(BASE, None).added


def test_a_renamed_file_keeps_its_old_path_for_what_it_had() -> None:
    patch = make_patch(BASE, BASE.replace("return x\n\n\nclass", "return 0\n\n\ndef new():\n    pass\n\n\nclass"))
    patch = patch.replace("+++ b/a.py", "+++ b/pkg/b.py")
    patch = "diff --git a/a.py b/pkg/b.py\nsimilarity index 90%\nrename from a.py\nrename to pkg/b.py\n" + patch
    labels = edited_functions(patch, {"a.py": BASE}.get)
    assert labels.edited == ("a.py:free",) and labels.added == ("pkg/b.py:new",)
    bare = "diff --git a/a.py b/b.py\nsimilarity index 100%\nrename from a.py\nrename to b.py\n"
    assert edited_functions(bare, {"a.py": BASE}.get).functions == ()


def test_hunks_at_an_offset_are_labelled_by_where_they_apply() -> None:
    patch = make_patch(BASE, BASE.replace("field = 1", "field = 2").replace("return None", "return 0"))
    labels = edited_functions(patch, {"a.py": "# new\n" * 9 + BASE}.get)
    assert labels.edited == ("a.py:rescued",) and labels.classes == ("a.py:Outer",)
    assert labels.num_moved_hunks == 2


@pytest.mark.parametrize("gone", [False, True])
def test_a_function_is_not_edited_by_one_that_comes_or_goes_after_it_and_ends_alike(gone: bool) -> None:
    one, two = "def one():\n    a()\n    return 1\n", "def one():\n    a()\n    return 1\n\ndef two():\n    return 1\n"
    sign, old, counts = ("-", two, "1,6 +1,3") if gone else ("+", one, "1,3 +1,6")
    body = f" def one():\n     a()\n{sign}    return 1\n{sign}\n{sign}def two():\n     return 1\n"
    labels = edited_functions(f"--- a/a.py\n+++ b/a.py\n@@ -{counts} @@\n{body}", {"a.py": old}.get)
    assert (labels.edited, labels.added) == ((("a.py:two",), ()) if gone else ((), ("a.py:two",)))


def test_a_function_that_only_moves_within_its_file_is_edited() -> None:
    first, second = "def one():\n    return 1\n\n\n", "def two():\n    return 2\n\n\ndef three():\n    return 3\n\n\n"
    assert label(first + second, second + first).edited == ("a.py:one",)


def test_files_that_are_not_python_have_no_label() -> None:
    for path in ("a.txt", "a.rst", "a.pyx", "py"):
        assert label("def f(): pass\n", "def f(): return\n", path).functions == ()
    assert label("def f(): ...\n", "def f() -> int: ...\n", "a.pyi").functions == ("a.pyi:f",)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("print 'two'\n", "print 'three'\n"),
        ("x = 1\n", "x = (\n"),
        ("x = '\0'\n", "x = '\0\0'\n"),
        ("x = '\ud800'\n", "x = '\udc00'\n"),
        ("x = 1\n", "x = " + "(" * 3000 + ")" * 3000 + "\n"),
        ("if x:\n        y\n    z\n", "if x:\n        y\n    a\n"),
    ],
)
def test_a_file_without_a_tree_is_named_and_the_others_are_labelled(old: str, new: str) -> None:
    patch = make_patch(old, new, "bad.py") + make_patch(BASE, BASE.replace("return None", "return 0"))
    labels = edited_functions(patch, {"bad.py": old, "a.py": BASE}.get)
    assert labels.functions == ("a.py:rescued",)
    (problem,) = labels.problems
    assert problem.startswith("bad.py: not valid Python (")


def test_a_missing_file_and_a_patch_that_does_not_fit_are_refused() -> None:
    patch = make_patch(BASE, BASE.replace("return None", "return 0"))
    with pytest.raises(PatchError, match=r"a\.py: there is no such file at the base commit"):
        edited_functions(patch, lambda path: None)
    with pytest.raises(PatchError, match=r"a\.py: hunk 1 .* does not apply"):
        edited_functions(patch, lambda path: "x = 1\n")


def test_odd_separators_do_not_shift_lines() -> None:
    old = "\ufeffs = '\u2028\x0c\x85'\nt = 'a\rb'\n\x0c\ndef f():\n    return 1\n\n\ndef g():\n    return 2\n"
    patch = "--- a/a.py\n+++ b/a.py\n@@ -9 +9 @@\n-    return 2\n+    return 3\n"
    assert edited_functions(patch, {"a.py": old}.get).functions == ("a.py:g",)


# ---------------------------------------------------------------- generated edits on real files

MODULES = (
    "abc", "asyncio.locks", "asyncio.queues", "asyncio.taskgroups", "cmd", "codeop", "contextlib", "copy", "csv",
    "fnmatch", "functools", "getpass", "glob", "graphlib", "heapq", "hmac", "html.parser", "json.decoder",
    "json.encoder", "numbers", "pprint", "queue", "reprlib", "sched", "secrets", "selectors", "shlex", "tempfile",
    "textwrap", "types", "unittest.suite", "weakref", "zipapp",
)  # fmt: skip


@cache
def functions_by_line(module: str) -> tuple[str, dict[int, str]]:
    """The source of a module, and the function that the compiler puts each line of code into: not our own tree."""
    path = Path(sysconfig.get_path("stdlib"), *module.split(".")).with_suffix(".py")
    source = path.read_text(encoding="utf-8")
    owners: defaultdict[int, set[str]] = defaultdict(set)

    def visit(code: CodeType) -> None:
        name = code.co_qualname.partition(".<locals>")[0]
        is_function = code.co_flags & 0x2 and "<" not in name  # own locals: no class body; no lambda of the module
        for _, _, line in code.co_lines():
            if line:
                owners[line].add(name if is_function else "")
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                visit(constant)

    visit(compile(source, str(path), "exec"))
    return source, {line: names.pop() for line, names in owners.items() if len(names) == 1 and names != {""}}


def git_diff(folder: Path, old: str, new: str, context: int) -> str:
    """A patch by git, from old/m.py to new/m.py."""
    for name, text in (("old", old), ("new", new)):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "m.py").write_text(text, encoding="utf-8", newline="")
    command = ["git", "diff", "--no-index", f"-U{context}", "old/m.py", "new/m.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    assert done.returncode == 1, done.stderr
    return done.stdout.decode("utf-8")


@pytest.mark.parametrize("num_edits", [1, 4])
@pytest.mark.parametrize("module", MODULES)
def test_lines_edited_in_real_files_are_labelled_with_their_functions(
    module: str, num_edits: int, tmp_path: Path
) -> None:
    source, owners = functions_by_line(module)
    lines = source.split("\n")
    rng = random.Random(f"{module}-{num_edits}")
    candidates = [line for line in sorted(owners) if not lines[line - 1].endswith("\\")]
    for _ in range(3):
        chosen = rng.sample(candidates, min(num_edits, len(candidates)))
        edited = list(lines)
        for line in chosen:
            edited[line - 1] += " " * rng.randint(1, 3)
        patch = git_diff(tmp_path, source, "\n".join(edited), context=rng.randint(0, 3))
        # Elsewhere than the hunks say only where they can be told from others: repeated code fits in many places.
        old_texts = ["\n".join(hunk.old) for hunk in parse_patch(patch)[0].hunks]
        shift = rng.randint(1, 3) if all(source.count(text) == 1 for text in old_texts) else 0
        labels = edited_functions(patch, {"old/m.py": "# moved\n" * shift + source}.get)
        assert set(labels.functions) == {f"old/m.py:{owners[line]}" for line in chosen}
        assert bool(labels.num_moved_hunks) == bool(shift)
        assert not labels.added and not labels.classes and not labels.module_level


def test_the_compiler_that_this_is_checked_against_knows_closures() -> None:
    source, owners = functions_by_line("functools")
    closure = source[: source.index("def decorating_function(")].count("\n") + 2  # its first line
    assert owners[closure] == "lru_cache"
    assert not any("<" in name for name in owners.values())


# ---------------------------------------------------------------- labels made elsewhere


@pytest.mark.skipif("PPP_TEST_DATA" not in os.environ, reason="PPP_TEST_DATA is not set: no real issues at hand")
@pytest.mark.skipif(
    "PPP_TEST_MIRRORS" not in os.environ,
    reason="PPP_TEST_MIRRORS is not set: it names a folder with clones of pytest-dev/pytest and sphinx-doc/sphinx",
)
@pytest.mark.parametrize("rule", RULES)
def test_labels_of_real_issues_agree_with_those_made_elsewhere(rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    issues = Path(os.environ["PPP_TEST_DATA"]) / "swe" / "funcloc_dev.jsonl"
    check = runpy.run_path(str(ROOT / "scripts" / "check_labels.py"))["main"]
    assert check(["--issues", str(issues), "--repositories", os.environ["PPP_TEST_MIRRORS"], "--rule", rule]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["num_issues"] >= 84 and report["num_exact"] == report["num_issues"]
