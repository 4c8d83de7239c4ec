"""Sampling of tokens whose noise is a pure function of (key, position): the same in any batch, order or process.

Not the decision when a turn ends, and no repetition penalties. `transformers.py` beside this file is the user.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def _mix(state: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: each bit of the output depends on all bits of the input."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniforms(keys: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
    """One number in (0, 1) per (key, position), float64: the element `position` of the stream SplitMix64(mix(key))."""
    key = np.array([value & _MASK for value in keys], dtype=np.uint64)
    index = np.array([value & _MASK for value in positions], dtype=np.uint64)
    bits = _mix(_mix(key) + (index + np.uint64(1)) * _GOLDEN)
    # 52 bits and a half: exact in float64, and never 0 or 1.
    return torch.from_numpy(((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)


def request_seed(noise_key: int, position: int) -> int:
    """The seed of one turn, for engines that draw with a generator of their own per request: in [0, 2**63).

    Like the noise of a token it depends on nothing but (noise_key, position of the turn's first token).
    """
    key = np.array([noise_key & _MASK], dtype=np.uint64)
    bits = _mix(_mix(key) + np.array([(position + 1) & _MASK], dtype=np.uint64) * _GOLDEN)
    return int(bits[0] >> np.uint64(1))


class Sampler:
    """Draws one token per row by inverting the cumulative distribution at a given number.

    Args:
        temperature: 0 takes the most likely token; its log-probability is then that at temperature 1.
        top_k: keep this many most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens that reaches this probability; 1 keeps all.
    """

    def __init__(self, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> None:
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    def __call__(self, logits: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw tokens.

        Args:
            logits: shape [num_rows, vocabulary], float32.
            noise: shape [num_rows], float64 in (0, 1).

        Returns:
            The tokens (int64) and their log-probabilities in the distribution that was drawn from (float32), both of
            shape [num_rows].
        """
        if self.temperature == 0:
            logprobs = torch.log_softmax(logits, dim=-1)
            tokens = logprobs.argmax(dim=-1, keepdim=True)
        else:
            logprobs = torch.log_softmax(self._cut(logits / self.temperature), dim=-1)
            cumulative = logprobs.double().exp().cumsum(dim=-1)
            # `right`: the first token whose cumulative probability exceeds the target, so never one of probability 0.
            targets = noise.unsqueeze(-1) * cumulative[:, -1:]
            tokens = torch.searchsorted(cumulative, targets, right=True).clamp_(max=logits.shape[-1] - 1)
        return tokens.squeeze(-1), logprobs.gather(-1, tokens).squeeze(-1)

    def _cut(self, logits: torch.Tensor) -> torch.Tensor:
        """Set what top_k and top_p leave out to minus infinity."""
        if 0 < self.top_k < logits.shape[-1]:
            threshold = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < threshold, -torch.inf)
        if self.top_p < 1:
            ordered, order = logits.sort(dim=-1, descending=True)
            before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
            is_out = (before >= self.top_p).scatter(-1, order, before >= self.top_p)
            logits = logits.masked_fill(is_out, -torch.inf)
        return logits
