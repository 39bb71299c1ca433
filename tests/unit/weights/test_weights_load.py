from __future__ import annotations

import pytest
import torch
from torch import nn

from sanakit.errors import WeightsError
from sanakit.weights.store import load_strict


def test_a_fitting_state_fills_a_module_and_keeps_its_own_dtype() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    source = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in source.state_dict().items()
    }
    load_strict(module, state, source="f")
    assert all(not p.is_meta and p.dtype == torch.bfloat16 for p in module.parameters())
    assert all(p.requires_grad for p in module.parameters())
    assert torch.equal(module[0].weight, source[0].weight.bfloat16())


def test_a_misfit_changes_nothing_and_names_all_kinds_of_it() -> None:
    module = nn.Linear(3, 4)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_strict(
            module, {"weight": torch.ones(4, 2), "x": torch.ones(1)}, source="f.safetensors"
        )
    assert str(caught.value).splitlines()[:4] == [
        "f.safetensors: 3 tensors (1 missing, 1 shape, 1 unexpected) do not fit Linear",
        "  missing     bias",
        "  shape       weight: file (4, 2), model (4, 3)",
        "  unexpected  x",
    ]
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert caught.value.exit_code == 2


def test_integers_for_real_numbers_are_a_misfit_and_not_a_half_loaded_module() -> None:
    module = nn.Linear(3, 4)
    before = module.bias.detach().clone()
    state = {"bias": torch.zeros(4), "weight": torch.zeros(4, 3, dtype=torch.int8)}
    with pytest.raises(WeightsError, match=r"1 tensor \(1 kind\).*\n.*file torch.int8"):
        load_strict(module, state, source="f")
    assert torch.equal(module.bias, before)


def test_of_many_misfits_five_are_shown_and_the_rest_counted() -> None:
    state = {f"x{i}": torch.zeros(1) for i in range(9)} | nn.Linear(2, 2).state_dict()
    with pytest.raises(WeightsError) as caught:
        load_strict(nn.Linear(2, 2), state, source="f")
    lines = str(caught.value).splitlines()
    assert sum("unexpected " in line for line in lines) == 5
    assert "  ... and 4 more" in lines
