"""Tiny real components: tokenizers without merges, and a random Qwen3 model; no downloads."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import pytest
import torch
import trl
from browser_pages import browser, show
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3ForCausalLM

from ppp.codec import Codec
from ppp.tiny_model import random_qwen3

__all__ = ["browser", "show"]  # fixtures that live elsewhere

# A shell that starts the tests in the background has them ignore Ctrl-C, and some of them are about it.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<|end|>",
]
MARKUP = ["<tool_call>", "</tool_call>", "<think>", "</think>", "<tool_response>", "</tool_response>"]


def read_template(name: str) -> str:
    """A chat template of ours ("town", "hermes") or one of those that TRL ships ("qwen3", ...)."""
    ours = resources.files("ppp") / "chat_templates" / f"{name}.jinja"
    path = ours if ours.is_file() else Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    return path.read_text(encoding="utf-8")


def byte_tokenizer(template: str = "hermes", markup: Sequence[str] = MARKUP) -> PreTrainedTokenizerBase:
    """One token per byte, ChatML's special tokens, and tags as added tokens, as Qwen3 has them."""
    eos = "<|end|>" if template == "town" else "<|im_end|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, special=False) for token in markup])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, pad_token="<|endoftext|>", padding_side="left"
    )
    tokenizer.chat_template = read_template(template)
    return tokenizer


def tiny_model(tokenizer: PreTrainedTokenizerBase, *, seed: int = 0, max_length: int = 2048) -> Qwen3ForCausalLM:
    """A random Qwen3 of two layers; the wide initialisation makes its distributions far from uniform."""
    return random_qwen3(
        tokenizer,
        seed,
        max_length=max_length,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    ).eval()


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerBase]:
    return byte_tokenizer


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Qwen3ForCausalLM]:
    return tiny_model


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level, with the "hermes" template."""
    return byte_tokenizer()


@pytest.fixture
def codec(tokenizer: PreTrainedTokenizerBase) -> Codec:
    return Codec.from_tokenizer(tokenizer)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    return tiny_model(tokenizer)
