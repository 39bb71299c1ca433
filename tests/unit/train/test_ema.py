"""The moving average: its closed form, its dtypes, and weights that always come back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sanakit.errors import ConfigError, WeightsError
from sanakit.train.ema import EMA


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_constant_weights_are_approached_by_halves() -> None:
    average = EMA({"w": torch.zeros(4)}, halflife=100)
    for images in range(2000, 2400, 20):
        average.update({"w": torch.ones(4)}, images_seen=images, batch_size=20)
    # 400 images are four halflives.
    assert_close(average.tensors["w"], torch.full((4,), 1 - 0.5**4))


def test_changing_weights_enter_by_their_age() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(30, 5, generator=generator)
    average = EMA({"w": seen[0]}, halflife=70)
    for step in range(1, 30):
        average.update({"w": seen[step]}, images_seen=10_000 + 10 * step, batch_size=10)
    age = 10.0 * torch.arange(29, -1, -1)
    share = (1 - 0.5 ** (10 / 70)) * 0.5 ** (age / 70)
    share[0] = 0.5 ** (290 / 70)
    assert_close(average.tensors["w"], share @ seen)


def test_the_average_is_short_at_first() -> None:
    average = EMA({"w": torch.zeros(1)}, halflife=500)
    assert average.weight(10, 10) == pytest.approx(1 - 0.5**10)  # halflife 1
    assert average.weight(1000, 10) == pytest.approx(1 - 0.5 ** (10 / 100))
    assert average.weight(5000, 10) == average.weight(10**9, 10) == 1 - 0.5 ** (10 / 500)


def test_it_owns_its_tensors() -> None:
    weights = {"w": torch.ones(3)}
    average = EMA(weights, halflife=10)
    weights["w"].zero_()
    assert average.tensors["w"].all()


def test_sixteen_bit_weights_are_averaged_in_thirty_two() -> None:
    weight = torch.zeros(1, dtype=torch.bfloat16)
    average = EMA({"w": weight}, halflife=10_000)
    for step in range(100):
        average.update({"w": weight + 1}, images_seen=10**6 + step, batch_size=1)
    assert average.tensors["w"].dtype == torch.float32
    assert float(average.tensors["w"]) == pytest.approx(1 - 0.5 ** (100 / 10_000), rel=1e-4)


def test_counters_are_those_of_now() -> None:
    module = network()
    average = EMA(module.state_dict(), halflife=10)
    module(torch.randn(4, 3))
    average.update(module.state_dict(), images_seen=4, batch_size=4)
    assert average.tensors["1.num_batches_tracked"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fails", [None, KeyboardInterrupt])
def test_weights_are_swapped_in_and_come_back_bit_for_bit(
    dtype: torch.dtype, fails: type[BaseException] | None
) -> None:
    module = network().to(dtype)
    average = EMA(module.state_dict(), halflife=10)
    with torch.no_grad():
        module[0].weight += 0.3
    average.update(module.state_dict(), images_seen=100, batch_size=1)
    before, averaged = bits(module), {k: v.clone() for k, v in average.tensors.items()}
    places = {name: value.data_ptr() for name, value in module.state_dict().items()}

    def look() -> None:
        with average.swapped_in(module):
            assert_close(module[0].weight, averaged["0.weight"].to(dtype), atol=0, rtol=0)
            assert not torch.equal(module[0].weight, before["0.weight"])
            module(torch.randn(4, 3, dtype=dtype))  # moves the running statistics
            if fails is not None:
                raise fails

    if fails is None:
        look()
    else:
        with pytest.raises(fails):
            look()
    assert_close(bits(module), before, atol=0, rtol=0)
    assert_close(average.tensors, averaged, atol=0, rtol=0)
    assert places == {name: value.data_ptr() for name, value in module.state_dict().items()}


def test_weights_come_back_though_the_average_does_not_fit() -> None:
    module = network()
    average = EMA(module.state_dict(), halflife=10)
    average.tensors["1.weight"] = torch.zeros(7)
    before = bits(module)
    with pytest.raises(RuntimeError), average.swapped_in(module):
        pass
    assert_close(bits(module), before, atol=0, rtol=0)


def test_what_does_not_fit_is_refused() -> None:
    module = network()
    average = EMA(module.state_dict(), halflife=10)
    other = {k: v for k, v in module.state_dict().items() if k != "0.bias"}
    with pytest.raises(WeightsError, match=r"differ in 1 names, 0\.bias for one"):
        average.update(other, images_seen=1, batch_size=1)
    with pytest.raises(WeightsError, match="differ in"), average.swapped_in(nn.Linear(1, 1)):
        pass
    with pytest.raises(ConfigError, match="average_halflife=0"):
        EMA({}, halflife=0)
