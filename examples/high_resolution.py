"""4K in little memory: parts come to the GPU in turn, the decoder runs in tiles: [MODEL] [SIDE]."""

import sys

import torch

from sanakit import SanaPipeline

usual = ("Efficient-Large-Model/Sana_1600M_4Kpx_BF16_diffusers", "4096")
model, side = (*sys.argv[1:3], *usual[len(sys.argv) - 1 :])

pipe = SanaPipeline.from_pretrained(model, torch_dtype=torch.bfloat16)
# Tiles with exact borders: the picture is that of decoding it whole.
pipe.vae.enable_tiling(tile_sample_min_height=1024, tile_sample_min_width=1024)
if torch.cuda.is_available():
    pipe.enable_model_cpu_offload()

generator = torch.Generator().manual_seed(7)
images = pipe("a cloudless sky over dunes", height=int(side), width=int(side), generator=generator)
images.images[0].save("high_resolution.png")
