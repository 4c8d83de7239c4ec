"""The finished model as a plain transformers folder: `ppp export CHECKPOINT_OR_RUN OUT [--merge_lora]`.

At the end of a run `finish` leaves it in the run's folder; the command does the same for a run that was stopped. Full
weights, weights that ZeRO-3 has spread over processes, and adapters, merged or beside a reference to their base model.
Tokenizer and chat template come with it, and the card of `model_card.py`.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ppp.checkpoints import STATE_FILE, find_checkpoints, is_complete
from ppp.checks import refuse
from ppp.model_card import CARD_FILE, model_card
from ppp.recipe import Recipe
from ppp.resume import RECIPE_FILE
from ppp.run_folder import write_whole
from ppp.types import RecipeError
from ppp.whole_models import whole_models

if TYPE_CHECKING:
    from ppp.trainer import PPPTrainer

logger = logging.getLogger(__name__)

ADAPTER_FILE = "adapter_config.json"
CONFIG_FILE = "config.json"
ZERO_FILE = "latest"  # names the folder in which DeepSpeed keeps what it has spread
# What belongs to a model among the files of a run or a checkpoint.
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
MODEL_FILES = (
    *WEIGHT_FILES,
    *(CONFIG_FILE, "generation_config.json", "adapter_config.json", "*.py"),
    *("tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt"),
)
SCRIPTS_OF_DEEPSPEED = ("zero_to_fp32.py", "zero_to_torch.py")


def finish(trainer: PPPTrainer, recipe: Recipe) -> None:
    """Leave the trained model in the run's folder, with its card; for all processes together."""
    folder = Path(str(recipe.args.output_dir))
    trainer.save_model(str(folder))
    if recipe.args.process_index == 0:
        if recipe.config.merge_lora and (folder / ADAPTER_FILE).is_file():
            with whole_models():  # only this process loads the base model
                model = merged(folder, recipe.config.dtype, recipe.args.trust_remote_code)
            for path in folder.glob("adapter_*"):
                path.unlink()
            model.save_pretrained(folder)
        write_card(folder, folder, recipe.values)
    trainer.accelerator.wait_for_everyone()


def export(source: Path, out: Path, merge_lora: bool) -> str:
    """Write the model of a run or a checkpoint to a new folder.

    Returns:
        One sentence that says what was taken.

    Raises:
        RecipeError: there is no model, or it cannot be had in this way.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise refuse("out", str(out), "a new or empty folder")
    model_dir = find_model(source)
    is_checkpoint = is_complete(model_dir)
    run = model_dir.parent if is_checkpoint else model_dir
    values = read_values(run)
    dtype = str(values.get("dtype", "auto"))
    is_adapter = (model_dir / ADAPTER_FILE).is_file()
    if merge_lora and not is_adapter:
        raise refuse("merge_lora", True, f"{model_dir} holds whole weights, nothing to merge")
    model: PreTrainedModel | None = None
    if merge_lora:
        model = merged(model_dir, dtype, bool(values.get("trust_remote_code")))
    elif not is_adapter and not has_weights(model_dir):
        model = from_zero(model_dir, dtype)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refuse("out", str(out), f"a folder that can be written to ({error.strerror})") from error
    if model is None:
        copy_files(model_dir, out, MODEL_FILES)
    else:
        model.save_pretrained(out)
    copy_files(model_dir, out, [pattern for pattern in MODEL_FILES if pattern not in WEIGHT_FILES], merge_lora)
    write_card(run, out, values, model_dir if is_checkpoint else None)
    kind = "merged weights" if merge_lora else "an adapter" if is_adapter else "whole weights"
    return f"{kind} of {model_dir} in {out}"


def find_model(source: Path) -> Path:
    """The folder with the model: a checkpoint, a finished run, or the newest checkpoint of a run that was stopped.

    Raises:
        RecipeError: there is none.
    """
    found = find_checkpoints(source)
    model_file = next((path for name in (CONFIG_FILE, ADAPTER_FILE) if (path := source / name).is_file()), None)
    # A finished run that was resumed and then stopped has a newer checkpoint beside its model.
    if model_file is not None and not (found and _written_s(found[-1] / STATE_FILE) > _written_s(model_file)):
        return source
    if not found:
        raise refuse("source", str(source), "a checkpoint, or the folder of a run that has one")
    return found[-1]


def _written_s(path: Path) -> float:
    return path.stat().st_mtime


def has_weights(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in WEIGHT_FILES)


def read_values(run: Path) -> dict[str, Any]:
    """The resolved recipe of a run; empty where there is none.

    Raises:
        RecipeError: it cannot be read.
    """
    path = run / RECIPE_FILE
    if not path.is_file():
        logger.warning("there is no %s: the model card will lack the recipe", path)
        return {}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise refuse("source", str(run), f"{path} cannot be read ({' '.join(str(error).split())})") from error
    return dict(values or {})


def merged(folder: Path, dtype: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The base model of an adapter with the adapter in its weights, on the CPU.

    Raises:
        RecipeError: the base model is not where the adapter says.
    """
    base = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))["base_model_name_or_path"]
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=kind, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise refuse(
            f"{ADAPTER_FILE}.base_model_name_or_path", base, f"a model that transformers can load ({first_line})"
        ) from error
    model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    model.config.name_or_path = str(base)
    return model


