"""A decoder-only LLM as a text encoder: its last hidden states, after the norm.

The Gemma-2 family runs by the forward of `gemma2`, all others by `transformers`, see `other_llms`.
Attention is causal and padding is on the right, so padding never changes a real token: sequences
are padded to the longest of their batch and no further.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from threading import Lock
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from sanakit.errors import ConfigError
from sanakit.models.gemma2 import (
    Gemma2Model,
    Pair,
    final_states,
    keys_and_values,
    runs_as_built,
)
from sanakit.nn.wide_products import with_wide_products
from sanakit.shapes import Text, TextMask, TokenIds

_CHANGING = Lock()


def other_llms() -> Any:
    """The module `sanakit.models.other_llms`, which imports all of transformers."""
    return import_module("sanakit.models.other_llms")


class Prefix:
    """Keys and values of a token sequence in every layer, and its first token's final state.

    Nothing in it changes by being used, so any number of threads may read behind one prefix.
    """

    first: Text
    """Final hidden state ``1 1 d`` of the first token, which every prompt keeps."""

    def __init__(self, first: Text, pairs: Sequence[Pair]) -> None:
        """Take a pair a layer, in the layers' order."""
        self.first = first
        self._pairs = list(pairs)

    def __len__(self) -> int:
        """Count its tokens."""
        return self._pairs[0].keys.shape[1]

    def on(self, device: torch.device) -> list[Pair]:
        """Its pairs, each on a device; moved once, and not in every call."""
        for layer, pair in enumerate(self._pairs):
            if pair.keys.device != device:
                self._pairs[layer] = Pair(pair.keys.to(device), pair.values.to(device))
        return list(self._pairs)


class TextEncoder(nn.Module):
    """A frozen LLM. Gradients never flow into it; dtype and device are those of its weights."""

    llm: nn.Module
    """A `Gemma2Model`, or a model of transformers."""

    def __init__(self, llm: nn.Module) -> None:
        """Take a decoder, or a causal language model whose head is then left aside.

        Raises:
            ConfigError: ``llm`` is an encoder or an encoder-decoder, or its attention softcap
                would be skipped by the attention implementation it was loaded with.
        """
        super().__init__()
        self.llm = llm if isinstance(llm, Gemma2Model) else other_llms().decoder_of(llm)
        self.eval()

    def published(self) -> nn.Module:
        """The LLM as a model of transformers, for whoever wants all that those can do.

        One of ours becomes one, once and for all that share this encoder: with the same weights,
        which are not copied, and the same states.
        """
        with _CHANGING:
            if isinstance(self.llm, Gemma2Model):
                self.llm = other_llms().published(self.llm)
            return self.llm

    @property
    def width(self) -> int:
        """Channels of a hidden state: what a diffusion transformer calls caption_channels."""
        return int(cast(Any, self.llm).config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """How many tokens it has embeddings for."""
        return int(cast(Any, self.llm).get_input_embeddings().weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the weights are, and so where ids go."""
        return cast(torch.device, self.llm.device)

    @torch.no_grad()
    @with_wide_products
    def hidden_states(self, ids: TokenIds, mask: TextMask) -> Text:
        """Last hidden states after the final norm, for every position, padding included.

        ``mask`` is True on real tokens, which come first in each row. States at padding are
        finite and have no meaning, but the reference stack for published weights reads them.
        """
        if runs_as_built(self.llm):
            return final_states(self.llm, ids, mask)
        output = self.llm(input_ids=ids, attention_mask=mask, use_cache=False)
        return cast(Text, output.last_hidden_state)

    @torch.no_grad()
    @with_wide_products
    def encode(self, sequences: Sequence[Sequence[int]]) -> tuple[Text, TextMask]:
        """Run token sequences of any lengths as one batch, padded to the longest of them.

        Raises:
            ConfigError: no sequence, or an empty one.
        """
        lengths = [len(sequence) for sequence in sequences]
        if not lengths or min(lengths) == 0:
            raise ConfigError(f"sequences of lengths {lengths}: need at least one token in each")
        ids, mask = self._batch(sequences)
        if runs_as_built(self.llm):
            return final_states(self.llm, ids, mask, every=False), mask
        return self.hidden_states(ids, mask), mask

    @torch.no_grad()
    @with_wide_products
    def read_prefix(self, ids: Sequence[int]) -> Prefix | None:
        """Run tokens that many sequences begin with; None: this LLM has to see them every time.

        Raises:
            ConfigError: no token.
        """
        if not ids:
            raise ConfigError("a prefix has at least one token")
        row = torch.tensor([list(ids)], device=self.device)
        if runs_as_built(self.llm):
            pairs, states = keys_and_values(self.llm, row)
        elif isinstance(self.llm, Gemma2Model) or not other_llms().keeps_prefixes(self.llm):
            return None
        else:
            pairs, states = other_llms().keys_and_values(self.llm, row)
        return Prefix(states[:, :1].clone(), pairs)

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
        pairs = prefix.on(self.device)
        if runs_as_built(self.llm):
            states = final_states(self.llm, ids, mask, before=pairs, every=False)
        else:
            states = other_llms().states_behind(self.llm, ids, mask, pairs)
        return torch.cat([first.to(states.device), states], dim=1), kept.to(states.device)

    def _batch(self, sequences: Sequence[Sequence[int]]) -> tuple[TokenIds, TextMask]:
        """Pad on the right to the longest, where the weights are."""
        mask = length_mask([len(sequence) for sequence in sequences])
        ids = torch.zeros(mask.shape, dtype=torch.long)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        return ids.to(self.device), mask.to(self.device)


def length_mask(lengths: Sequence[int], length: int | None = None) -> TextMask:
    """True in the first ``lengths[b]`` places of row b; as wide as ``length`` or the longest."""
    width = max(lengths) if length is None else length
    return torch.arange(width) < torch.tensor(lengths)[:, None]
