"""What is known of a model before it is loaded or fetched, and what it therefore refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sanakit.cli.machine import local_folder, shapes_of
from sanakit.cli.terminal import say
from sanakit.errors import ConfigError

USUAL_AREA = (0.75, 4 / 3)
"""Pixels over those that a model was trained at, beyond which a picture tends to fail."""


def check_size_of(model: str, height: object, width: object, *, offline: bool) -> None:
    """Refuse a size that a model cannot draw; say of one that it was not trained at.

    Of a model that is still to be fetched nothing is known yet.
    """
    folder = local_folder(model, offline=offline)
    sides = {"height": height, "width": width}
    if folder is None or not any(isinstance(side, int) for side in sides.values()):
        return
    from sanakit.pipeline.aspect_ratios import TABLES, check_size

    transformer, autoencoder = shapes_of(folder)
    factor = autoencoder.spatial_factor
    for name, side in sides.items():
        if isinstance(side, int):
            check_size(name, side, factor * transformer.patch_size)
    own = transformer.sample_size * factor
    drawn = [side if isinstance(side, int) else own for side in sides.values()]
    low, high = USUAL_AREA
    share = drawn[0] * drawn[1] / own**2
    if transformer.sample_size not in TABLES and not low <= share <= high:
        say(
            f"note: {model} was trained at {own} x {own}; at {drawn[1]} x {drawn[0]} things may "
            "be missing or there twice",
            err=True,
        )


def check_few_steps(model: str, wanted: Mapping[str, Any], *, offline: bool) -> None:
    """Refuse what a Sprint model never reads, by the option that was typed."""
    typed = {
        "--negative": bool(wanted["negative_prompt"]),
        "--solver": wanted["solver"] is not None,
        "--apg-eta and its like": wanted.get("guider") is not None,
        "--guidance-interval": wanted.get("guidance_interval") not in (None, (0.0, 1.0)),
        "--step-cache": bool(wanted.get("step_cache")),
    }
    option = next((option for option, given in typed.items() if given), None)
    if option is None or not is_of_few_steps(model, offline=offline):
        return
    raise ConfigError(
        f"{option} does nothing with {model}, a Sprint model: it was taught its guidance and steps",
        hint="leave it out; --guidance and --steps 1, 2 or 4 are heeded",
    )


def is_of_few_steps(model: str, *, offline: bool) -> bool:
    """Whether it is a Sprint model, as far as is known before it is fetched."""
    from sanakit.models.config import TRANSFORMERS
    from sanakit.weights.catalog import find_checkpoint

    folder = local_folder(model, offline=offline)
    if folder is not None:
        return shapes_of(folder)[0].guidance_embeds
    checkpoint = find_checkpoint(model)
    return (
        checkpoint is not None
        and checkpoint.preset is not None
        and TRANSFORMERS[checkpoint.preset].guidance_embeds
    )
