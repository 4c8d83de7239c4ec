"""A byte-level tokenizer and a Qwen3 of two layers with random weights: for smoke runs and tests, nothing is
downloaded.

It learns nothing worth having; the town's own small model is made by the warm start.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CALL_TOKENS = ("<tool_call>", "</tool_call>", "<think>", "</think>", "<tool_response>", "</tool_response>")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, ChatML's special tokens, and the tags of the "hermes" call format."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL_TOKENS])
    backend.add_tokens([AddedToken(text, special=False) for text in CALL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    template = resources.files("ppp") / "chat_templates" / "hermes.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer


def random_qwen3(
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    *,
    max_length: int,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    num_key_value_heads: int,
    initializer_range: float = 0.02,
) -> Qwen3ForCausalLM:
    """A Qwen3 of these sizes with weights drawn from `seed`, for sequences of up to `max_length` tokens.

    Output weights are not tied to the embeddings: with tied ones a small model does not learn to look things up.
    """
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=hidden_size // num_heads,
        max_position_embeddings=max_length,
        initializer_range=initializer_range,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def tiny_model(tokenizer: PreTrainedTokenizerBase, seed: int, max_length: int) -> Qwen3ForCausalLM:
    """A Qwen3 with about 60 thousand weights, drawn from `seed`, for sequences of up to `max_length` tokens."""
    return random_qwen3(
        tokenizer, seed, max_length=max_length, hidden_size=32, num_layers=2, num_heads=2, num_key_value_heads=1
    )


def save_tiny_model(folder: Path, seed: int, max_length: int) -> None:
    """Write model and tokenizer to `folder`, as `save_pretrained` does."""
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    tiny_model(tokenizer, seed, max_length).save_pretrained(folder)
