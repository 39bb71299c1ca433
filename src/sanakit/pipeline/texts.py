"""Both texts of a call, of prompts or of embeddings that the caller made."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.pipeline.generate import Pipeline, Texts
from sanakit.pipeline.numerics import require_finite
from sanakit.pipeline.prompt import Compat, EncodedText, PromptEncoder

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
