"""A prompt and a seed become a picture, by the model that ships inside: [MODEL] [PROMPT]."""

import sys

import torch

from sanakit import SanaPipeline

usual = ("glyph", "a red apple")
model, prompt = (*sys.argv[1:3], *usual[len(sys.argv) - 1 :])

pipe = SanaPipeline.from_pretrained(model)
image = pipe(prompt, generator=torch.Generator().manual_seed(7)).images[0]
image.save("text_to_image.png")
