from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sanakit.errors import WeightsError
from sanakit.weights.int8_rows import SUFFIX, pack_int8, unpack_int8
from sanakit.weights.store import read_weights, write_weights


def state(rng: torch.Generator) -> dict[str, Tensor]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    return {
        "linear": draw(48, 2304),
        "narrow": draw(900, 5),
        "conv": draw(16, 70, 3, 3),
        "uneven": draw(64, 200) * torch.logspace(-12, 3, 64)[:, None],
        "bias": draw(5000),
        "small": draw(8, 8),
        "count": torch.tensor(3),
    }


@pytest.mark.parametrize("name", ["linear", "narrow", "conv", "uneven"])
def test_int8_costs_under_six_thousandths_of_a_normal_matrix(
    name: str, rng: torch.Generator
) -> None:
    weight = state(rng)[name]
    packed, metadata = pack_int8({name: weight})
    restored = unpack_int8(packed, source="f")[name]
    # By rows, so that a row of tiny values counts as much as one of large ones.
    errors = (restored - weight).flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1)
    assert errors.square().mean().sqrt() < 0.006
    assert packed[name].dtype == torch.int8
    assert restored.dtype == torch.float32
    assert restored.shape == weight.shape
    assert metadata == {"storage": "int8-rows"}


def test_a_packed_state_takes_little_over_a_quarter_of_its_size(rng: torch.Generator) -> None:
    weight = state(rng)["linear"]
    packed, _ = pack_int8({"linear": weight})
    assert sum(t.numel() * t.element_size() for t in packed.values()) < 0.26 * weight.nbytes


def test_small_and_whole_numbers_come_back_exactly(rng: torch.Generator) -> None:
    given = state(rng)
    restored = unpack_int8(pack_int8(given)[0], source="f")
    assert restored.keys() == given.keys()
    assert all(torch.equal(restored[name], given[name]) for name in ("bias", "small", "count"))
    assert restored["count"].dtype == torch.int64


def test_what_was_quantized_once_is_quantized_again_without_loss(rng: torch.Generator) -> None:
    first, _ = pack_int8(state(rng))
    restored = unpack_int8(first, source="f")
    second, _ = pack_int8(restored)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_row_of_zeros_stays_zeros() -> None:
    weight = torch.ones(64, 128)
    weight[3] = 0
    assert torch.equal(
        unpack_int8(pack_int8({"w": weight})[0], source="f")["w"][3], torch.zeros(128)
    )


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"w" + SUFFIX: torch.zeros(2)}, "stored as int8 rows already"),
        ({"w": torch.zeros(2, dtype=torch.int8)}, "stored as int8 rows already"),
        ({"w": torch.full((64, 64), torch.nan)}, "not finite"),
    ],
)
def test_a_state_that_could_be_mistaken_later_is_refused(
    bad: dict[str, Tensor], reason: str
) -> None:
    with pytest.raises(WeightsError, match=reason):
        pack_int8(bad)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"w": torch.zeros(2, 2, dtype=torch.int8)}, "has no w.int8_scale"),
        ({"w" + SUFFIX: torch.zeros(2, 1)}, "has no values beside it"),
        (
            {"w": torch.zeros(2, 2, dtype=torch.int8), "w" + SUFFIX: torch.zeros(2, 2)},
            r"is \(2, 2\), w needs \(2, 1\)",
        ),
    ],
)
def test_a_damaged_int8_rows_state_is_refused(bad: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(WeightsError, match=reason):
        unpack_int8(bad, source="f")


def test_a_folder_of_int8_rows_is_read_without_being_told(
    tmp_path: Path, rng: torch.Generator
) -> None:
    given = state(rng)
    write_weights(tmp_path, given, storage="int8-rows", max_shard_bytes=100_000)
    restored = read_weights(tmp_path)
    expected = unpack_int8(pack_int8(given)[0], source="f")
    assert restored.keys() == expected.keys()
    assert all(torch.equal(restored[name], expected[name]) for name in expected)
