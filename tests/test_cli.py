"""The `ppp` command hands over to the right module, with the rest of the command line and the exit status."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from ppp import __version__
from ppp.cli import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_main_that_gets_its_own_options(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def spy(argv: list[str]) -> int:
        given.append(argv)
        return 7

    module = importlib.import_module(COMMANDS[name][0])
    assert callable(module.main)
    monkeypatch.setattr(module, "main", spy)
    assert main([name, "--help", "--config", "x"]) == 7
    assert given == [["--help", "--config", "x"]]


def test_version_and_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0 and __version__ in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["trian"])
    assert stopped.value.code == 2 and "train" in capsys.readouterr().err
