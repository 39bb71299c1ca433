"""What a judge sees and learns from: looks of pictures, samples with their captions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from recipes.glyph.data.backgrounds import captioned
from recipes.glyph.data.mixture import COMPOSITE_SHARE, WHITE_SAID, Mixture, Sample
from recipes.glyph.data.pictures import RECORDS, GlyphPictures, Record
from recipes.glyph.data.scenes import caption, facts
from sanakit.errors import DataError
from sanakit.evaluate.features import FeatureNetwork, middle_square
from sanakit.files import replacing, sha256_of
from sanakit.shapes import Image

SIDE = 128
"""Of the pictures that the classifier looks at, px: a third of the time of its own 224."""
GRID = 4
_COLOUR_SIDE = 32
_CELL_LEVELS, _WHOLE_LEVELS = 3, 5
_STAGES = ("_blocks.10", "_blocks.15")
"""The last blocks at strides 16 and 32: 112 and 320 channels."""

Looks = Float[Tensor, "b k"]
"""What is seen of each picture: the part without place first, then cell after cell."""
Backbone = Callable[[Image], list[Tensor]]
"""Pictures in [-1, 1] to feature maps ``b c h w``; of the first only the mean over places counts.
"""


class Sight(nn.Module):
    """Pictures to looks, the same for a picture whatever batch it is in."""

    def __init__(self, backbone: Backbone, *, fingerprint: str) -> None:
        """Take a frozen backbone; ``fingerprint`` says which one it is."""
        super().__init__()
        self.backbone = backbone
        self.fingerprint = f"{fingerprint}-{SIDE}-{GRID}"
        whole, cells = self._parts(torch.zeros(1, 3, SIDE, SIDE))
        self.whole_width, self.cell_width = whole.shape[1], cells.shape[2]

    @torch.no_grad()
    def forward(self, image: Image) -> Looks:
        """See pictures in [-1, 1] of any size; of one that is no square the middle is taken.

        They are resized to 128 x 128, bilinear and with antialiasing. Looks are on the CPU, fp32.
        """
        whole, cells = self._parts(_resized(middle_square(image.float()), SIDE).clamp(-1, 1))
        return torch.cat([whole, cells.flatten(1)], dim=1)

    def _parts(self, image: Image) -> tuple[Tensor, Tensor]:
        top, *maps = self.backbone(image)
        small = (_resized(image, _COLOUR_SIDE) + 1) / 2
        whole = [top.mean(dim=(2, 3)), _shares(small, _WHOLE_LEVELS).mean(dim=(2, 3)), _edge(small)]
        mean = _pooled(small)
        spread = (_pooled(small.square()) - mean.square()).clamp_min(0).sqrt()
        cells = [*map(_pooled, maps), _pooled(_shares(small, _CELL_LEVELS)), mean, spread]
        by_place = [rearrange(part, "b c rows columns -> b (rows columns) c") for part in cells]
        return torch.cat(whole, dim=1), torch.cat(by_place, dim=2)


def sight_of(features: FeatureNetwork) -> Sight:
    """The sight through EfficientNet-Lite0."""
    network = features.network
    device = next(features.parameters()).device

    def maps(image: Image) -> list[Tensor]:
        kept: list[Tensor] = []
        hooks = [
            network.get_submodule(name).register_forward_hook(lambda _, __, out: kept.append(out))
            for name in _STAGES
        ]
        try:
            # The network was trained on (pixel - 127) / 128.
            top = network.extract_features((image.to(device) * 127.5 + 0.5) / 128)
        finally:
            for hook in hooks:
                hook.remove()
        return [one.cpu() for one in (top, *kept)]

    return Sight(maps, fingerprint=features.fingerprint)


def _resized(image: Image, side: int) -> Image:
    if image.shape[-1] == side:
        return image
    return F.interpolate(image, size=(side, side), mode="bilinear", antialias=True)


def _pooled(maps: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(maps, GRID)


def _edge(colours: Tensor) -> Tensor:
    """The median colour along the outermost pixels: the background's, where there is one."""
    sides = [colours[:, :, 0], colours[:, :, -1], colours[:, :, :, 0], colours[:, :, :, -1]]
    return torch.cat(sides, dim=2).median(dim=2).values


def _shares(colours: Tensor, levels: int) -> Tensor:
    """How much each pixel in [0, 1] is of each colour of a lattice, ``b levels^3 h w``.

    Trilinear: what lies between two colours of the lattice is in part both, so that near colours
    look alike.
    """
    steps = torch.linspace(0, 1, levels, device=colours.device)
    near = (1 - (colours.unsqueeze(2) - steps[:, None, None]).abs() * (levels - 1)).clamp_min(0)
    red, green, blue = near.unbind(dim=1)
    found = torch.einsum("brhw,bghw,bjhw->brgjhw", red, green, blue)
    return found.reshape(len(colours), math.prod([levels] * 3), *colours.shape[2:])


