"""What someone gets who installs the wheel and has no checkout: code, prompts, templates and recipes."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ppp

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True, stdin=subprocess.DEVNULL)
    (path,) = folder.glob("*.whl")
    return path


def source_files(folder: Path) -> list[str]:
    skipped = {"__pycache__", ".gitkeep"}
    files = (path for path in folder.rglob("*") if path.is_file() and not skipped & set(path.parts))
    return sorted(path.relative_to(folder).as_posix() for path in files)


@pytest.mark.parametrize(
    ("folder", "inside"), [("ppp", "ppp"), ("recipes", "ppp/recipes"), ("accelerate_configs", "ppp/accelerate_configs")]
)
def test_wheel_holds_every_file_of(wheel: Path, folder: str, inside: str) -> None:
    expected = [f"{inside}/{name}" for name in source_files(ROOT / folder)]
    assert expected, f"{folder} is empty"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert [name for name in expected if name not in names] == []


def test_wheel_carries_version_and_licence_but_no_tests(wheel: Path) -> None:
    assert wheel.name.startswith(f"ppp-{ppp.__version__}-py3-none-any")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "scripts/")) for name in names)


def test_prompts_templates_and_recipes_are_read_from_the_wheel_outside_the_checkout(
    wheel: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = (
        "from importlib.resources import files\n"
        "import ppp\n"
        "from ppp.prompts import load_prompt\n"
        "root = files('ppp')\n"
        "kinds = {'prompts': '', 'chat_templates': '.jinja', 'recipes': '.yaml'}\n"
        "for kind, suffix in kinds.items():\n"
        "    found = [f for f in root.joinpath(kind).iterdir() if f.is_file() and f.name.endswith(suffix)]\n"
        "    assert found and all(f.read_text(encoding='utf-8').strip() for f in found), kind\n"
        "for prompt in root.joinpath('prompts').iterdir():\n"
        "    assert prompt.name.endswith('.py') or not prompt.is_file() or load_prompt(prompt.name)\n"
        "print(ppp.__file__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path), "the checkout was imported, not the wheel"
