"""Tell one LLM from another, and from itself before its weights changed, in milliseconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

SAMPLES = 256
# What a config says of its file, and not of the model.
_OF_THE_FILE = ("_name_or_path", "_commit_hash", "architectures", "dtype", "transformers_version")


def llm_fingerprint(llm: PreTrainedModel) -> str | None:
    """Give 64 hex digits for config, software, dtypes and 256 values of each tensor at rest.

    Training, merging and rounding change nearly all values and so are seen; an edit that spares
    every sampled value is not. None: weights that are not in memory, or cannot be read as bytes.
    """
    config = {k: v for k, v in llm.config.to_dict().items() if k not in _OF_THE_FILE}
    said = [type(llm).__name__, torch.__version__, transformers.__version__, *arithmetic(llm)]
    digest = hashlib.sha256(json.dumps([said, config], sort_keys=True, default=str).encode())
    # Of a quantised layer the state dict also has the scales, its parameters do not.
    for name, value in sorted(llm.state_dict().items()):
        if not isinstance(value, Tensor):
            return None
        for number, part in enumerate(_plain(value)):
            if part.is_meta:
                return None
            digest.update(f"{name}.{number}:{part.dtype}:{tuple(part.shape)};".encode())
            digest.update(_sample(part))
    return digest.hexdigest()


def weights_stamp(llm: PreTrainedModel) -> Hashable:
    """Give a value that changes when parameters are moved, replaced, cast or written to in place.

    Reads no weight. An adapter that is only switched on or off changes no parameter.
    """
    parts = (part for parameter in llm.parameters() for part in _plain(parameter))
    # An inference tensor counts no versions: nothing may write to it.
    held = tuple(
        (p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype, p.device) for p in parts
    )
    return held, arithmetic(llm)


def arithmetic(llm: PreTrainedModel) -> tuple[str, ...]:
    """What besides the weights decides about the last digits of a result."""
    device = llm.device.type
    known = device != "meta" and torch.is_autocast_enabled(device)
    return (
        device,
        str(llm.config._attn_implementation),
        torch.get_float32_matmul_precision(),
        str(torch.get_autocast_dtype(device)) if known else "no autocast",
    )


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """Take a quantised tensor apart into those that it wraps."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    for name in flatten()[0]:
        yield from _plain(getattr(tensor, name))


def _sample(tensor: Tensor) -> bytes:
    count = tensor.numel()
    if count == 0:
        return b""
    flat = tensor.detach().contiguous().reshape(-1)
    # Whole elements as bytes: single bytes at even steps could all be exponents.
    values = flat.view(torch.uint8).reshape(count, flat.element_size())
    places = torch.linspace(0, count - 1, min(count, SAMPLES), dtype=torch.float64).long()
    return values[places.to(values.device)].cpu().numpy().tobytes()
