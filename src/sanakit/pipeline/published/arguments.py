"""What the arguments of the published pipelines mean in this package's terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image as PILImage
from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.pipeline.images import to_pil, to_pixels
from sanakit.pipeline.numerics import require_finite
from sanakit.pipeline.pipeline import Pipeline, Texts
from sanakit.pipeline.prompts import Compat, EncodedText, PromptEncoder
from sanakit.shapes import Image, Latent

Prompts = str | Sequence[str]


def listed(prompt: Prompts | None, name: str = "prompt") -> list[str] | None:
    """One prompt or several, as a list.

    Raises:
        ConfigError: for anything but strings.
    """
    if prompt is None:
        return None
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(
                f"{name} holds a {type(text).__name__}", hint="a string or a list of strings"
            )
    return texts


def embedded(
    text: Tensor | None, mask: Tensor | None, prefix: str, channels: int
) -> EncodedText | None:
    """Embeddings that the caller made, with their mask; ``prefix`` begins both arguments' names.

    Raises:
        ConfigError: for one without the other, or shapes that do not agree.
        NumericsError: for a number that is not finite.
    """
    if text is None and mask is None:
        return None
    if text is None or mask is None:
        raise ConfigError(f"{prefix}_embeds and {prefix}_attention_mask come together")
    if text.ndim != 3 or mask.shape != text.shape[:2]:
        raise ConfigError(
            f"{prefix}_embeds are {tuple(text.shape)}, their mask {tuple(mask.shape)}",
            hint="embeddings are (b, tokens, channels), the mask (b, tokens)",
        )
    if text.shape[2] != channels:
        raise ConfigError(
            f"{prefix}_embeds have {text.shape[2]} channels, the transformer takes {channels}",
            hint="make them with this model's encode_prompt",
        )
    require_finite(text, f"{prefix}_embeds")
    return EncodedText(text=text, mask=mask.bool(), dropped=(0,) * len(text))


def encode_texts(
    core: Pipeline,
    *,
    prompt: Prompts | None,
    negative_prompt: Prompts | None,
    given: EncodedText | None,
    given_null: EncodedText | None,
    guided: bool,
    count_each: int,
    instruction: Sequence[str] | None,
    max_sequence_length: int,
    clean_caption: bool,
    compat: Compat,
) -> Texts:
    """Embeddings of the prompts and, where ``guided``, of as many negative ones.

    Each prompt stands ``count_each`` times in a row with its own mask, where the reference gives
    some pictures the mask of another prompt. An empty negative prompt gives way to embeddings.

    Raises:
        ConfigError: for a prompt beside its own embeddings, neither, or counts that do not agree.
    """
    prompts, negatives = listed(prompt), listed(negative_prompt, "negative_prompt")
    if (prompts is None) == (given is None):
        raise ConfigError(
            "pass either prompt or prompt_embeds, and not both",
            hint='prompt="" draws without words' if prompts is None else None,
        )
    if given_null is not None and negatives and any(negatives):
        raise ConfigError("pass either negative_prompt or negative_prompt_embeds, and not both")
    count = len(prompts) if prompts is not None else len(given.text) if given is not None else 0
    sides = given_null.text.shape[0] if given_null is not None else len(negatives or [""])
    if guided and sides not in (1, count):
        raise ConfigError(f"{sides} negative prompts for {count} prompts", hint="one, or one each")

    def ask(encoder: PromptEncoder) -> Texts:
        positive, null = given, given_null
        if positive is None:
            assert prompts is not None
            positive = encoder.encode(
                prompts,
                instruction=instruction,
                max_sequence_length=max_sequence_length,
                clean_caption=clean_caption,
                compat=compat,
            )
        if not guided:
            return positive, None
        if null is None:
            texts = negatives or [""]
            if compat == "nvlabs" and len(texts) == 1:
                texts = texts * count  # each wears the mask of another prompt
            null = encoder.encode_null(
                texts,
                positive,
                max_sequence_length=max_sequence_length,
                clean_caption=clean_caption,
                compat=compat,
            )
        return positive, null if len(null.text) == count else null.repeat(count)

    positive, negative = core.encode(ask)
    if count_each == 1:
        return positive, negative
    return positive.repeat(count_each), None if negative is None else negative.repeat(count_each)


OutputType = Literal["pil", "np", "pt", "latent"]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
TENSOR_INPUTS = ("latents", "prompt_embeds", "negative_prompt_embeds")
"""What a callback may ask for and replace."""
MODEL_DEFAULT = ("the model's own",)
Generators = torch.Generator | Sequence[torch.Generator]
Images = list[PILImage] | npt.NDArray[np.float32] | Tensor
Callback = Callable[[Any, int, Tensor, dict[str, Tensor]], "dict[str, Tensor] | None"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """The arguments of one call of a published pipeline, each checked as far as it can be alone."""

    prompt: Prompts | None
    negative_prompt: Prompts | None
    num_inference_steps: int
    timesteps: Sequence[float] | None
    sigmas: Sequence[float] | None
    guidance_scale: float | None
    num_images_per_prompt: int
    height: int | None
    width: int | None
    eta: float
    generator: Generators | None
    latents: Latent | None
    prompt_embeds: Tensor | None
    prompt_attention_mask: Tensor | None
    negative_prompt_embeds: Tensor | None
    negative_prompt_attention_mask: Tensor | None
    output_type: OutputType
    return_dict: bool
    clean_caption: bool
    use_resolution_binning: bool
    attention_kwargs: dict[str, Any] | None
    callback_on_step_end: Callback | None
    callback_on_step_end_tensor_inputs: Sequence[str]
    max_sequence_length: int
    complex_human_instruction: Sequence[str] | None
    compat: Compat
    pag_scale: float = 0.0
    pag_adaptive_scale: float = 0.0
    pag_layers: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for name in ("num_images_per_prompt", "num_inference_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least 1")
        if self.eta != 0.0:
            raise ConfigError(f"eta={self.eta}: flow solvers add no noise", hint="leave eta at 0.0")
        if self.output_type not in OUTPUT_TYPES:
            raise ConfigError(
                f"output_type={self.output_type!r}", hint=f"one of {', '.join(OUTPUT_TYPES)}"
            )
        if unknown := sorted(set(self.attention_kwargs or ()) - {"scale"}):
            raise ConfigError(
                f"attention_kwargs has {', '.join(unknown)}: nothing here reads it",
                hint="'scale' is the strength of LoRA weights",
            )
        if not isinstance(self.lora_scale, int | float | None):
            raise ConfigError(f"attention_kwargs has scale={self.lora_scale!r}: no number")
        if unknown := sorted(set(self.tensor_inputs) - set(TENSOR_INPUTS)):
            raise ConfigError(
                f"callback_on_step_end_tensor_inputs names {', '.join(unknown)}",
                hint=f"to be had: {', '.join(TENSOR_INPUTS)}",
            )

    @property
    def tensor_inputs(self) -> Sequence[str]:
        """What the callback is shown; a callback object says so itself."""
        own = getattr(self.callback_on_step_end, "tensor_inputs", None)
        return self.callback_on_step_end_tensor_inputs if own is None else own

    @property
    def lora_scale(self) -> float | None:
        """Strength of LoRA weights in this call; None leaves it as it is."""
        scale: float | None = (self.attention_kwargs or {}).get("scale")
        return scale


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
