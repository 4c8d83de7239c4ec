"""Sampling: its noise, and the distributions that tokens are drawn from."""

from __future__ import annotations

import pytest
import torch

from ppp.engines.sampling import Sampler, request_seed, uniforms


def test_noise_is_a_function_of_key_and_position_alone() -> None:
    together = uniforms([3, 4, 3], [0, 0, 9])
    assert together.tolist() == [uniforms([key], [position]).item() for key, position in ((3, 0), (4, 0), (3, 9))]
    assert len(set(together.tolist())) == 3
    assert uniforms([-1], [0]).item() == uniforms([2**64 - 1], [0]).item()


@pytest.mark.parametrize(
    ("keys", "positions"), [(range(1), range(20_000)), (range(20_000), range(1)), (range(200), range(100))]
)
def test_noise_is_uniform_along_keys_and_positions(keys: range, positions: range) -> None:
    pairs = [(key, position) for key in keys for position in positions]
    noise = uniforms(*map(list, zip(*pairs, strict=True)))
    counts = torch.histc(noise, bins=100, min=0, max=1)
    chi_square = ((counts - 200) ** 2 / 200).sum().item()
    assert 60 < chi_square < 149  # 99 degrees of freedom: one in a thousand lies outside on either side
    lag = torch.corrcoef(torch.stack([noise[:-1], noise[1:]]))[0, 1].item()
    assert abs(lag) < 0.025


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampled_tokens_follow_the_softmax(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, -torch.inf])
    num_draws = 20_000
    drawn, logprobs = Sampler(temperature)(logits.expand(num_draws, -1), uniforms([7] * num_draws, range(num_draws)))
    probabilities = (logits / temperature).softmax(-1)
    counts = torch.bincount(drawn, minlength=6)
    assert counts[5] == 0
    expected = probabilities[:5] * num_draws
    assert ((counts[:5] - expected) ** 2 / expected).sum().item() < 18.5  # 4 degrees of freedom, p = 0.001
    torch.testing.assert_close(logprobs, probabilities.log()[drawn])


@pytest.mark.parametrize(
    ("sampler", "kept"),
    [
        (Sampler(0.0), [0]),
        (Sampler(1.0, top_k=2), [0, 1]),
        (Sampler(1.0, top_p=0.6), [0, 1]),
        (Sampler(1.0, top_p=0.4), [0]),
    ],
)
def test_cut_distributions_are_renormalised(sampler: Sampler, kept: list[int]) -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    drawn, logprobs = sampler(logits.expand(500, -1), uniforms([1] * 500, range(500)))
    assert sorted(set(drawn.tolist())) == kept
    reference = logits if sampler.temperature == 0 else logits[kept].log_softmax(-1)
    torch.testing.assert_close(logprobs, reference[drawn])


def test_extreme_noise_never_draws_an_impossible_token() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2, -1)
    drawn, _ = Sampler()(logits, torch.tensor([2.0**-53, 1 - 2.0**-53], dtype=torch.float64))
    assert drawn.tolist() == [1, 1]


def test_seeds_of_turns_are_a_function_of_key_and_position_alone() -> None:
    seeds = {request_seed(key, position) for key in (-1, 0, 1, 2**63) for position in range(50)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert request_seed(7, 3) == request_seed(7 + 2**64, 3)
