"""CLIP score and FID of generated pictures, by networks that their user brings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sanakit.data.captions.scoring import DualEncoder
from sanakit.data.captions.vision_models import find_vision_model
from sanakit.errors import ConfigError, MissingModelError
from sanakit.evaluate.benchmark_prompts import Job, Prompt
from sanakit.evaluate.features import PictureSet, features_of
from sanakit.evaluate.figures import Figure, mean_figure
from sanakit.evaluate.frechet import frechet_distance
from sanakit.images.decode import decode
from sanakit.pipeline.pixels import Pixels

BATCH = 16
TORCHMETRICS = "pip install 'torchmetrics[image]'; its first use fetches the Inception network"


def read_generated(folder: Path, jobs: Sequence[Job]) -> Iterator[tuple[Prompt, Pixels]]:
    """The drawn pictures with their prompts, in order."""
    for job in jobs:
        for file in job.files:
            yield job.prompt, decode((folder / file).read_bytes()).pixels


def clip_scores(
    folder: Path, jobs: Sequence[Job], *, clip: str, device: str = "cpu"
) -> tuple[list[Figure], dict[str, float]]:
    """CLIP score: 100 times the cosine of picture and prompt, none below 0; its floor; by prompt.

    The floor is the same pictures with the prompts of others, each moved on by half the list.

    Raises:
        MissingModelError: there is no such model. ConfigError: it is no CLIP.
    Source: Hessel et al. 2021, with w = 100 as published tables have it.
    """
    scorer = DualEncoder(find_vision_model(clip), dtype="float32", device=device)
    texts, seen = [], []
    with torch.inference_mode():
        found = list(read_generated(folder, jobs))
        for first in range(0, len(found), BATCH):
            part = found[first : first + BATCH]
            texts.append(scorer.texts([prompt.text for prompt, _ in part]))
            seen.append(scorer.pictures([Image.fromarray(pixels) for _, pixels in part]))
    said, shown = torch.cat(texts), torch.cat(seen)
    scores = 100 * (said * shown).sum(dim=1).clamp(min=0)
    figures = [mean_figure("CLIP score", scores.numpy(), better="higher")]
    if len(scores) > 1:
        other = 100 * (said.roll(len(said) // 2, dims=0) * shown).sum(dim=1).clamp(min=0)
        figures.append(mean_figure("CLIP score: other prompts", other.numpy()))
    cut = sum(scorer.tokens(prompt.text) > scorer.limit for prompt, _ in found)
    figures.append(
        Figure(name="prompts longer than CLIP reads", value=float(cut), count=len(found))
    )
    rows = zip(found, scores.tolist(), strict=True)
    return figures, {prompt.name: round(score, 4) for (prompt, _), score in rows}


def fid(
    folder: Path, jobs: Sequence[Job], real: PictureSet, *, network: InceptionFeatures
) -> Figure:
    """FID on Inception's 2,048 features, against all of ``real``.

    Raises:
        ConfigError: fewer than two pictures on a side.
    """
    generated = _InFolder([folder / file for job in jobs for file in job.files])
    if min(len(generated), len(real)) < 2:
        raise ConfigError(
            f"FID of {len(generated)} generated and {len(real)} real pictures",
            hint="give thousands of each",
        )
    value = frechet_distance(features_of(network, generated), features_of(network, real))
    return Figure(name="FID", value=value, count=len(generated), better="lower")


class InceptionFeatures:
    """The network by which published FIDs are measured, as `torchmetrics` brings it.

    Raises:
        MissingModelError: the package, or the one it takes Inception from, is not installed.
    """

    fingerprint = "inception-v3-compat"

    def __init__(self, device: str) -> None:
        if find_spec("torchmetrics") is None:
            raise MissingModelError("FID needs torchmetrics", hint=TORCHMETRICS)
        from torchmetrics.image.fid import FrechetInceptionDistance  # noqa: PLC0415

        try:
            self.network = FrechetInceptionDistance(feature=2048).inception.to(device)
        except (ModuleNotFoundError, OSError) as error:
            reason = str(error).strip().split("\n")[0]
            raise MissingModelError(f"FID: {reason[:200]}", hint=TORCHMETRICS) from error
        self.device = device

    @torch.no_grad()
    def __call__(self, pictures: Pixels, /) -> Tensor:
        """Pixels ``b h w 3`` to ``b 2048``."""
        pixels = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
        return self.network(pixels.to(self.device))


class _InFolder:
    """Picture files of one size, read when they are asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, part: slice, /) -> Pixels:
        return np.stack([decode(path.read_bytes()).pixels for path in self.paths[part]])
