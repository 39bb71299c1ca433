"""Another decoder for the latents of a model: a tiny one, or that of another autoencoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sanakit.errors import ConfigError
from sanakit.files import read_json
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AutoencoderConfig
from sanakit.models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from sanakit.models.unfilled import unfilled
from sanakit.weights.layout import CONFIG, stored_variant
from sanakit.weights.resolve import decoder_folder
from sanakit.weights.store import load_strict, read_config, read_weights

OF_A_DECODER = (
    "decoder_block_types",
    "decoder_block_out_channels",
    "decoder_layers_per_block",
    "decoder_qkv_multiscales",
    "decoder_norm_types",
    "decoder_act_fns",
    "decoder_in_shortcut",
    "decoder_conv_act_fn",
    "upsample_block_type",
)
"""The fields of an autoencoder's config that shape its decoder alone."""


def load_decoder(autoencoder: Autoencoder, name: str | Path, *, offline: bool = False) -> None:
    """Have an autoencoder decode with another decoder from now on; its encoder stays.

    ``name`` is the folder of a tiny decoder, or a run that made one; or an autoencoder for the
    same latents, such as ``dc-ae-lite-f32c32-sana-1.1``: a folder, a published name, or a model's
    folder with one in ``vae``.

    Raises:
        MissingModelError: nothing of that name. WeightsError: files that are damaged or misfit.
        ConfigError: a decoder of other latents, or a file that is not converted yet.
    """
    folder = decoder_folder(name, offline=offline)
    if not is_tiny(folder):
        _take_decoder(autoencoder, folder, source=str(name))
        return
    config = read_config(folder, TinyDecoderConfig)
    _check_latents(autoencoder, config, source=str(name))
    decoder = TinyDecoder(config, scaling_factor=autoencoder.config.scaling_factor)
    weight = next(autoencoder.parameters())
    load_strict(decoder, read_weights(folder, dtype=weight.dtype), source=str(folder))
    autoencoder.decoder = decoder.to(weight.device).eval().requires_grad_(False)


def is_tiny(folder: Path) -> bool:
    """Whether a folder holds a tiny decoder."""
    return read_json(folder / CONFIG).get("_class_name") == TinyDecoder.__name__


def _take_decoder(autoencoder: Autoencoder, folder: Path, *, source: str) -> None:
    config = read_config(folder, AutoencoderConfig)
    _check_latents(autoencoder, config, source=source)
    weight = next(autoencoder.parameters())
    with unfilled():
        other = Autoencoder(config)
    state = read_weights(folder, variant=stored_variant(folder, None), dtype=weight.dtype)
    load_strict(other, state, source=str(folder))
    shape = {field: getattr(config, field) for field in OF_A_DECODER}
    autoencoder.config = replace(autoencoder.config, **shape)
    autoencoder.decoder = other.decoder.to(weight.device).eval().requires_grad_(False)


def _check_latents(autoencoder: Autoencoder, other: object, *, source: str) -> None:
    """Refuse a decoder that reads other latents; all that can be told is channels and scale."""
    for field in ("latent_channels", "spatial_factor", "scaling_factor"):
        ours, theirs = getattr(autoencoder.config, field), getattr(other, field)
        if theirs is not None and theirs != ours:
            raise ConfigError(
                f"{source}: decodes latents of {field} {theirs}, those of the model have {ours}",
                hint="a decoder reads the latents of the autoencoder that it was trained with",
            )
