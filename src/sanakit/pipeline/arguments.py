"""What the arguments of the published pipelines mean in this package's terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image as PILImage
from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.pipeline.images import to_pil, to_pixels
from sanakit.pipeline.prompt import EncodedText
from sanakit.shapes import Image, Latent

OutputType = Literal["pil", "np", "pt", "latent"]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
Generators = torch.Generator | Sequence[torch.Generator]
Images = list[PILImage] | npt.NDArray[np.float32] | Tensor


def refuse_unsupported(
    eta: float, attention_kwargs: dict[str, Any] | None, output_type: str, inputs: Sequence[str]
) -> None:
    """Refuse what could only be ignored.

    Raises:
        ConfigError: naming the argument, and what to do without it.
    """
    if eta != 0.0:
        raise ConfigError(f"eta={eta}: flow solvers add no noise", hint="leave eta at 0.0")
    if attention_kwargs:
        raise ConfigError(
            f"attention_kwargs has {', '.join(attention_kwargs)}: nothing here reads it",
            hint="leave it out; LoRA weights cannot be loaded yet",
        )
    if output_type not in OUTPUT_TYPES:
        raise ConfigError(f"output_type={output_type!r}", hint=f"one of {', '.join(OUTPUT_TYPES)}")
    if unknown := set(inputs) - {"latents"}:
        raise ConfigError(
            f"callback_on_step_end_tensor_inputs names {', '.join(sorted(unknown))}",
            hint="latents can be had",
        )


def listed(prompt: str | Sequence[str] | None) -> list[str] | None:
    """One prompt or several, as a list."""
    if prompt is None:
        return None
    return [prompt] if isinstance(prompt, str) else list(prompt)


def embedded(text: Tensor | None, mask: Tensor | None, name: str) -> EncodedText | None:
    """Embeddings that the caller made, with their mask.

    Raises:
        ConfigError: for one without the other, or shapes that do not agree.
    """
    if text is None and mask is None:
        return None
    prefix = "negative_prompt" if name.startswith("negative") else "prompt"
    if text is None or mask is None:
        raise ConfigError(f"{prefix}_embeds and {prefix}_attention_mask come together")
    if text.ndim != 3 or mask.shape != text.shape[:2]:
        raise ConfigError(
            f"{prefix}_embeds are {tuple(text.shape)}, their mask {tuple(mask.shape)}",
            hint="embeddings are (b, tokens, channels), the mask (b, tokens)",
        )
    return EncodedText(text=text, mask=mask.bool(), dropped=(0,) * len(text))


def draw_noise(count: int, shape: tuple[int, int, int], generator: Generators | None) -> Latent:
    """Noise ``count c h w``: one generator draws all of it, a list one picture each.

    Raises:
        ConfigError: for a list of another length.
    """
    if generator is None or isinstance(generator, torch.Generator):
        device = "cpu" if generator is None else generator.device
        return torch.randn(count, *shape, generator=generator, device=device)
    if len(generator) != count:
        raise ConfigError(
            f"{len(generator)} generators for {count} pictures", hint="pass one a picture"
        )
    return torch.cat([torch.randn(1, *shape, generator=g, device=g.device) for g in generator])


def rows_of(encoded: EncodedText, rows: slice) -> EncodedText:
    """Some prompts of a batch, cut to the longest of them."""
    mask = encoded.mask[rows]
    longest = int(mask.any(dim=0).nonzero().max()) + 1 if mask.any() else mask.shape[1]
    return EncodedText(
        text=encoded.text[rows, :longest], mask=mask[:, :longest], dropped=encoded.dropped[rows]
    )


def as_output(image: Image, output_type: str) -> Images:
    """Pictures in [-1, 1] in the form that was asked for."""
    if output_type == "pil":
        return to_pil(to_pixels(image))
    unit = (image.float() / 2 + 0.5).clamp(0, 1).cpu()
    return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).numpy()
