"""Parts that a caller loaded become components, without a copy."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.text_encoder import TextEncoder
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components import Components, Habits
from sanakit.pipeline.prompt import PromptEncoder

# Under this name a transformer carries what it was trained to expect into the next pipeline.
_HABITS = "_sanakit_habits"


def assemble(
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    text_encoder: PreTrainedModel | TextEncoder | None,
    vae: Autoencoder | None,
    transformer: LinearDiT | None,
) -> Components:
    """Make components of loaded parts, without copying any.

    What the model expects of callers, its habits, comes with a transformer that was in a pipeline
    before; any other gets the published ones.

    Raises:
        ConfigError: a part is missing, of another package, or does not fit the others.
    """
    if tokenizer is None or text_encoder is None or vae is None or transformer is None:
        given = {
            "tokenizer": tokenizer,
            "text_encoder": text_encoder,
            "vae": vae,
            "transformer": transformer,
        }
        missing = [name for name, part in given.items() if part is None]
        raise ConfigError(
            f"the pipeline lacks {', '.join(missing)}",
            hint="pass tokenizer, text_encoder, vae and transformer, or use from_pretrained",
        )
    _require("transformer", transformer, LinearDiT)
    _require("vae", vae, Autoencoder)
    encoder = text_encoder if isinstance(text_encoder, TextEncoder) else TextEncoder(text_encoder)
    for name, theirs, takes in (
        ("text_encoder", encoder.width, transformer.config.caption_channels),
        ("vae", vae.config.latent_channels, transformer.config.in_channels),
    ):
        if theirs != takes:
            raise ConfigError(
                f"{name} has {theirs} channels, the transformer takes {takes}",
                hint="the two parts are of different models",
            )
    habits: Habits = vars(transformer).get(_HABITS) or Habits()
    for module in (encoder, vae, transformer):
        module.eval()
    return Components(
        transformer=transformer,
        autoencoder=vae,
        prompts=PromptEncoder(tokenizer, encoder, instruction=habits.instruction),
        habits=habits,
    )


def remember_habits(components: Components) -> None:
    """Let the transformer carry the model's habits, for pipelines made of its parts."""
    vars(components.transformer)[_HABITS] = components.habits


def _require(name: str, part: nn.Module, kind: type[nn.Module]) -> None:
    if not isinstance(part, kind):
        raise ConfigError(
            f"{name} is a {type(part).__module__}.{type(part).__name__}",
            hint=f"load it with this package: it must be a {kind.__module__}.{kind.__name__}",
        )
