"""The loss scale and the count of skipped steps."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sanakit.errors import ConfigError, NumericsError
from sanakit.train.distributed.loss_scale import LossScale, SkippedSteps


def test_scaling_and_its_undoing_leave_every_bit_of_a_gradient() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(50))
    other, unused = nn.Parameter(weight.detach().clone()), nn.Parameter(torch.zeros(1))
    scale = LossScale("float16")
    scale.scaled(weight.sin().sum()).backward()
    assert torch.equal(weight.grad, 2**16 * other.cos())
    scale.unscale([weight, unused])
    other.sin().sum().backward()
    assert torch.equal(weight.grad, other.grad)


def test_a_gradient_below_fp16_survives_by_its_scale() -> None:
    weight, lost = nn.Parameter(torch.ones(1000)), nn.Parameter(torch.ones(1000))
    scale = LossScale("float16")
    for parameter, scaled in ((weight, scale.scaled), (lost, LossScale("bfloat16").scaled)):
        scaled((parameter.half() * 1e-3 * 1e-4).float().mean()).backward()
    scale.unscale([weight])
    assert_close(weight.grad, torch.full((1000,), 1e-10), rtol=0.02, atol=0)
    assert not lost.grad.any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_dtypes_have_no_scale(dtype: str) -> None:
    scale = LossScale(dtype)
    loss = torch.ones(())
    assert scale.scaled(loss) is loss
    scale.update(finite=False)
    assert scale.scale == 1.0
    assert scale.exhausted


def test_the_scale_halves_at_once_and_doubles_after_patience() -> None:
    scale = LossScale("float16", initial=8.0, least=2.0, most=16.0, patience=3)
    told = []
    for finite in [True, True, False, True, True, True, True, True, True, True, True, True]:
        scale.update(finite=finite)
        told.append(scale.scale)
    assert told == [8, 8, 4, 4, 4, 8, 8, 8, 16, 16, 16, 16]
    for _ in range(5):
        scale.update(finite=False)
    assert scale.scale == 2.0
    assert scale.exhausted


def test_a_saved_scale_goes_on_in_the_middle_of_its_patience() -> None:
    scale, again = (LossScale("float16", initial=8.0, patience=3) for _ in range(2))
    for finite in (False, True, True):
        scale.update(finite=finite)
    again.load_state_dict(json.loads(json.dumps(scale.state_dict())))
    assert (again.scale, again.finite_in_a_row) == (4.0, 2)
    again.update(finite=True)
    assert again.scale == 8.0
    plain = LossScale("bfloat16")
    plain.load_state_dict(scale.state_dict())
    assert plain.scale == 1.0


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'fp16' is unknown\n.*float32, bfloat16, float16"):
        LossScale("fp16")


def test_skips_in_a_row_end_a_run_and_a_finite_step_forgives() -> None:
    steps = SkippedSteps(in_a_row=3, in_total=100)
    for _ in range(5):
        for _ in range(3):
            assert not steps.record(finite=False, images_seen=1)
        assert steps.record(finite=True, images_seen=1)
    for _ in range(3):
        steps.record(finite=False, images_seen=1)
    with pytest.raises(NumericsError, match=r"in 4 steps in a row, the last at 77 images"):
        steps.record(finite=False, images_seen=77)


def test_skips_in_total_end_a_run() -> None:
    steps = SkippedSteps(in_a_row=20, in_total=5)
    for _ in range(5):
        steps.record(finite=False, images_seen=1)
        steps.record(finite=True, images_seen=1)
    again = SkippedSteps(in_a_row=20, in_total=5)
    again.load_state_dict(json.loads(json.dumps(steps.state_dict())))
    with pytest.raises(NumericsError, match="in 6 steps in total"):
        again.record(finite=False, images_seen=1)


def test_a_scale_that_finds_its_size_uses_up_no_total() -> None:
    scale = LossScale("float16", initial=4.0, patience=1)
    steps = SkippedSteps(in_a_row=20, in_total=1)
    for finite in (False, False, True, True, False, False):
        steps.record(finite=finite, images_seen=1, scale=scale)
        scale.update(finite=finite)
    assert steps.counts == {"in_a_row": 2, "in_total": 0}
    assert scale.scale == 1.0
    steps.record(finite=False, images_seen=1, scale=scale)  # now it is a fault
    with pytest.raises(NumericsError, match="in 2 steps in total"):
        steps.record(finite=False, images_seen=1, scale=scale)
