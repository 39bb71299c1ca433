from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AUTOENCODERS, CONTROL_BRANCHES, TRANSFORMERS
from sanakit.models.controlnet import ControlBranch
from sanakit.models.transformer import LinearDiT
from sanakit.weights.catalog import CATALOG, Checkpoint, find_checkpoint, nearest_models

OWNER = "Efficient-Large-Model"
# Recommended dtypes as the documentation of the published pipelines lists them.
DOCUMENTED = {
    "Sana_1600M_1024px_BF16_diffusers": "bfloat16",
    "Sana_1600M_1024px_diffusers": "float16",
    "Sana_1600M_1024px_MultiLing_diffusers": "float16",
    "Sana_1600M_512px_diffusers": "float16",
    "Sana_1600M_512px_MultiLing_diffusers": "float16",
    "Sana_600M_1024px_diffusers": "float16",
    "Sana_600M_512px_diffusers": "float16",
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def network(checkpoint: Checkpoint) -> nn.Module:
    with torch.device("meta"):
        if checkpoint.kind == "autoencoder":
            return Autoencoder(AUTOENCODERS[checkpoint.preset])
        if checkpoint.kind == "controlnet":
            return ControlBranch(CONTROL_BRANCHES[checkpoint.preset])
        return LinearDiT(TRANSFORMERS[checkpoint.preset])


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_documented_checkpoint_has_the_documented_dtype_and_its_variant(name: str) -> None:
    checkpoint = find_checkpoint(f"{OWNER}/{name}")
    assert checkpoint is not None
    assert checkpoint.dtype == DOCUMENTED[name]
    assert checkpoint.variant == {"float16": "fp16", "bfloat16": "bf16"}[DOCUMENTED[name]]


def test_no_two_checkpoints_share_a_name() -> None:
    names = [name.lower() for c in CATALOG for name in (c.repository, *c.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "checkpoint",
    {c.preset: c for c in CATALOG if c.preset}.values(),
    ids=lambda checkpoint: checkpoint.alias,
)
def test_the_catalogue_counts_the_parameters_of_its_preset(checkpoint: Checkpoint) -> None:
    assert count(network(checkpoint)) == checkpoint.parameters


def test_the_small_teacher_is_the_few_step_model_without_its_guidance() -> None:
    teacher = find_checkpoint("sprint-0.6b-teacher")
    assert teacher is not None
    config = replace(TRANSFORMERS["sprint-0.6b"], guidance_embeds=False)
    with torch.device("meta"):
        assert count(LinearDiT(config)) == teacher.parameters


@pytest.mark.parametrize("checkpoint", CATALOG, ids=lambda checkpoint: checkpoint.alias)
def test_resolution_and_preset_agree_and_the_twin_is_catalogued(checkpoint: Checkpoint) -> None:
    if checkpoint.preset in TRANSFORMERS:
        sample_size = TRANSFORMERS[checkpoint.preset].sample_size
        assert checkpoint.resolution == 32 * sample_size
    in_one_layout = checkpoint.alias == "dc-ae-lite-f32c32-sana-1.1"
    if checkpoint.kind in ("pipeline", "transformer", "autoencoder") and not in_one_layout:
        twin = find_checkpoint(checkpoint.twin)
        assert twin is not None
        assert twin.twin == checkpoint.repository
        assert twin.parameters == checkpoint.parameters
    assert checkpoint.licences


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("sana-1.6b", "Sana_1600M_1024px_diffusers"),
        ("SANA-0.6B-512", "Sana_600M_512px_diffusers"),
        ("sana-1.6b-4k", "Sana_1600M_4Kpx_BF16_diffusers"),
        ("sana1.5-4.8b", "SANA1.5_4.8B_1024px_diffusers"),
        ("sana-1.6b@v1", "Sana_1600M_1024px_diffusers"),
        ("efficient-large-model/sana_600m_512px", "Sana_600M_512px"),
    ],
)
def test_an_alias_or_a_repository_in_any_case_is_found(name: str, repository: str) -> None:
    found = find_checkpoint(name)
    assert found is not None
    assert found.repository == f"{OWNER}/{repository}"


@pytest.mark.parametrize("name", ["", "glyph", "./sana-1.6b", "sana", f"{OWNER}/other"])
def test_anything_else_is_no_checkpoint(name: str) -> None:
    assert find_checkpoint(name) is None


def test_a_slip_finds_the_name_that_was_meant() -> None:
    assert nearest_models("sana1.6b")[0] == "sana-1.6b"
    assert nearest_models("dc-ae-f32c32-sanna")[0] == "dc-ae-f32c32-sana"
    near = nearest_models("efficient-large-model/Sana_1600M_1024_diffusers")
    assert near[0] == f"{OWNER}/Sana_1600M_1024px_diffusers"
    assert nearest_models("stable-diffusion-xl") == []


def test_the_two_stacks_differ_in_the_shift_of_the_small_model_only() -> None:
    differ = {c.repository for c in CATALOG if c.flow_shift != c.original_flow_shift}
    assert differ == {
        f"{OWNER}/Sana_600M_1024px",
        f"{OWNER}/Sana_600M_1024px_diffusers",
        f"{OWNER}/Sana_600M_1024px_ControlNet_HED",
    }
