"""Tokenizer, codec and model as a recipe names them: small models on disk, nothing is downloaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import byte_tokenizer, read_template
from peft import LoraConfig, get_peft_model
from toy import register
from transformers import PreTrainedModel, SeedOssConfig, SeedOssForCausalLM

from ppp.build import build_codec, build_model, build_tokenizer
from ppp.recipe import Recipe, read_recipe
from ppp.types import RecipeError, ToolSpec

SEED_TEMPLATE = Path(__file__).parent / "chat_templates" / "seed_oss.jinja"
TOOL = ToolSpec("look", "Looks.", {"type": "object", "properties": {"where": {"type": "string"}}})


@pytest.fixture(autouse=True)
def toy_environment() -> Iterator[None]:
    register()
    yield


def recipe(tmp_path: Path, **changes: Any) -> Recipe:
    values = {"environments": {"toy": 1}, "train_tasks": {"toy": "tasks.jsonl"}, "use_cpu": True, **changes}
    values.setdefault("tiny_model", "model_name_or_path" not in values)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return read_recipe(["--config", str(tmp_path / "recipe.yaml")])


def seed_tokenizer_folder(folder: Path, **changes: Any) -> Path:
    """A tokenizer with the special tokens of Seed-OSS and no chat template."""
    tokenizer = byte_tokenizer("hermes", markup=["<seed:tool_call>", "</seed:tool_call>", "<seed:think>"])
    tokenizer.add_special_tokens({"eos_token": "<seed:eos>", "pad_token": "<seed:pad>"})
    tokenizer.chat_template = None
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def seed_oss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Seed-OSS of two layers with random weights; its configuration brings the published dropout."""
    folder = seed_tokenizer_folder(tmp_path_factory.mktemp("seed_oss"))
    config = SeedOssConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.2,
    )
    assert (config.attention_dropout, config.residual_dropout) == (0.1, 0.1)
    SeedOssForCausalLM(config).save_pretrained(folder)
    return folder


# --- chat templates --------------------------------------------------------------------------------------------------


def test_a_template_file_takes_the_place_of_the_tokenizers(tmp_path: Path) -> None:
    folder = seed_tokenizer_folder(tmp_path / "model")
    found = recipe(tmp_path, model_name_or_path=str(folder), chat_template=str(SEED_TEMPLATE))
    codec = build_codec(found, build_tokenizer(found))
    assert codec.call_format == "seed"
    prompt = codec.decode(codec.prompt_ids([{"role": "user", "content": "Fix it."}], [TOOL]))
    assert "def look(where: str)" in prompt
    assert prompt.endswith("<seed:bos>user\nFix it.<seed:eos><seed:bos>assistant\n")


def test_options_of_a_template_reach_the_prompt(tmp_path: Path) -> None:
    folder, options = seed_tokenizer_folder(tmp_path / "model"), {"thinking_budget": 512}
    changes = {"chat_template": str(SEED_TEMPLATE), "chat_template_kwargs": options}
    found = recipe(tmp_path, model_name_or_path=str(folder), **changes)
    codec = build_codec(found, build_tokenizer(found))
    assert "within 512 tokens" in codec.decode(codec.prompt_ids([{"role": "user", "content": "Fix it."}], [TOOL]))


def test_a_replaced_template_is_saved_with_the_tokenizer(tmp_path: Path) -> None:
    found = recipe(tmp_path, chat_template=str(SEED_TEMPLATE))
    build_tokenizer(found).save_pretrained(tmp_path / "saved")
    again = build_tokenizer(recipe(tmp_path, model_name_or_path=str(tmp_path / "saved")))
    assert again.chat_template == SEED_TEMPLATE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ messages[0].content }}", "does not tell how calls are written"),
        ("<tool_call>{% if %}", "cannot show a call"),
        ("<tool_call>{{ messages[0].content + 1 }}", "cannot show a call"),
        (read_template("qwen3").replace("if tools", "if false"), "does not show the agent its tools"),
        (read_template("qwen3").replace('{"name": "', '{"tool": "'), "not append-only"),
        (read_template("qwen3").replace("<|im_end|>", "<|end|>"), "does not end turns with the EOS token '<|im_end|>'"),
    ],
)
def test_a_template_file_that_cannot_be_used_is_refused_by_its_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(text, encoding="utf-8")
    found = recipe(tmp_path, chat_template=str(path))
    with pytest.raises(RecipeError, match=r"chat_template: .*own\.jinja") as refused:
        build_codec(found, build_tokenizer(found))
    assert message in str(refused.value)


def test_a_template_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"chat_template: .*missing.jinja.* is not allowed; name a Jinja file"):
        build_tokenizer(recipe(tmp_path, chat_template=str(tmp_path / "missing.jinja")))


def test_a_tokenizer_without_end_of_turn_is_refused(tmp_path: Path) -> None:
    folder = seed_tokenizer_folder(tmp_path / "model", eos_token=None)
    with pytest.raises(RecipeError, match=r"model_name_or_path: .* its tokenizer names no EOS token"):
        build_tokenizer(recipe(tmp_path, model_name_or_path=str(folder), chat_template=str(SEED_TEMPLATE)))


def test_a_tokenizer_without_padding_pads_with_the_end_of_turn(tmp_path: Path) -> None:
    folder = seed_tokenizer_folder(tmp_path / "model", pad_token=None)
    assert build_tokenizer(recipe(tmp_path, model_name_or_path=str(folder))).pad_token == "<seed:eos>"


# --- dropout ---------------------------------------------------------------------------------------------------------


def repeats_itself(model: PreTrainedModel) -> bool:
    model.train()
    ids = torch.arange(64).reshape(1, -1)
    with torch.no_grad():
        return torch.equal(model(ids).logits, model(ids).logits)


def test_hidden_dropout_is_switched_off_and_said(
    seed_oss: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not repeats_itself(SeedOssForCausalLM.from_pretrained(seed_oss))
    found = recipe(tmp_path, model_name_or_path=str(seed_oss))
    with caplog.at_level(logging.INFO, "ppp.build"):
        model = build_model(found, build_tokenizer(found))
    assert repeats_itself(model)
    (message,) = [record.getMessage() for record in caplog.records if "dropout" in record.getMessage()]
    assert "attention_dropout (0.1), residual_dropout (0.1)" in message


def test_a_recipe_may_ask_for_dropout(seed_oss: Path, tmp_path: Path) -> None:
    found = recipe(tmp_path, model_name_or_path=str(seed_oss), model_init_kwargs={"residual_dropout": 0.3})
    model = build_model(found, build_tokenizer(found))
    assert (model.config.residual_dropout, model.config.attention_dropout) == (0.3, 0.0)
    assert not repeats_itself(model)


def test_the_base_of_an_adapter_loses_its_dropout_too(seed_oss: Path, tmp_path: Path) -> None:
    base = SeedOssForCausalLM.from_pretrained(seed_oss)
    get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(tmp_path / "adapter")
    byte_tokenizer().save_pretrained(tmp_path / "adapter")
    found = recipe(tmp_path, model_name_or_path=str(tmp_path / "adapter"))
    assert repeats_itself(build_model(found, build_tokenizer(found)))
