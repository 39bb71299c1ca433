"""What a preset is: plain data, read from an INI file whose values are JSON or plain words."""

from __future__ import annotations

from collections.abc import Sequence
from configparser import ConfigParser, Error
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from sanakit.errors import ConfigError, did_you_mean
from sanakit.train.config import with_overrides

FOLDER = Path(__file__).parent / "presets"


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The run as a whole; ``shape`` is that of all networks, ``ranks`` share each training."""

    about: str = ""
    device: str = "auto"
    shape: str = "glyph"
    ranks: int = 1
    workers: int = 2
    """Processes that draw, write and check pictures."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The pictures; ``without`` are rows to leave out, ``limit`` is about how many to keep."""

    size: int = 256
    without: tuple[str, ...] = ()
    limit: int | None = None
    made_up: bool = False
    """Polygons and stars instead of art: nothing is fetched, and nothing is worth drawing."""
    samples: int = 60_000
    """Pictures with captions that are written for training, composites among them."""
    composites: float = 0.2
    """Share of the samples."""
    everyday: float = 3.0
    """How much more often than by their weight come things that people ask for first."""
    held: int = 512
    """Of pairs of concept and style that training never shows, to measure on."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """The tokenizer; without ``dictionary`` it and the language model read captions alone."""

    dictionary: bool = True


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training over ``images`` pictures (rows of text); ``settings`` as `--set` takes them."""

    images: int
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Diffusion(Training):
    """The transformer's: its blocks, and whether the text encoder learns along."""

    layers: int | None = None
    tune_text: bool = True


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Export, contact sheet and evaluation; a count of 0 leaves a measure out."""

    storage: str = "int8-rows"
    prompts: str = "benchmarks/prompts/unseen.txt"
    steps: int = 20
    autoencoder: int = 128
    """Held-out pictures that are restored and compared."""
    generation: int = 0
    """Held-out captions that are drawn and compared; needs the extra `eval`."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """All of it, one section of the file each."""

    name: str
    whole: Whole = field(default_factory=Whole)
    data: Data = field(default_factory=Data)
    tokenizer: Text = field(default_factory=Text)
    lm: Training = field(default_factory=lambda: Training(images=1))
    autoencoder: Training = field(default_factory=lambda: Training(images=1))
    decoder: Training = field(default_factory=lambda: Training(images=1))
    diffusion: Diffusion = field(default_factory=lambda: Diffusion(images=1))
    ending: Ending = field(default_factory=Ending)


SECTIONS = tuple(one.name for one in fields(Preset) if one.name != "name")


def known_presets() -> list[str]:
    """The names of the presets that come with the recipe."""
    return sorted(path.stem for path in FOLDER.glob("*.ini"))


def read_preset(name: str, changes: Sequence[str] = ()) -> Preset:
    """Read a preset by its name, or the path of one's own; ``changes`` are ``section.key=value``.

    Raises:
        ConfigError: no such preset, section or key, or a value of another type.
    """
    path = FOLDER / f"{name}.ini"
    if not path.is_file():
        path = Path(name)
        if path.suffix != ".ini" or not path.is_file():
            raise ConfigError(f"no preset {name!r}", hint=f"presets: {', '.join(known_presets())}")
    file = ConfigParser(interpolation=None)
    file.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        file.read_string(path.read_text(encoding="utf-8"), source=path.name)
    except (Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} cannot be read: {error}") from error
    pairs = [
        (section, f"{key}={value}")
        for section in file.sections()
        for key, value in file[section].items()
    ]
    for change in changes:
        section, dot, pair = change.partition(".")
        if not dot or "=" not in pair:
            raise ConfigError(f"--set {change}", hint="like --set diffusion.images=100000")
        pairs.append((section, pair))
    preset = Preset(name=path.stem)
    for section, pair in pairs:
        preset = _with(preset, section, pair, path.name)
    return preset


def _with(preset: Preset, section: str, pair: str, source: str) -> Preset:
    if section not in SECTIONS:
        raise ConfigError(f"{source}: no section {section!r}", hint=did_you_mean(section, SECTIONS))
    part = getattr(preset, section)
    key = pair.partition("=")[0]
    known = [one.name for one in fields(part)]
    if key not in known:
        raise ConfigError(f"{source}: [{section}] has no {key!r}", hint=did_you_mean(key, known))
    try:
        part = with_overrides(part, [pair])
    except ConfigError as error:
        said = error.message.removeprefix("--set ")
        raise ConfigError(f"{source}: [{section}] {said}", hint=error.hint) from error
    return replace(preset, **{section: part})
