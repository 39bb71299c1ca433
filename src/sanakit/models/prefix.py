"""What an LLM keeps of the tokens that every prompt of a model begins with, so they run once.

A decoder looks back only, so keys and values of the first tokens do not depend on what follows
them. Knows neither files nor words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from sanakit.errors import WeightsError
from sanakit.shapes import Text


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

    def tensors(self) -> dict[str, Tensor]:
        """Give all that it holds by name; the way back is `from_tensors`."""
        found = {"first": self.first}
        for number, layer in enumerate(self._layers):
            found |= {f"keys.{number}": layer.keys, f"values.{number}": layer.values}
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, length: int, depth: int) -> Prefix:
        """Take back what `tensors` gave, of ``length`` tokens in ``depth`` layers.

        Raises:
            WeightsError: a tensor is missing, superfluous or of another length.
        """
        names = [f"{part}.{number}" for part in ("keys", "values") for number in range(depth)]
        if set(tensors) != {"first", *names}:
            raise WeightsError(f"a prefix of {depth} layers has other tensors than these")
        long = [tensors[name].ndim == 4 and tensors[name].shape[2] == length for name in names]
        if not all(long) or tensors["first"].shape[:2] != (1, 1):
            raise WeightsError(f"the states are not those of a prefix of {length} tokens")
        states = [tensors[name] for name in names]
        return cls(tensors["first"], states[:depth], states[depth:])


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
            # Read from a file, or the layer was moved meanwhile: once, and not in every call.
            self.keys = self.keys.to(key_states.device)
            self.values = self.values.to(key_states.device)
        before = (len(key_states), -1, -1, -1)
        keys = torch.cat([self.keys.expand(before), key_states], dim=-2)
        return keys, torch.cat([self.values.expand(before), value_states], dim=-2)
