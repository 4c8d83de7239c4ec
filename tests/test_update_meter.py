"""The norm of an update: exact for few weights, an estimate for many, and blind to what is not trained."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

import ppp.update_meter
from ppp.update_meter import ZERO_READERS, UpdateMeter


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 30, bias=False), nn.Embedding(100, 20))
    model[1].weight.requires_grad_(False)
    return model


def change(model: nn.Module, size: float = 0.1) -> float:
    """Move every weight; the norm of what the trained ones moved."""
    square = 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            step = size * torch.randn_like(parameter)
            parameter += step
            square += parameter.requires_grad * step.square().sum().item()
    return square**0.5


def test_few_weights_are_measured_exactly(model: nn.Module) -> None:
    meter = UpdateMeter(Accelerator(cpu=True))
    meter.start(model)
    for _ in range(3):
        expected = change(model)
        meter.start(model)  # between two steps, to no effect
        assert meter.measure() == {"update/norm": pytest.approx(expected, rel=1e-4), "update/changed": 1.0}
    assert meter.measure() == {"update/norm": 0.0, "update/changed": 0.0}


def test_many_weights_are_estimated_from_a_sample(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppp.update_meter, "NUM_EXACT", 1000)
    monkeypatch.setattr(ppp.update_meter, "NUM_SAMPLED", 900)
    meter = UpdateMeter(Accelerator(cpu=True))
    meter.start(model)
    assert meter._before is not None and 890 <= len(meter._before) <= 910
    expected = change(model)
    assert meter.measure()["update/norm"] == pytest.approx(expected, rel=0.1)


def test_the_estimate_is_unbiased_where_tensors_move_differently(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppp.update_meter, "NUM_EXACT", 0)
    meter = UpdateMeter(Accelerator(cpu=True))
    meter.start(model)
    with torch.no_grad():
        model[0].bias += 3.0
        model[2].weight[:50] += 0.5
    found = meter.measure()
    assert found["update/norm"] == pytest.approx((50 * 9 + 1000 * 0.25) ** 0.5, rel=0.02)
    assert found["update/changed"] == pytest.approx(1050 / (2000 + 50 + 2000), rel=0.02)


def test_weights_that_are_no_numbers_have_an_infinite_update(model: nn.Module) -> None:
    meter = UpdateMeter(Accelerator(cpu=True))
    meter.start(model)
    with torch.no_grad():
        model[0].bias[3] = torch.nan
    assert meter.measure()["update/norm"] == float("inf")


def test_updates_below_the_precision_of_the_weights_show() -> None:
    model = nn.Linear(10, 10, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
        meter = UpdateMeter(Accelerator(cpu=True))
        meter.start(model)
        model.weight += 1e-4
        model.weight[0, 0] = 2.0
    assert meter.measure() == {"update/norm": 1.0, "update/changed": pytest.approx(0.01)}


@pytest.mark.parametrize("stage", ZERO_READERS)
def test_zero_is_measured_on_its_own_fp32_partitions(
    stage: int, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    partitions = {id(parameter): torch.zeros(7) for parameter in model.parameters()}
    monkeypatch.setitem(ZERO_READERS, stage, lambda parameter: partitions[id(parameter)])
    plugin = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED,
        state=plugin,
        device=torch.device("cpu"),
        reduce=lambda tensor, reduction: 2 * tensor,  # of two processes that moved alike
    )
    meter = UpdateMeter(accelerator)  # type: ignore[arg-type]
    meter.start(model)
    change(model)
    for parameter in model.parameters():
        partitions[id(parameter)] += parameter.requires_grad
    assert meter.measure() == {"update/norm": pytest.approx((2 * 3 * 7) ** 0.5), "update/changed": 1.0}
