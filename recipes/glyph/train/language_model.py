"""Teach a small decoder-only LLM to read prompts: packed rows, next-token loss, our own shape.

It exists so that a model can ship whole under our licence; any published LLM takes its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import Gemma2Config, Gemma2Model, PreTrainedModel, PreTrainedTokenizerBase

from sanakit.errors import ConfigError, DataError
from sanakit.models.flops import language_model_flops
from sanakit.shapes import TextMask, TokenIds
from sanakit.train.config import LoopConfig
from sanakit.train.recipe import Recipe, Timers
from sanakit.train.sample_schedule import SampleSchedule, generator_of, uniform_of

Rows = NDArray[np.uint16]
Batch = tuple[TokenIds, TextMask]
_OPEN_ROWS = 64


LM_SHAPES: Mapping[str, dict[str, Any]] = {
    "glyph": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64},
    "tiny": {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4},
}  # fmt: skip


def glyph_lm_config(shape: str = "glyph", vocab_size: int = 8192) -> Gemma2Config:
    """Give the shape of our own LLM: Gemma-2 made small, 8.4 M parameters with 8192 pieces.

    Ids are those of ``train_tokenizer``. Attention keeps Gemma's softcap and therefore runs eager;
    the softcap of the output, which no text encoder uses, is off.
    """
    sizes = LM_SHAPES[shape]
    return Gemma2Config(
        **sizes,
        vocab_size=vocab_size,
        query_pre_attn_scalar=sizes["head_dim"],
        max_position_embeddings=1024,
        sliding_window=1024,
        final_logit_softcapping=None,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )


def pack_rows(
    documents: Iterable[Sequence[int]], row_length: int = 96, *, bos: int = 2, pad: int = 0
) -> Rows:
    """Lay whole documents into rows of ``row_length`` ids, each document behind its own ``bos``.

    Documents may come with or without their ``bos``. One longer than a row goes on in the next
    row, behind another ``bos``. A document goes into the fullest of 64 open rows that has room;
    what stays free, about one part in a hundred, is ``pad`` at the right end.

    Raises:
        ConfigError: ``row_length`` below 2.
        DataError: no document, an id outside uint16, or a ``pad`` inside a document.
    """
    if row_length < 2:
        raise ConfigError(f"row_length={row_length} leaves no room behind bos: use at least 2")
    closed: list[list[int]] = []
    rows: list[list[int]] = []
    for chunk in _chunks(documents, row_length, bos):
        if pad in chunk or max(chunk) > 65535 or min(chunk) < 0:
            raise DataError(f"a document holds the padding id {pad} or an id outside uint16")
        fitting = [row for row in rows if len(row) + len(chunk) <= row_length]
        if fitting:
            max(fitting, key=len).extend(chunk)
            continue
        if len(rows) == _OPEN_ROWS:
            closed.append(rows.pop(max(range(_OPEN_ROWS), key=lambda index: len(rows[index]))))
        rows.append(list(chunk))
    closed += rows
    if not closed:
        raise DataError("no document to pack")
    packed = np.full((len(closed), row_length), pad, dtype=np.uint16)
    for index, row in enumerate(closed):
        packed[index, : len(row)] = row
    return packed


def prepare_rows(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    row_length: int = 96,
    held_every: int = 50,
) -> tuple[Rows, Rows]:
    """Tokenise and pack texts; every ``held_every``-th goes to the second array, the held-out one.

    Raises:
        ConfigError: fewer than two texts a part, or a row length ``pack_rows`` refuses.
    """
    if not 2 <= held_every <= len(texts):
        raise ConfigError(f"held_every={held_every} is not within 2 and {len(texts)}, the texts")
    ids = tokenizer(list(texts), verbose=False)["input_ids"]
    bos, pad = int(tokenizer.bos_token_id), int(tokenizer.pad_token_id)
    train = [document for index, document in enumerate(ids) if index % held_every]
    return (
        pack_rows(train, row_length, bos=bos, pad=pad),
        pack_rows(ids[::held_every], row_length, bos=bos, pad=pad),
    )


def language_model_loss(model: PreTrainedModel, ids: TokenIds, mask: TextMask) -> Tensor:
    """Mean cross-entropy in nats of every real token but the first of a row, given those before.

    ``model`` is a decoder without head whose output weights are its input embedding. Rows may be
    packed: positions restart at each ``bos`` and no token attends beyond it, so a document costs
    what it costs alone. The ``bos`` that ends a document is predicted as well. Padding must be on
    the right. Cross-entropy is fp32.

    Raises:
        ConfigError: the model's config does not tie the two embeddings.
    """
    config = model.config
    if not config.tie_word_embeddings:
        raise ConfigError(
            f"{type(model).__name__} has tie_word_embeddings=False: no output weights to learn with"
        )
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    starts = torch.where(ids == config.bos_token_id, positions, 0).cummax(dim=1).values
    # No attention mask is passed: with restarting positions and none, transformers separates the
    # documents of a row, and causality alone keeps what is real from seeing the padding after it.
    states = model(
        input_ids=ids, position_ids=positions - starts, use_cache=False
    ).last_hidden_state
    real = mask[:, 1:]
    logits = functional.linear(
        states[:, :-1][real], model.get_input_embeddings().get_parameter("weight")
    ).float()
    softcap = getattr(config, "final_logit_softcapping", None)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return functional.cross_entropy(logits, ids[:, 1:][real])


class LanguageModelRecipe(Recipe[Batch]):
    """Next-token prediction on packed rows; how the loop trains our own LLM."""

    module: PreTrainedModel

    def __init__(self, module: PreTrainedModel, rows: Rows, held: Rows) -> None:
        self.module = module
        self.config = module.config
        self.rows = rows
        self.held = held

    def stream(self, schedule: SampleSchedule) -> Iterator[Batch]:
        """Any rows, each as likely; ``(ids, mask)``."""
        for span in schedule.spans():
            place = uniform_of([generator_of(schedule.seed, k) for k in span])
            yield self._batch(self.rows[(place.double() * len(self.rows)).long().numpy()])

    def prepare(self, batch: Batch, device: torch.device, timers: Timers) -> Batch:
        """Bring it to the device; nothing is frozen."""
        return batch[0].to(device), batch[1].to(device)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Nats over the places of a row, and nats a token; deterministic given the batch.

        The mean over places and not over tokens, so that parts of a batch add up to the whole.
        """
        nats = language_model_loss(self.module, *batch)
        real = batch[1][:, 1:]
        return {"loss": nats * real.float().mean(), "nats": nats.detach()}

    @torch.no_grad()
    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Nats a token over held-out rows: all, or 128 or a few more spread evenly over them."""
        assert isinstance(module, PreTrainedModel)
        nats, tokens = 0.0, 0
        spread = self.held[:: max(1, len(self.held) // 128)]
        for start in range(0, len(spread), 16):
            ids, mask = self._batch(spread[start : start + 16])
            count = int(mask[:, 1:].sum())
            nats += float(language_model_loss(module, ids, mask)) * count
            tokens += count
        return {"nats": nats / tokens}

    def blocks(self) -> Iterator[nn.Module]:
        """The decoder's layers."""
        yield from self.module.get_submodule("layers").children()

    def checkpoint_gradients(self) -> None:
        """In the decoder's layers."""
        recompute(self.blocks())

    def flops(self) -> float:
        """Of a full row: its layers, and the output weights of every place but the last."""
        tokens, config = self.rows.shape[1], self.config
        last = 2 * (tokens - 1) * config.hidden_size * config.vocab_size
        return float(language_model_flops(config, tokens) + last)

    def _batch(self, rows: Rows) -> Batch:
        ids = torch.from_numpy(rows.astype(np.int64))
        return ids, ids != self.config.pad_token_id


