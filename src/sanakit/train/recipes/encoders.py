"""What a diffusion run computes of its data: pictures to latents, captions to text states."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sanakit.data.loader.reading import padded
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.text_encoder import length_mask
from sanakit.pipeline.prompts import SHOWN, PromptCutWarning, PromptEncoder
from sanakit.shapes import Latent, Text, TextMask

LATENT_BYTES = 256 * 2**20


class Encoders:
    """Autoencoder and text encoder, on the device that asks; results are kept while there is room.

    The null prompt has the states and the mask of an empty text behind no instruction, as
    pictures are drawn with. On the CPU pictures are encoded one by one, so that a latent does not
    depend on its neighbours in a batch, nor on what is still known.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        prompts: PromptEncoder,
        *,
        max_tokens: int = 300,
        latent_bytes: int = LATENT_BYTES,
    ) -> None:
        self.autoencoder = autoencoder
        self.prompts = prompts
        self.max_tokens = max_tokens
        self.latent_bytes = latent_bytes
        self._told_of_cut = False
        self._latents: OrderedDict[str, Tensor] = OrderedDict()

    @torch.no_grad()
    def latents(
        self,
        ids: Sequence[str],
        pixels: Tensor | Callable[[int], Tensor],
        device: torch.device,
    ) -> Latent:
        """Scaled latents ``b c h w``, fp32, of pictures uint8 ``b H W 3`` by their names.

        ``pixels`` may give one picture by its row: it is asked for those not known alone.
        """
        if next(self.autoencoder.parameters()).device != device:
            self.autoencoder.to(device)
        missing = [row for row, id in enumerate(ids) if id not in self._latents]
        fresh: dict[str, Tensor] = {}
        for rows in [[row] for row in missing] if device.type == "cpu" else [missing]:
            if rows:
                some = torch.stack([pixels(r) for r in rows]) if callable(pixels) else pixels[rows]
                found = self._encoded(some.to(device))
                fresh |= {ids[row]: latent for row, latent in zip(rows, found, strict=True)}
        x0 = torch.stack([fresh[id] if id in fresh else self._latents[id].to(device) for id in ids])
        for id in ids:
            if id in fresh:
                self._latents[id] = fresh[id].cpu()
            self._latents.move_to_end(id)
        most = max(1, self.latent_bytes // x0[0].nbytes)
        while len(self._latents) > most:
            self._latents.popitem(last=False)
        return x0

    @torch.no_grad()
    def texts(self, captions: Sequence[str], device: torch.device) -> tuple[Text, TextMask]:
        """States ``b l d``, fp32, and mask of captions behind the model's instruction.

        An empty caption is the null prompt.
        """
        with torch.autocast(device.type, enabled=False):
            if self.prompts.text_encoder.device != device:
                self.prompts.text_encoder.to(device)
            rows = {caption: self._null_states() for caption in captions if not caption.strip()}
            spoken = list(dict.fromkeys(caption for caption in captions if caption.strip()))
            if spoken:
                instruction = self.prompts.instruction
                encoded = self.prompts.encode(
                    spoken, instruction=instruction, max_sequence_length=self.max_tokens
                )
                self._tell_cut(next(filter(None, encoded.lost), ""))
                for caption, states, mask in zip(spoken, encoded.text, encoded.mask, strict=True):
                    rows[caption] = states[mask]
            text, mask = padded([rows[caption] for caption in captions])
        return text.float().to(device), mask.to(device)

    def texts_with_gradient(
        self, llm: nn.Module, captions: Sequence[str], device: torch.device
    ) -> tuple[Text, TextMask]:
        """The same of an ``llm`` that learns along, the text encoder's own; nothing is kept."""
        null, _, _ = self.prompts.tokens([""], instruction=None)
        behind, _, cut_away = self.prompts.tokens(captions, instruction=self.prompts.instruction)
        sequences, kept = [], []
        for caption, ids in zip(captions, behind, strict=True):
            first = cut_away if caption.strip() else 1
            most = first + self.max_tokens - 1
            read = ids if caption.strip() else null[0]
            sequences.append(read[:most])
            if not self._told_of_cut and len(read) > most:
                self._tell_cut(str(self.prompts.tokenizer.decode(read[most:])))
            kept.append([0, *range(first, len(sequences[-1]))])
        mask = length_mask([len(ids) for ids in sequences])
        rows = torch.zeros(mask.shape, dtype=torch.long)
        rows[mask] = torch.tensor([id for ids in sequences for id in ids])
        states = llm(
            input_ids=rows.to(device), attention_mask=mask.to(device), use_cache=False
        ).last_hidden_state.float()
        text = pad_sequence(
            [row[places] for row, places in zip(states, kept, strict=True)], batch_first=True
        )
        return text, length_mask([len(places) for places in kept]).to(device)

    def _tell_cut(self, lost: str) -> None:
        """Tell what the first caption that is too long loses; there may be millions."""
        if self._told_of_cut or not lost:
            return
        self._told_of_cut = True
        warnings.warn(
            f"{self.max_tokens} tokens of a caption are read, of longer ones the end is cut off; "
            f"the first loses {lost[:SHOWN]!r}. More are read by --set max_tokens=...",
            PromptCutWarning,
            stacklevel=3,
        )

    def _null_states(self) -> Tensor:
        null = self.prompts.encode([""], instruction=None, max_sequence_length=self.max_tokens)
        return null.text[0][null.mask[0]]

    def _encoded(self, pixels: Tensor) -> Latent:
        weight = next(self.autoencoder.parameters())
        image = pixels.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
        with torch.autocast(pixels.device.type, enabled=False):
            raw = self.autoencoder.encode(image.to(weight.dtype)).latent
        return raw.float() * self.autoencoder.config.scaling_factor
