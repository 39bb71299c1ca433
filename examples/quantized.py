"""The published quantized example, with sanakit in the place of diffusers: [MODEL]."""

import sys

import torch
from transformers import AutoModel, BitsAndBytesConfig

from sanakit import BitsAndBytesConfig as DiffusersBitsAndBytesConfig
from sanakit import SanaPipeline, SanaTransformer2DModel

model = (sys.argv[1:] or ["Efficient-Large-Model/Sana_1600M_1024px_diffusers"])[0]

quant_config = BitsAndBytesConfig(load_in_8bit=True)
text_encoder_8bit = AutoModel.from_pretrained(
    model, subfolder="text_encoder", quantization_config=quant_config, torch_dtype=torch.float16
)
quant_config = DiffusersBitsAndBytesConfig(load_in_8bit=True)
transformer_8bit = SanaTransformer2DModel.from_pretrained(
    model, subfolder="transformer", quantization_config=quant_config, torch_dtype=torch.float16
)
pipeline = SanaPipeline.from_pretrained(
    model,
    text_encoder=text_encoder_8bit,
    transformer=transformer_8bit,
    torch_dtype=torch.float16,
    device_map="balanced",
)
image = pipeline("a tiny astronaut hatching from an egg on the moon").images[0]
image.save("sana.png")
