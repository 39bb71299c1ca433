"""The networks answer to the names that published code calls them by, or say what to write."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

import sanakit
import sanakit.models.published
from sanakit import AutoencoderDC, SanaTransformer2DModel
from sanakit.errors import ConfigError
from sanakit.models.config import AUTOENCODERS, TRANSFORMERS, config_to_dict
from sanakit.models.published import INSTEAD, NEEDLESS

CLASSES = (SanaTransformer2DModel, AutoencoderDC)
TINY = {SanaTransformer2DModel: TRANSFORMERS["tiny"], AutoencoderDC: AUTOENCODERS["tiny"]}
# Of the reference's public names, those that its own machinery calls, and no user.
MACHINERY = {"config_name", "extract_init_dict", "get_config_dict", "has_compatibles"}
MACHINERY |= {"ignore_for_config", "to_json_file", "to_json_string"}


@pytest.fixture(params=CLASSES, ids=lambda kind: kind.__name__)
def network(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return request.param(TINY[request.param])


def test_every_public_name_is_here_or_answers(network: Any) -> None:
    theirs = getattr(diffusers, type(network).__name__)
    names = {n for n in dir(theirs) if not n.startswith("_")} - set(dir(nn.Module)) - MACHINERY
    absent = {name for name in names if not hasattr(network, name)}
    assert absent <= INSTEAD.keys()
    for name in absent:
        with pytest.raises(AttributeError, match=r"has no \w+\. Instead: "):
            getattr(network, name)


def test_names_of_nobody_are_plain_errors(network: Any) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'does_not_exist'"):
        network.does_not_exist  # noqa: B018


@pytest.mark.parametrize("name", NEEDLESS)
def test_switches_that_change_nothing_say_so_once(
    name: str, network: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sanakit.models.published.say_once.cache_clear()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        getattr(network, name)(torch.float32, compute_dtype=torch.bfloat16)
        getattr(network, name)()
    (told,) = caplog.messages
    assert told.startswith(f"{name} changes nothing here: ")
    after = network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_config_is_a_mapping_as_it_is_there(network: Any) -> None:
    theirs = getattr(diffusers, type(network).__name__)
    config = network.config
    assert dict(config) == config_to_dict(config)
    for name in config:
        assert config[name] == config.get(name) == getattr(config, name)
    assert "no_such_key" not in config
    assert config.get("no_such_key", 3) == 3
    again = theirs(**dict(config)).config
    assert type(network).from_config(again).config == config
    assert type(network)(**dict(config)).config == config
    with pytest.raises(ConfigError, match="no_such_key"):
        type(network).from_config(config, no_such_key=1)


def test_a_config_is_read_changed_and_written_alone(network: Any, tmp_path: Path) -> None:
    network.save_config(tmp_path / "vae")
    kind = type(network)
    read = kind.load_config(tmp_path, subfolder="vae")
    assert read["_class_name"] == kind.__name__
    assert kind.from_config(read).config == network.config
    theirs = getattr(diffusers, kind.__name__).load_config(str(tmp_path), subfolder="vae")
    assert theirs == read
    changed = kind.from_config(read, in_channels=5)
    assert changed.config.in_channels == 5
    with pytest.raises(ConfigError, match="load_config"):
        kind.from_config(str(tmp_path))


def test_fields_of_a_config_are_registered_anew(network: Any) -> None:
    name, value = ("sample_size", 7) if "sample_size" in network.config else ("scaling_factor", 2.0)
    network.register_to_config(**{name: value})
    assert network.config[name] == value
    with pytest.raises(ConfigError, match="has no field 'nothing'"):
        network.register_to_config(nothing=1)


def test_sizes_are_those_of_the_published_network(network: Any) -> None:
    theirs = getattr(diffusers, type(network).__name__)(**dict(network.config))
    next(iter(theirs.parameters())).requires_grad_(False)
    next(iter(network.parameters())).requires_grad_(False)
    for only_trainable in (False, True):
        expected = theirs.num_parameters(only_trainable=only_trainable)
        assert network.num_parameters(only_trainable=only_trainable) == expected
    assert network.get_memory_footprint() == theirs.get_memory_footprint()
    assert (network.dtype, network.device) == (theirs.dtype, theirs.device)
    assert network.half().dtype == torch.float16


def test_blocks_are_recomputed_by_the_published_switch() -> None:
    model = SanaTransformer2DModel(TRANSFORMERS["tiny"])
    assert not model.is_gradient_checkpointing
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    assert model.gradient_checkpointing
    model.disable_gradient_checkpointing()
    assert not model.gradient_checkpointing
    vae = AutoencoderDC(AUTOENCODERS["tiny"])
    with pytest.raises(ValueError, match="does not support gradient checkpointing"):
        vae.enable_gradient_checkpointing()
    assert not vae.is_gradient_checkpointing


def test_what_was_loaded_is_ready_to_train(network: Any, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    loaded = type(network).from_pretrained(tmp_path)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    optimizer = torch.optim.SGD(loaded.train().parameters(), lr=0.1)
    loaded.proj_out.weight.sum().backward() if hasattr(loaded, "proj_out") else (
        loaded.decoder.conv_in.weight.sum().backward()
    )
    optimizer.step()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_blocks_are_compiled_in_place() -> None:
    model = SanaTransformer2DModel(TRANSFORMERS["tiny"])
    model.compile_repeated_blocks(backend="eager")
    assert all(block._compiled_call_impl is not None for block in model.transformer_blocks)
    assert model._compiled_call_impl is None
    with pytest.raises(ConfigError, match="no repeated blocks"):
        AutoencoderDC(AUTOENCODERS["tiny"]).compile_repeated_blocks()
