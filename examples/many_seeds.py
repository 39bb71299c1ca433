"""Eight seeds of one prompt in a grid; each is the picture its seed draws alone: [MODEL]."""

import sys

import torch
from PIL import Image

from sanakit import SanaPipeline

SEEDS, COLUMNS = range(8), 4

pipe = SanaPipeline.from_pretrained((sys.argv[1:] or ["glyph"])[0])
images = pipe(
    "a rocket",
    num_images_per_prompt=len(SEEDS),
    generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
).images

width, height = images[0].size
grid = Image.new("RGB", (COLUMNS * width, -(-len(SEEDS) // COLUMNS) * height))
for index, image in enumerate(images):
    row, column = divmod(index, COLUMNS)
    grid.paste(image, (column * width, row * height))
grid.save("many_seeds.png")
