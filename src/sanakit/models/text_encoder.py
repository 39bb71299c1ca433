"""Any decoder-only LLM of transformers as a text encoder: its last hidden states, after the norm.

Attention is causal and padding is on the right, so padding never changes a real token: sequences
are padded to the longest of their batch and no further.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from sanakit.errors import ConfigError
from sanakit.nn.cpu import with_wide_products
from sanakit.shapes import Text, TextMask, TokenIds


class Prefix:
    """Keys and values of a token sequence in every layer, and its first token's final state.

    Nothing in it changes by being used, so any number of threads may read behind one prefix.
    """

    first: Text
    """Final hidden state ``1 1 d`` of the first token, which every prompt keeps."""

    def __init__(self, first: Text, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Take one key and one value tensor ``1 heads n dh`` a layer, in the layers' order."""
        self.first = first
        self._layers = [_PrefixLayer(*pair) for pair in zip(keys, values, strict=True)]
        self.cache = Cache(layers=list(self._layers))

    def __len__(self) -> int:
        """Count its tokens."""
        return self.cache.get_seq_length()


@torch.no_grad()
def run_prefix(llm: PreTrainedModel, ids: Sequence[int], device: torch.device) -> Prefix:
    """Run an LLM that `keeps_prefixes` over the tokens and keep what later ones look back at."""
    # Plain layers, for those with a sliding window too: their masks, not the cache, set the window,
    # and so the states of any length stay whole.
    cache = Cache(layers=[DynamicLayer() for _ in range(depth_of(llm))])
    row = torch.tensor([list(ids)], device=device)
    output = llm(
        input_ids=row, attention_mask=torch.ones_like(row), past_key_values=cache, use_cache=True
    )
    pairs = [_held(layer) for layer in cache.layers]
    keys, values = [keys for keys, _ in pairs], [values for _, values in pairs]
    return Prefix(output.last_hidden_state[:, :1].clone(), keys, values)


def depth_of(llm: PreTrainedModel) -> int:
    """Count the layers that attend."""
    return int(llm.config.get_text_config(decoder=True).num_hidden_layers)


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
    return len(layers) == depth_of(llm) and all(type(layer) in plain for layer in layers)


def _held(layer: object) -> tuple[Tensor, Tensor]:
    assert isinstance(layer, DynamicLayer)
    assert layer.keys is not None
    assert layer.values is not None
    return layer.keys, layer.values


class _PrefixLayer(DynamicLayer):
    """A layer of a cache that puts the prefix before what comes, and remembers none of it."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Join keys and values of ``b`` rows to those of the prefix, which are the same for all."""
        if self.keys.device != key_states.device:
            # The layer was moved meanwhile: once, and not in every call.
            self.keys = self.keys.to(key_states.device)
            self.values = self.values.to(key_states.device)
        before = (len(key_states), -1, -1, -1)
        keys = torch.cat([self.keys.expand(before), key_states], dim=-2)
        return keys, torch.cat([self.values.expand(before), value_states], dim=-2)


class TextEncoder(nn.Module):
    """A frozen LLM. Gradients never flow into it; dtype and device are those of its weights."""

    llm: PreTrainedModel

    def __init__(self, llm: PreTrainedModel) -> None:
        """Take a decoder, or a causal language model whose head is then left aside.

        Raises:
            ConfigError: ``llm`` is an encoder or an encoder-decoder, or its attention softcap
                would be skipped by the attention implementation it was loaded with.
        """
        super().__init__()
        _require_decoder(llm)
        self.llm = cast(PreTrainedModel, llm.base_model)
        _keep_frequencies(self.llm)
        self.eval()

    @property
    def width(self) -> int:
        """Channels of a hidden state: what a diffusion transformer calls caption_channels."""
        return int(self.llm.config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """How many tokens it has embeddings for."""
        weight = cast(torch.Tensor, self.llm.get_input_embeddings().weight)
        return weight.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are, and so where ids go."""
        return self.llm.device

    @torch.no_grad()
    @with_wide_products
    def hidden_states(self, ids: TokenIds, mask: TextMask) -> Text:
        """Last hidden states after the final norm, for every position, padding included.

        ``mask`` is True on real tokens, which come first in each row. States at padding are
        finite and have no meaning, but the reference stack for published weights reads them.
        """
        return self.llm(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state

    def encode(self, sequences: Sequence[Sequence[int]]) -> tuple[Text, TextMask]:
        """Run token sequences of any lengths as one batch, padded to the longest of them.

        Raises:
            ConfigError: no sequence, or an empty one.
        """
        lengths = [len(sequence) for sequence in sequences]
        if not lengths or min(lengths) == 0:
            raise ConfigError(f"sequences of lengths {lengths}: need at least one token in each")
        ids, mask = self._batch(sequences)
        return self.hidden_states(ids, mask), mask

    @with_wide_products
    def read_prefix(self, ids: Sequence[int]) -> Prefix | None:
        """Run tokens that many sequences begin with; None: this LLM has to see them every time.

        Raises:
            ConfigError: no token.
        """
        if not ids:
            raise ConfigError("a prefix has at least one token")
        return run_prefix(self.llm, ids, self.device) if keeps_prefixes(self.llm) else None

    @torch.no_grad()
    @with_wide_products
    def encode_behind(
        self, prefix: Prefix, sequences: Sequence[Sequence[int]]
    ) -> tuple[Text, TextMask]:
        """Run what comes behind a prefix, as one batch; a sequence may be empty.

        Gives the states ``b 1+l d`` of the prefix's first token and of all behind the prefix: what
        `encode` gives for them when it runs the whole, up to rounding.
        """
        ids, mask = self._batch(sequences)
        first = prefix.first.to(self.device).expand(len(sequences), -1, -1)
        kept = functional.pad(mask, (1, 0), value=True)
        if ids.shape[1] == 0:
            return first.clone(), kept
        states = self.llm(
            input_ids=ids,
            attention_mask=functional.pad(mask, (len(prefix), 0), value=True),
            past_key_values=prefix.cache,
            use_cache=True,
        ).last_hidden_state
        return torch.cat([first.to(states.device), states], dim=1), kept.to(states.device)

    def _batch(self, sequences: Sequence[Sequence[int]]) -> tuple[TokenIds, TextMask]:
        """Pad on the right to the longest, where the weights are."""
        mask = length_mask([len(sequence) for sequence in sequences])
        ids = torch.zeros(mask.shape, dtype=torch.long)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        return ids.to(self.device), mask.to(self.device)


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


def length_mask(lengths: Sequence[int], length: int | None = None) -> TextMask:
    """True in the first ``lengths[b]`` places of row b; as wide as ``length`` or the longest."""
    width = max(lengths) if length is None else length
    return torch.arange(width) < torch.tensor(lengths)[:, None]


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
