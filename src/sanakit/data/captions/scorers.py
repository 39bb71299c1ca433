"""Scorers: what says how good drawings of a prompt are; CLIP, or a function of the user's own.

A scorer sees drawings of a prompt at once and says a number for each, the higher the better: so it
may compare them with each other. One that looks at each alone, as CLIP does, says so by an
attribute ``alone`` that is true.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from sanakit.data.captions.scoring import DualEncoder
from sanakit.data.captions.vision_models import find_vision_model
from sanakit.errors import ConfigError, SanakitError
from sanakit.files import expanded
from sanakit.models.published import say_once
from sanakit.untrusted import shown

Scorer: TypeAlias = Callable[[Sequence[Image.Image], str], Sequence[float]]
BATCH = 16


def scores_of(scorer: Scorer, images: Sequence[Image.Image], prompt: str) -> list[float]:
    """What a scorer says, made sure of.

    Raises:
        ConfigError: not one finite number for each picture.
    """
    said = list(scorer(images, prompt))
    if len(said) != len(images):
        raise ConfigError(f"the scorer gave {len(said)} scores for {len(images)} pictures")
    try:
        scores = [float(score) for score in said]
    except (TypeError, ValueError):
        scores = [math.nan]
    for score in scores:
        if not math.isfinite(score):
            raise ConfigError(f"the scorer gave {shown(said)}", hint="finite numbers, one each")
    return scores


def clip_scorer(model: str | Path, *, device: str = "cpu", offline: bool = False) -> Scorer:
    """Make a scorer of a model of CLIP or SigLIP: 100 times the cosine of picture and prompt.

    Args:
        model: a folder of `save_pretrained`, or ``owner/name``, which the hub is asked for.
        device: where it runs, in fp32.
        offline: fail rather than ask the hub.

    Raises:
        MissingModelError: there is no such model. ConfigError: it does not compare pictures and
            texts.
    """
    folder = find_vision_model(str(model), offline=offline)
    return ClipScorer(DualEncoder(folder, dtype="float32", device=device))


class ClipScorer:
    """The cosine of each picture and the prompt, by a dual encoder; the last prompt is kept."""

    alone = True

    def __init__(self, encoder: DualEncoder) -> None:
        self.encoder = encoder
        self._said: tuple[str, Tensor] | None = None

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], prompt: str) -> list[float]:
        """Scores of the pictures."""
        if self._said is None or self._said[0] != prompt:
            if (tokens := self.encoder.tokens(prompt)) > self.encoder.limit:
                say_once(f"the scorer reads {self.encoder.limit} tokens of a prompt of {tokens}")
            self._said = prompt, self.encoder.texts([prompt])[0]
        found: list[float] = []
        for first in range(0, len(images), BATCH):
            seen = self.encoder.pictures(images[first : first + BATCH])
            found += (100 * seen @ self._said[1]).tolist()
        return found


def scorer_named(name: str, *, device: str = "cpu", offline: bool = False) -> Scorer:
    """The scorer of a name: ``module:function``, ``FILE.py:function``, or a model of CLIP.

    Modules are looked for in the working folder, too.

    Raises:
        ConfigError: no such function, or a module that cannot be imported. Others as
            :func:`clip_scorer`.
    """
    module, _, function = name.rpartition(":")
    of_file = module.endswith(".py")
    if not function.isidentifier() or not (of_file or _is_module(module)):
        return clip_scorer(name, device=device, offline=offline)
    try:
        found = getattr(_of_file(expanded(module)) if of_file else _of_name(module), function)
    except SanakitError:
        raise
    except Exception as error:  # whatever the user's own file does
        raise ConfigError(
            f"{name} cannot be had ({type(error).__name__}: {error})",
            hint="a scorer is module:function or FILE.py:function, or a model of CLIP",
        ) from error
    if not callable(found):
        raise ConfigError(
            f"{name} is {shown(found)}", hint="a function of (pictures, prompt) that gives scores"
        )
    return _Own(name, found)


def weighted_scorer(specs: Sequence[str], *, device: str = "cpu", offline: bool = False) -> Scorer:
    """The sum of what scorers say: each is ``NAME``, or ``NAME=WEIGHT``.

    Raises:
        ConfigError: a weight that is no finite number. Others as :func:`scorer_named`.
    """
    parts = [weight_of(spec) for spec in specs]
    named = [(scorer_named(name, device=device, offline=offline), w) for name, w in parts]

    def total(images: Sequence[Image.Image], prompt: str) -> list[float]:
        rows = [[w * s for s in scores_of(scorer, images, prompt)] for scorer, w in named]
        return [math.fsum(column) for column in zip(*rows, strict=True)]

    return total


def weight_of(spec: str) -> tuple[str, float]:
    """Take ``NAME=WEIGHT`` apart; without a number at the end the weight is one.

    Raises:
        ConfigError: no name, or a weight that is no finite number.
    """
    name, _, text = spec.rpartition("=")
    try:
        name, weight = (name, float(text)) if name else (spec, 1.0)
    except ValueError:
        name, weight = spec, 1.0
    if not name or spec.startswith("=") or not math.isfinite(weight):
        raise ConfigError(f"reward {spec!r}", hint="NAME or NAME=0.5, a finite number")
    return name, weight


class _Own:
    """A function of the user's, whose errors are told with its name."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function
        self.alone = bool(getattr(function, "alone", False))

    def __call__(self, images: Sequence[Image.Image], prompt: str) -> Sequence[float]:
        """What the function says."""
        try:
            said: Sequence[float] = list(self.function(images, prompt))
        except SanakitError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{self.name} raised {type(error).__name__}: {error}",
                hint=f"it is given {len(images)} pictures and the prompt {prompt!r}",
            ) from error
        return said


def _is_module(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _of_name(name: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")
    return importlib.import_module(name)


def _of_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