LANGUAGE_MODEL_LOOP = LoopConfig(
    batch_size=24,
    total_images=36_000,
    peak_lr=2e-3,
    warmup_images=1_200,
    decay_share=0.6,
    weight_decay=0.05,
    betas=(0.9, 0.98),
    log_every=50,
    evaluate_every=250,
)


def language_model_run(text: Path, shape: str = "glyph") -> LanguageModelRecipe:
    """The embedded model's text encoder, first as a language model; rows lie in ``text``.

    Raises:
        DataError: the tokenizer did not make them yet.
    """
    for name in ("rows", "held"):
        if not (text / f"{name}.npy").is_file():
            raise DataError(
                f"{text / name}.npy is missing",
                hint="run `python -m recipes.glyph tokenizer` first",
            )
    rows, held = (np.load(text / f"{name}.npy", mmap_mode="r") for name in ("rows", "held"))
    torch.manual_seed(0)
    module = Gemma2Model._from_config(glyph_lm_config(shape), attn_implementation="eager")
    return LanguageModelRecipe(module, rows, held)


def recompute(layers: Iterable[nn.Module]) -> None:
    """Have each layer's inner results computed again in the backward pass, not kept for it."""
    for layer in layers:
        # The library's own switch has another name in each of its versions.
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
        )


def _chunks(
    documents: Iterable[Sequence[int]], row_length: int, bos: int
) -> Iterator[Sequence[int]]:
    """Split documents into pieces of at most ``row_length``, each opened by ``bos``."""
    for document in documents:
        body = list(document[1:] if len(document) and document[0] == bos else document)
        for start in range(0, len(body), row_length - 1):
            yield [bos, *body[start : start + row_length - 1]]
