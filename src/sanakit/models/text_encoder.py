"""Any decoder-only LLM of transformers as a text encoder: its last hidden states, after the norm.

Attention is causal and padding is on the right, so padding never changes a real token: sequences
are padded to the longest of their batch and no further.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from sanakit.errors import ConfigError
from sanakit.models.prefix import Prefix, keeps_prefixes, run_prefix
from sanakit.shapes import Text, TextMask, TokenIds


class TextEncoder(nn.Module):
    """A frozen LLM. Gradients never flow into it; dtype and device are those of its weights."""

    llm: PreTrainedModel
    moves: int
    """How often ``to`` and its kin touched the weights; a cache of states looks at it."""

    def __init__(self, llm: PreTrainedModel) -> None:
        """Take a decoder, or a causal language model whose head is then left aside.

        Raises:
            ConfigError: ``llm`` is an encoder or an encoder-decoder, or its attention softcap
                would be skipped by the attention implementation it was loaded with.
        """
        super().__init__()
        _require_decoder(llm)
        self.llm = cast(PreTrainedModel, llm.base_model)
        self.moves = 0
        self.eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TextEncoder:
        self.moves += 1
        return super()._apply(fn, recurse)

    @property
    def width(self) -> int:
        """Channels of a hidden state: what a diffusion transformer calls caption_channels."""
        return int(self.llm.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are, and so where ids go."""
        return self.llm.device

    @torch.no_grad()
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

    def read_prefix(self, ids: Sequence[int]) -> Prefix | None:
        """Run tokens that many sequences begin with; None: this LLM has to see them every time.

        Raises:
            ConfigError: no token.
        """
        if not ids:
            raise ConfigError("a prefix has at least one token")
        return run_prefix(self.llm, ids, self.device) if keeps_prefixes(self.llm) else None

    @torch.no_grad()
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
