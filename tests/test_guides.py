"""The pages of `recipes/` hold: every example in them is run, in order, in a folder of its own (`guide.py`).

One process runs a whole page, as a reader would; each of its blocks is a test of its own here. After a change of what
an example prints: `GUIDE_UPDATE=1 pytest tests/test_guides.py`, and read the difference.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from agent_server import AgentServer
from guide import FENCE, read_blocks

ROOT = Path(__file__).parent.parent
PAGES = ("library.md", "adding.md")
TIMEOUT_S = 600
LANGUAGES = ("python", "yaml", "bash", "text")


@cache
def problems(page: str) -> dict[str, str]:
    """Line of a block -> what went wrong in it."""
    guide, path = Path(__file__).with_name("guide.py"), ROOT / "recipes" / page
    options = ["--update"] if os.environ.get("GUIDE_UPDATE") else []
    told = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}  # of which TRL prints a line
    with TemporaryDirectory() as folder, AgentServer("town") as server:
        report = Path(folder) / "report.json"
        (Path(folder) / "reader").mkdir()
        done = subprocess.run(
            [sys.executable, guide, path, f"{folder}/reader", report, *options],
            env={**told, "GUIDE_BASE_URL": server.base_url, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-5000:]
        found: dict[str, str] = json.loads(report.read_text())
        return found


BLOCKS = [(page, block) for page in PAGES for block in read_blocks(ROOT / "recipes" / page)]


@pytest.mark.parametrize(
    ("page", "line"), [pytest.param(page, block.line, id=f"{page}-{block.line}") for page, block in BLOCKS]
)
def test_example(page: str, line: int) -> None:
    assert str(line) not in problems(page), problems(page)[str(line)]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_language_that_is_run(page: str) -> None:
    text = (ROOT / "recipes" / page).read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(FENCE.findall(text))
    assert {language for language, _ in FENCE.findall(text)} <= set(LANGUAGES)


def test_ten_lines_are_ten_lines() -> None:
    first = next(block for page, block in BLOCKS if page == "library.md")
    assert len([line for line in first.text.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = FENCE.sub("", (ROOT / "recipes" / page).read_text(encoding="utf-8"))
    headings = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", text, re.M)
    }
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in headings, target
        else:
            assert (ROOT / "recipes" / target).is_file(), target


@pytest.mark.parametrize("page", PAGES)
def test_names_in_the_text_exist(page: str) -> None:
    """Paths and dotted names in backticks are those of files and objects that there are."""
    text = FENCE.sub("", (ROOT / "recipes" / page).read_text(encoding="utf-8"))
    for name in re.findall(r"`((?:ppp|tests)/[\w/]+\.py)`", text):
        assert (ROOT / name).is_file(), name
    for module, attribute in re.findall(r"`(ppp\.[a-z_.]+)\.([A-Z]\w+)`", text):
        assert attribute in vars(__import__(module, fromlist=["_"])), f"{module}.{attribute}"
