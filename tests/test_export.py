"""The model that a run leaves: a plain folder, whole or as an adapter, from the end of the run or from a checkpoint."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from ppp.cli import main
from ppp.model_card import fenced, inline, model_card

LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "max_steps": 2, "save_steps": 1}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return runs.town_recipe(runs.save_town_model(tmp_path_factory.mktemp("town")))


@pytest.fixture(scope="module")
def adapter_run(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("lora") / "run"
    status, output = runs.train({**recipe, **LORA}, output_dir)
    assert status == 0, output
    return output_dir


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(5, 45)[None]).logits


def test_a_run_with_lora_leaves_an_adapter_or_merged_weights_that_say_the_same(
    recipe: dict[str, Any], adapter_run: Path, tmp_path: Path
) -> None:
    status, output = runs.train({**recipe, **LORA, "merge_lora": True}, tmp_path / "merged")
    assert status == 0, output
    assert not list((tmp_path / "merged").glob("adapter_*"))
    adapter = AutoPeftModelForCausalLM.from_pretrained(adapter_run)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(recipe["model_name_or_path"])
    torch.testing.assert_close(logits(merged), logits(adapter), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(base), logits(adapter), atol=1e-2), "nothing was trained"
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


def test_a_checkpoint_is_exported_as_adapter_and_merged(adapter_run: Path, tmp_path: Path) -> None:
    checkpoint = adapter_run / "checkpoint-1"
    assert main(["export", str(checkpoint), str(tmp_path / "adapter")]) == 0
    assert main(["export", str(checkpoint), str(tmp_path / "merged"), "--merge_lora"]) == 0
    adapter = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(adapter), atol=1e-4, rtol=1e-4)
    for name in ("adapter", "merged"):
        files = {path.name for path in (tmp_path / name).iterdir()}
        assert {"tokenizer.json", "chat_template.jinja", "README.md"} <= files
        assert not {path for path in files if path.startswith(("optimizer", "rng_", "trainer_", "run_facts"))}
        assert AutoTokenizer.from_pretrained(tmp_path / name).chat_template
    assert not list((tmp_path / "merged").glob("adapter_*"))


def test_of_a_run_that_was_stopped_the_newest_checkpoint_is_exported(
    adapter_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    for name in ("checkpoint-1", "checkpoint-2", "metrics.jsonl", "recipe.yaml", "versions.json"):
        (stopped / name).symlink_to(adapter_run / name)
    assert main(["export", str(stopped), str(tmp_path / "out")]) == 0
    assert "checkpoint-2" in capsys.readouterr().out


def test_of_a_finished_run_the_model_is_exported_unless_a_checkpoint_is_newer(
    adapter_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(adapter_run, run)
    assert main(["export", str(run), str(tmp_path / "final")]) == 0
    assert "checkpoint" not in capsys.readouterr().out
    state = run / "checkpoint-2" / "trainer_state.json"
    later = (run / "adapter_config.json").stat().st_mtime + 60
    os.utime(state, (later, later))
    assert main(["export", str(run), str(tmp_path / "newer")]) == 0
    assert "checkpoint-2" in capsys.readouterr().out


def test_what_cannot_be_exported_is_refused_in_one_sentence(
    adapter_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text("{}")
    (tmp_path / "weightless").mkdir()
    (tmp_path / "weightless" / "config.json").write_text("{}")
    (tmp_path / "torn" / "recipe.yaml").write_text("a: [")
    capsys.readouterr()
    for arguments, expected in {
        (str(tmp_path), str(tmp_path / "out")): "source:",
        (str(adapter_run), str(tmp_path / "full")): "out:",
        (str(adapter_run / "checkpoint-9"), str(tmp_path / "out")): "source:",
        (str(adapter_run), str(tmp_path / "full" / "precious" / "out")): "out:",
        (str(tmp_path / "torn"), str(tmp_path / "out")): "source:",
        (str(tmp_path / "weightless"), str(tmp_path / "out")): "source:",
    }.items():
        assert main(["export", *arguments]) == 2
        message = capsys.readouterr().err.strip()
        assert message.startswith(f"ppp export: {expected}") and "\n" not in message
        assert not (tmp_path / "out").exists()


# --- the card ---------------------------------------------------------------------------------------------------------


def test_the_card_tells_recipe_and_scores_and_starts_with_what_the_hub_reads(adapter_run: Path) -> None:
    card = (adapter_run / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "peft"
    assert re.search(r"\| productivity \| \d+\.\d \|", body), body
    assert "training, mean of steps 1 to 2" in body
    block = re.search(r"```yaml\n(.*?)\n```", body, re.S)
    assert block is not None
    assert yaml.safe_load(block[1])["lora_r"] == 4
    assert "AutoPeftModelForCausalLM" in body and "trl 1.16" in body


def test_nothing_in_a_recipe_becomes_markup_or_gives_away_a_secret(tmp_path: Path) -> None:
    values = {
        "model_name_or_path": "owner/name",
        "hub_token": "hf_secret",
        "user": {"kind": "llm", "base_url": "https://me:secret@host/v1", "model": "```\n# Owned\n<script>"},
    }
    card = model_card(tmp_path, values, "x](http://evil) | <b>", is_adapter=False, checkpoint=None)
    assert "secret" not in card
    block = re.search(r"(````+)yaml\n(.*?)\n\1\n", card, re.S)
    assert block is not None and yaml.safe_load(block[2])["user"]["model"] == values["user"]["model"]
    outside = card.replace(block[0], "")
    assert "Owned" not in outside and "<b>" not in outside.replace("\\<b\\>", "")
    assert "https://host/v1" in block[2]


@pytest.mark.parametrize("text", ["a\n# b", "`x`", "[a](b)", "<i>", "a|b", "\\", "*b*_c_"])
def test_inline_text_stays_text(text: str) -> None:
    shown = inline(text)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)[`*_{}\[\]<>#|~!]", shown)


def test_a_fence_is_longer_than_what_it_holds() -> None:
    assert fenced("a ```` b", "text").splitlines()[0] == "`````text"
