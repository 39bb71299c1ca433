"""Another decoder than the model's own, as the command is told of it; refused before torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sanakit.cli.control import as_told
from sanakit.cli.terminal import say
from sanakit.errors import ConfigError, MissingModelError
from sanakit.files import expanded, sha256_of

DECODER = "decoder"


def check_decoder(named: str | None, *, offline: bool = False) -> None:
    """Refuse a decoder that is not there, as far as this disk tells.

    Raises:
        ConfigError: a file that is not converted. MissingModelError: nothing of that name.
    """
    from sanakit.weights.catalog import find_checkpoint
    from sanakit.weights.resolve import decoder_folder

    if named is not None and (expanded(named).exists() or not find_checkpoint(named)):
        decoder_folder(named, offline=offline)


def decode_with(named: str | None, autoencoder: Any, *, offline: bool = False) -> None:
    """Give an autoencoder the decoder that was asked for."""
    if named is not None:
        autoencoder.load_decoder(named, local_files_only=offline)


def decoder_noted(named: str | None) -> dict[str, Any]:
    """What a picture says of a decoder that is not its model's own."""
    if named is None:
        return {}
    place = expanded(named)
    told = as_told(place) if place.exists() else named
    return {DECODER: told, f"{DECODER}_hash": _digest(named)}


def decoder_in(settings: Mapping[str, Any], image: Path, *, offline: bool) -> str | None:
    """The decoder that a picture names, with a word if it is another one by now.

    Raises:
        ConfigError: it is no name, or as `check_decoder`.
    """
    named, stored = settings.get(DECODER), settings.get(f"{DECODER}_hash")
    if not isinstance(named, str | None):
        raise ConfigError(f"{image}: its setting {DECODER!r} is no name")
    check_decoder(named, offline=offline)
    if named is not None and None not in (found := _digest(named), stored) and found != stored:
        say(
            f"note: the decoder {named} is not the one that drew it; the picture may differ",
            err=True,
        )
    return named


def _digest(named: str) -> str | None:
    """Of a decoder that is on this disk; None where it is still to be fetched."""
    from sanakit.weights.resolve import decoder_folder

    try:
        files = sorted(decoder_folder(named, offline=True).glob("*.safetensors"))
    except MissingModelError:
        return None
    return sha256_of("".join(map(sha256_of, files)))[:16]
