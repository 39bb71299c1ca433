"""Decoder-only LLMs of `transformers` as text encoders. Importing this imports all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.initialization import no_init_weights

from sanakit.errors import ConfigError
from sanakit.models.gemma2 import Gemma2Model, Pair
from sanakit.shapes import Text, TextMask, TokenIds


def decoder_of(llm: PreTrainedModel) -> PreTrainedModel:
    """The decoder in a language model, ready to run.

    Raises:
        ConfigError: it has none, or one whose softcap its attention would skip.
    """
    _require_decoder(llm)
    decoder = cast(PreTrainedModel, llm.base_model)
    _keep_frequencies(decoder)
    return decoder


def built(config: PreTrainedConfig, *, empty: bool = False) -> PreTrainedModel:
    """Build an LLM without weights, eagerly attending: fused attention skips a softcap.

    Buffers are real, for they are computed, not stored; but not in one that is ``empty``.
    """
    with init_empty_weights(include_buffers=empty), no_init_weights():
        llm: PreTrainedModel = AutoModel.from_config(
            config, attn_implementation="eager", trust_remote_code=False
        )
    return llm


def published(llm: Gemma2Model) -> PreTrainedModel:
    """The model of transformers that has the same config and holds the very same weights."""
    values = {key: value for key, value in llm.config.published.items() if key != "model_type"}
    made = built(AutoConfig.for_model("gemma2", **values))
    made.load_state_dict(llm.state_dict(), assign=True)
    for own, other in zip(llm.parameters(), made.parameters(), strict=True):
        other.requires_grad_(own.requires_grad)
    nn.Module.to(made, llm.device).train(llm.training)
    return decoder_of(made)


def keys_and_values(llm: PreTrainedModel, ids: TokenIds) -> tuple[list[Pair], Text]:
    """Run an LLM that `keeps_prefixes` over one row; keep what later tokens look back at."""
    # Plain layers, for those with a sliding window too: their masks, not the cache, set the window,
    # and so the states of any length stay whole.
    cache = Cache(layers=[DynamicLayer() for _ in range(_depth_of(llm))])
    output = llm(
        input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True
    )
    return [_held(layer) for layer in cache.layers], output.last_hidden_state


def states_behind(
    llm: PreTrainedModel, ids: TokenIds, mask: TextMask, before: Sequence[Pair]
) -> Text:
    """States of tokens that come behind those whose keys and values are kept."""
    return llm(
        input_ids=ids,
        attention_mask=functional.pad(mask, (before[0].keys.shape[1], 0), value=True),
        past_key_values=Cache(layers=[_PrefixLayer(*pair) for pair in before]),
        use_cache=True,
    ).last_hidden_state


def keeps_prefixes(llm: PreTrainedModel) -> bool:
    """Whether keys and values are all that a later token sees of an earlier one.

    Not so with recurrent layers, layers that share keys, or attention in chunks.
    """
    config = llm.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= {"full_attention", "sliding_attention"} or llm._is_stateful:
        return False
    if getattr(config, "attention_chunk_size", None) or getattr(config, "num_kv_shared_layers", 0):
        return False
    layers = DynamicCache(config=config).layers
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return len(layers) == _depth_of(llm) and all(type(layer) in plain for layer in layers)


def _depth_of(llm: PreTrainedModel) -> int:
    """Count the layers that attend."""
    return int(llm.config.get_text_config(decoder=True).num_hidden_layers)


def _held(layer: object) -> Pair:
    assert isinstance(layer, DynamicLayer)
    assert layer.keys is not None
    assert layer.values is not None
    return Pair(layer.keys[0], layer.values[0])


class _PrefixLayer(DynamicLayer):
    """A layer of a cache that puts the prefix before what comes, and remembers none of it."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys[None], values[None]
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Join keys and values of ``b`` rows to those of the prefix, which are the same for all."""
        before = (len(key_states), -1, -1, -1)
        # Layers of one model may be on several devices.
        keys, values = self.keys.to(key_states.device), self.values.to(key_states.device)
        keys = torch.cat([keys.expand(before), key_states], dim=-2)
        return keys, torch.cat([values.expand(before), value_states], dim=-2)


FREQUENCIES = "inv_freq"
"""How transformers ends the names of a rotary embedding's frequencies."""


def _keep_frequencies(llm: nn.Module) -> None:
    """Have rotary frequencies fp32 whatever the network is cast to, now and by anybody later.

    They are computed, not stored, and in bf16 the 300th token would stand half a token from its
    place. Where they were cast before, they are computed again.
    """
    for rotary in llm.modules():
        held = {
            name: buffer
            for name, buffer in rotary.named_buffers(recurse=False)
            if name.endswith(FREQUENCIES)
        }
        if not held:
            continue
        if isinstance(config := getattr(rotary, "config", None), PreTrainedConfig):
            with torch.device("cpu"):
                fresh = dict(cast(Any, type(rotary))(config).named_buffers())
            for name, buffer in held.items():
                if not buffer.is_meta and not _same(buffer, fresh[name]):
                    rotary._buffers[name] = fresh[name].to(buffer.device)
        # On the instance, for its owner casts it without us. A partial of a plain function can be
        # copied and pickled.
        rotary.__dict__["_apply"] = partial(_apply_uncast, rotary)


def _apply_uncast(
    rotary: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True
) -> nn.Module:
    """`nn.Module._apply` that moves the frequencies and leaves their dtype."""
    before = dict(rotary.named_buffers(recurse=False))
    nn.Module._apply(rotary, fn, recurse)
    for name, buffer in before.items():
        moved = rotary._buffers[name]
        if name.endswith(FREQUENCIES) and moved is not None and moved.dtype != buffer.dtype:
            rotary._buffers[name] = buffer.to(moved.device)
    return rotary


def _same(held: Tensor, fresh: Tensor) -> bool:
    """Whether frequencies are those of fp32, computed on whatever device."""
    return held.dtype == fresh.dtype and torch.allclose(held.cpu(), fresh, rtol=1e-5, atol=0)


def _require_decoder(llm: PreTrainedModel) -> None:
    config, name = llm.config, type(llm).__name__
    hint = "use a decoder-only model: Gemma2Model, LlamaModel, Qwen2Model"
    if config.is_encoder_decoder:
        raise ConfigError(f"{name} is an encoder-decoder: it has no single causal stack", hint=hint)
    # Every attention of transformers says whether it is causal.
    causal = [m.is_causal for m in llm.modules() if isinstance(getattr(m, "is_causal", None), bool)]
    if not causal or not all(causal):
        raise ConfigError(
            f"{name} is not a causal decoder: a token's state would depend on the words and the "
            "padding after it",
            hint=hint,
        )
    softcap = getattr(config, "attn_logit_softcapping", None)
    if softcap is not None and config._attn_implementation == "sdpa":
        raise ConfigError(
            f"{name} was loaded with sdpa attention, which skips its softcap of {softcap}",
            hint='load it with attn_implementation="eager"',
        )