CHUNK = 256
"""Pictures in a file of the cache: what an interruption loses at most."""
BATCH = 32

LooksArray = npt.NDArray[np.float16]
"""``n k``, what `Sight` gives."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture of the mixture: ``texts`` are all its captions without the background.

    ``ids`` are the records that it shows: one, or those of a composite's things.
    """

    sample: Sample
    texts: tuple[str, ...]
    ids: tuple[str, ...]
    concept: str = ""
    """Empty for composites, which differ from all else."""
    style: str = ""

    @property
    def clause(self) -> str:
        """What its own caption says of the background; may be nothing, on white."""
        end = captioned("", self.sample.background)
        return end if self.sample.caption.endswith(end) else ""

    @property
    def text(self) -> str:
        """Its own caption without the background."""
        return self.sample.caption.removesuffix(self.clause)

    def draw_caption(self, choice: float, said: float) -> tuple[str, str]:
        """One of its texts and a clause, by numbers in [0, 1); on white it is often left out."""
        text = self.texts[int(choice * len(self.texts))]
        plain = self.sample.background == "white" and said >= WHITE_SAID
        return text, "" if plain else captioned("", self.sample.background)


def data_revision(folder: Path) -> str:
    """What tells one build of the data from another: a hash of its records."""
    path = folder / RECORDS
    if not path.is_file():
        raise DataError(f"{path} is missing", hint="build the data set first")
    return sha256_of(path)[:16]


def draw_shown(pictures: GlyphPictures, *, split: str, count: int, seed: int) -> list[Shown]:
    """At most ``count`` different samples of the mixture; of the training split a part composites.

    Pictures come by weight and none twice, so that in the end the rare ones come up. A larger count
    begins with the samples of a smaller one.
    """
    mixture = Mixture(pictures, split=split, composites=0)
    scenes = Mixture(pictures, composites=1) if split == "train" else None
    weights = np.array([pictures.records[number].weight for number in mixture.numbers.tolist()])
    rng = np.random.default_rng(seed)
    # By weight without repeats: Efraimidis and Spirakis 2006. No weight is never drawn.
    keys = rng.exponential(size=len(weights)) / np.maximum(weights, 1e-300)
    numbers = mixture.numbers[np.argsort(keys, kind="stable")[: np.count_nonzero(weights)]]
    waiting = iter(numbers.tolist())
    found: list[Shown] = []
    while len(found) < count:
        if scenes is not None and rng.random() < COMPOSITE_SHARE:
            (sample,) = scenes.draw(1, rng)
        elif (number := next(waiting, None)) is None:
            break
        else:
            sample = mixture.sample_of(number, rng)
        found.append(_shown(sample, pictures.records))
    return found


def looks_of(
    sight: Sight,
    shown: Sequence[Shown],
    pictures: GlyphPictures,
    *,
    cache: Path | None = None,
    revision: str = "",
    report: Callable[[str], object] = lambda line: None,
) -> LooksArray:
    """What is seen of the real pictures; what ``cache`` has of them is read again.

    ``revision`` is that of the data: numbers in a cache are those of its pictures.
    """
    mixture = Mixture(pictures, composites=0)

    def seen(first: int, last: int) -> LooksArray:
        parts = [
            sight(mixture.images([one.sample for one in shown[at : min(at + BATCH, last)]]))
            for at in range(first, last, BATCH)
        ]
        return torch.cat(parts).half().numpy()

    found = []
    for first in range(0, len(shown), CHUNK):
        last = min(first + CHUNK, len(shown))
        path = None
        if cache is not None:
            told = [sight.fingerprint, pictures.size, revision]
            told += [asdict(one.sample) for one in shown[first:last]]
            key = sha256_of(json.dumps(told))[:16]
            path = cache / f"looks-{key}.npy"
        if path is not None and path.is_file():
            found.append(np.load(path))
            continue
        found.append(seen(first, last))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, found[-1])
        report(f"looked at {last} of {len(shown)} pictures")
    return np.concatenate(found)


def _shown(sample: Sample, records: Sequence[Record]) -> Shown:
    if sample.scene is None:
        assert sample.number is not None
        record = records[sample.number]
        return Shown(
            sample=sample,
            texts=tuple(record.captions),
            ids=(record.id,),
            concept=record.name,
            style=record.style,
        )
    scene = sample.scene
    texts = [
        caption(scene, fact, with_style=styled, with_background=False)
        for fact in facts(scene)
        for styled in (False, True)
    ]
    ids = tuple(records[thing.number].id for thing in scene.things)
    return Shown(sample=sample, texts=tuple(dict.fromkeys(texts)), ids=ids)
