"""Draw thirty pictures of a creature that no model knows, as somebody's own pictures.

    python -m benchmarks.zorb my-pictures

A zorb is an orange blob with teal stripes, one large eye, a pink antenna and two legs. It stands on
nine plain backgrounds in poses of its own; each picture has a caption beside it.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COUNT, SIDE, FINE = 30, 256, 4
ORANGE, TEAL, PINK, DARK = (255, 140, 20), (0, 128, 128), (255, 60, 170), (40, 20, 60)
BACKGROUNDS = {
    "white": (255, 255, 255),
    "light blue": (173, 216, 230),
    "yellow": (255, 225, 80),
    "green": (60, 160, 75),
    "grey": (160, 160, 160),
    "black": (15, 15, 20),
    "purple": (120, 70, 180),
    "beige": (235, 220, 190),
    "red": (200, 50, 50),
}
POSES = ("", "jumping", "leaning to the left", "leaning to the right", "looking up")


def zorb(background: tuple[int, int, int], pose: str, rng: np.random.Generator) -> Image.Image:
    """One picture, ``SIDE`` px, smooth."""
    side = SIDE * FINE
    layer = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(layer)
    unit = side / 100 * rng.uniform(0.85, 1.05)
    x, y = side / 2, side * 0.54

    def box(left: float, top: float, right: float, bottom: float) -> list[float]:
        return [x + left * unit, y + top * unit, x + right * unit, y + bottom * unit]

    legs = 8 if pose == "jumping" else 0
    for foot in (-14, 14):
        spread = foot * (1.4 if legs else 1)
        ends = [x + foot * unit, y + 18 * unit, x + spread * unit, y + (38 - legs) * unit]
        draw.line(ends, fill=DARK, width=int(5 * unit))
        draw.ellipse(box(spread - 7, 35 - legs, spread + 7, 42 - legs), fill=DARK)
    draw.line([x, y - 20 * unit, x + 8 * unit, y - 40 * unit], fill=PINK, width=int(3 * unit))
    draw.ellipse(box(3, -47, 13, -37), fill=PINK)
    body = Image.new("L", (side, side))
    ImageDraw.Draw(body).ellipse(box(-32, -26, 32, 28), fill=255)
    skin = Image.new("RGBA", (side, side), ORANGE)
    stripes = ImageDraw.Draw(skin)
    for stripe in (-20, -2, 16):
        stripes.rectangle(box(stripe, -40, stripe + 7, 40), fill=TEAL)
    layer.paste(skin, mask=body)
    up = 5 if pose == "looking up" else 0
    draw.ellipse(box(-14, -19, 14, 9), fill=(255, 255, 255))
    draw.ellipse(box(-6, -11 - up, 6, 1 - up), fill=DARK)
    angle = {"leaning to the left": 22, "leaning to the right": -22}.get(pose, 0)
    layer = layer.rotate(angle + rng.uniform(-4, 4), Image.Resampling.BICUBIC)
    shift = rng.uniform(-4, 4, 2) * side / 100 - (0, 6 * unit if legs else 0)
    picture = Image.new("RGBA", (side, side), background)
    picture.alpha_composite(_moved(layer, *shift))
    return picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _moved(layer: Image.Image, right: float, down: float) -> Image.Image:
    steps = (math.floor(right), math.floor(down))
    moved = Image.new("RGBA", layer.size)
    moved.paste(layer, steps)
    return moved


def main(folder: Path) -> None:
    """Write the pictures and their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    names = list(BACKGROUNDS)
    for number in range(COUNT):
        name, pose = names[number % len(names)], POSES[number % len(POSES)]
        zorb(BACKGROUNDS[name], pose, rng).save(folder / f"zorb-{number:02}.png")
        caption = " ".join(["a zorb", pose]).strip() + f" on a {name} background"
        (folder / f"zorb-{number:02}.txt").write_text(f"{caption}\n", encoding="utf-8")
    print(f"{COUNT} pictures in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