def from_zero(checkpoint: Path, dtype: str) -> PreTrainedModel:
    """The model of a checkpoint in which ZeRO has spread the weights over the files of its processes.

    Raises:
        RecipeError: there are no such files, or DeepSpeed is not installed.
    """
    if not (checkpoint / ZERO_FILE).is_file():
        raise refuse("source", str(checkpoint), "a folder with weights (*.safetensors) or a checkpoint of DeepSpeed")
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError as error:
        raise RecipeError(f"source: {checkpoint} was written by DeepSpeed: pip install 'ppp[deepspeed]'") from error
    weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    config = AutoConfig.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(weights)
    kind = config.dtype if dtype == "auto" else getattr(torch, dtype)
    whole: PreTrainedModel = model.to(kind or torch.float32)
    return whole


def copy_files(source: Path, out: Path, patterns: Sequence[str], without_adapter: bool = False) -> None:
    """Copy what is there of a model and what is not yet in `out`."""
    for pattern in patterns:
        for path in source.glob(pattern):
            is_adapter = path.name.startswith("adapter_")
            if path.name in SCRIPTS_OF_DEEPSPEED or (is_adapter and without_adapter) or (out / path.name).exists():
                continue
            shutil.copy2(path, out / path.name)


def write_card(run: Path, out: Path, values: Mapping[str, Any], checkpoint: Path | None = None) -> None:
    """Write the model card of a run's model to `out`."""
    name = str(values.get("hub_model_id") or run.resolve().name).rpartition("/")[2]
    is_adapter = (out / ADAPTER_FILE).is_file()
    write_whole(out / CARD_FILE, model_card(run, values, name, is_adapter=is_adapter, checkpoint=checkpoint))


def main(argv: Sequence[str] | None = None) -> int:
    """`ppp export CHECKPOINT_OR_RUN OUT [--merge_lora]`. Returns the exit status: 0, or 2 for a mistake."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    parser = argparse.ArgumentParser(
        prog="ppp export", description="Write the model of a run as a folder that transformers can load."
    )
    parser.add_argument("source", type=Path, metavar="CHECKPOINT_OR_RUN", help="of a run, its newest checkpoint counts")
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder")
    parser.add_argument("--merge_lora", action="store_true", help="write merged weights instead of an adapter")
    given = parser.parse_args(argv)
    try:
        sys.stdout.write(export(given.source, given.out, given.merge_lora) + "\n")
    except RecipeError as error:
        sys.stderr.write(f"ppp export: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
