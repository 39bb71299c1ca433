"""Parts that a user wrapped, patched or hooked: what acts then is theirs, by the published calls.

Our own ways of running a network (text projected once for all steps, pictures decoded in tiles)
give the same numbers as its published call, and go past whatever was put around that call.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder, Decoder
from sanakit.models.config import AutoencoderConfig, ControlBranchConfig, TransformerConfig
from sanakit.models.controlnet import ControlBranch
from sanakit.models.tiny_decoder import TinyDecoder
from sanakit.models.transformer import Block, LinearDiT

# As they were when this file was read: whoever sets another on the class is noticed, too.
_BUILT = {
    (kind, name): getattr(kind, name)
    for kind, names in (
        (LinearDiT, ("forward", "velocity", "prepare_text")),
        (Autoencoder, ("decode", "_decode")),
        (Decoder, ("forward",)),
        (TinyDecoder, ("forward",)),
        (ControlBranch, ("forward", "steering", "prepare_text")),
    )
    for name in names
}
KINDS: dict[str, tuple[type[nn.Module], type[Any]]] = {
    "transformer": (LinearDiT, TransformerConfig),
    "vae": (Autoencoder, AutoencoderConfig),
    "controlnet": (ControlBranch, ControlBranchConfig),
}
N = TypeVar("N", bound=nn.Module)


def draws_as_built(transformer: nn.Module) -> bool:
    """Whether `LinearDiT.velocity` with prepared text is all that a call of this one does."""
    blocks = getattr(transformer, "transformer_blocks", ())
    return _as_built(transformer, LinearDiT) and all(isinstance(each, Block) for each in blocks)


def steers_as_built(controlnet: nn.Module) -> bool:
    """Whether `ControlBranch.steering` with prepared text is all that a call of this one does."""
    return _as_built(controlnet, ControlBranch)


def decodes_as_built(vae: nn.Module) -> bool:
    """Whether the layers of this autoencoder's decoder are all that its ``decode`` does."""
    kind = TinyDecoder if isinstance(vae.decoder, TinyDecoder) else Decoder
    return _as_built(vae, Autoencoder) and _as_built(vae.decoder, kind)


def _as_built(part: object, kind: type[nn.Module]) -> bool:
    if not isinstance(part, kind):
        return False
    ours = (
        getattr(type(part), name) is built and name not in vars(part)
        for (of, name), built in _BUILT.items()
        if of is kind
    )
    hooks = (
        part._forward_hooks,
        part._forward_pre_hooks,
        part._backward_hooks,
        part._backward_pre_hooks,
    )
    compiled = getattr(part, "_compiled_call_impl", None) is not None
    return all(ours) and not compiled and not any(hooks) and not _hooks_everywhere()


def _hooks_everywhere() -> bool:
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def network_in(part: nn.Module, kind: type[N]) -> N:
    """Our network in whatever a user put around it: what has its names, layers and adapters."""
    return next(inner for inner in part.modules() if isinstance(inner, kind))


def first_weight(part: nn.Module) -> Tensor:
    """The tensor by which a part tells its dtype and device; its last projection, if it has one.

    In a quantized transformer that one is real numbers.
    """
    projection = getattr(part, "proj_out", None)
    if isinstance(projection, nn.Linear):
        return projection.weight
    every = list(chain(part.parameters(), part.buffers()))
    real = (tensor for tensor in every if tensor.is_floating_point())
    return next(real, torch.empty(0))


def require_network(name: str, part: Any) -> Any:
    """Take our network, or a module around one that carries its config on; refuse all else."""
    kind, config = KINDS[name]
    inside = isinstance(part, nn.Module) and any(isinstance(m, kind) for m in part.modules())
    if inside and isinstance(getattr(part, "config", None), config):
        return part
    if inside:
        raise ConfigError(
            f"{name} is a {type(part).__name__} without the config of the network in it",
            hint=f"give it one: part.config = pipe.{name}.config",
        )
    raise ConfigError(
        f"{name} is of type {type(part).__name__} of {type(part).__module__.partition('.')[0]}",
        hint="save it with save_pretrained, and load that folder with the class of sanakit",
    )
