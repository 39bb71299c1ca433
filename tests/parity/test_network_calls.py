"""The networks are called as the published ones are, and answer in the same three ways."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

import sanakit
from sanakit.errors import ConfigError
from sanakit.models.config import AUTOENCODERS, TRANSFORMERS, config_to_dict

NAMES = ("SanaTransformer2DModel", "AutoencoderDC")


def pair(name: str) -> tuple[Any, Any]:
    """Ours and theirs with the same random weights."""
    configs: Any = TRANSFORMERS if name == NAMES[0] else AUTOENCODERS
    torch.manual_seed(0)
    theirs = getattr(diffusers, name)(**config_to_dict(configs["tiny"])).eval()
    ours = getattr(sanakit, name)(configs["tiny"]).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def step(rng: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "hidden_states": torch.randn(2, 4, 6, 8, generator=rng),
        "encoder_hidden_states": torch.randn(2, 5, 8, generator=rng),
        "timestep": torch.tensor([3, 700]),
    }


def same(ours: Any, theirs: Any, name: str) -> None:
    """By attribute, by key, by index, as a tuple."""
    expected = theirs[0]
    for found in (getattr(ours, name), ours[name], ours[0], ours.to_tuple()[0]):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mask", [None, torch.long, torch.float32, torch.bool])
@torch.no_grad()
def test_a_step_is_what_it_is_there(mask: torch.dtype | None, rng: torch.Generator) -> None:
    ours, theirs = pair(NAMES[0])
    given: dict[str, Any] = dict(step(rng))
    if mask is not None:
        keep = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
        given["encoder_attention_mask"] = keep.to(mask)
        theirs_given = {**given, "encoder_attention_mask": keep}
    else:
        theirs_given = given
    expected = theirs(**theirs_given)
    same(ours(**given), expected, "sample")
    same(ours(**given, attention_kwargs={"scale": 1.0}), expected, "sample")
    as_tuple = ours(**given, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], ours(**given).sample)
    x = given.pop("hidden_states")
    same(ours(x, given.pop("encoder_hidden_states"), **given), expected, "sample")


@torch.no_grad()
def test_pictures_and_latents_come_as_there(rng: torch.Generator) -> None:
    ours, theirs = pair(NAMES[1])
    image = torch.randn(3, 3, 8, 12, generator=rng)
    latent = theirs.encode(image).latent
    same(ours.encode(image), (latent,), "latent")
    same(ours.decode(latent), theirs.decode(latent), "sample")
    same(ours(image), theirs(image), "sample")
    for call, given in ((ours.encode, image), (ours.decode, latent), (ours, image)):
        (found,) = call(given, return_dict=False)
        assert torch.equal(found, call(given)[0])


@pytest.mark.parametrize(
    ("name", "method"),
    [(NAMES[0], "forward"), *((NAMES[1], method) for method in ("forward", "encode", "decode"))],
)
def test_arguments_have_the_published_names_in_the_published_order(name: str, method: str) -> None:
    theirs = getattr(getattr(diffusers, name), method)
    own = inspect.signature(getattr(getattr(sanakit, name), method)).parameters
    expected = inspect.signature(theirs).parameters
    assert [n for n, p in own.items() if p.kind is not p.VAR_KEYWORD] == list(expected)
    assert [own[n].default for n in expected] == [p.default for p in expected.values()]


def test_what_a_step_cannot_do_is_refused(rng: torch.Generator) -> None:
    model = pair(NAMES[0])[0]
    with pytest.raises(ConfigError, match="encoder_attention_mask"):
        model(**step(rng), attention_mask=torch.ones(2, 48))
    with pytest.raises(ConfigError, match="one number a token"):
        model(**step(rng), encoder_attention_mask=torch.zeros(2, 1, 5))
    with pytest.raises(TypeError, match="encoder_mask"):
        model(**step(rng), encoder_mask=torch.ones(2, 5))


def test_gradients_are_those_of_the_published_network(rng: torch.Generator) -> None:
    ours, theirs = pair(NAMES[0])
    slopes = []
    for model in (ours, theirs):
        nn.Module.train(model)
        x = step(torch.Generator().manual_seed(3))
        model(**x).sample.square().mean().backward()
        slopes.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert slopes[0].keys() == slopes[1].keys()
    for name, slope in slopes[1].items():
        torch.testing.assert_close(slopes[0][name], slope, rtol=1e-4, atol=1e-6, msg=name)
