"""A whole model small enough for every test: random weights in the published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.testing import assert_close
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AutoencoderConfig, TransformerConfig
from sanakit.models.text_encoder import TextEncoder
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components import Components, Habits, save_components
from sanakit.pipeline.prompt import PromptEncoder

TOKENIZER = Path(__file__).parent / "assets" / "tokenizer"
AUTOENCODER = AutoencoderConfig(
    latent_channels=4,
    attention_head_dim=4,
    encoder_block_types=("ResBlock",) * 5 + ("EfficientViTBlock",),
    decoder_block_types=("ResBlock",) * 5 + ("EfficientViTBlock",),
    encoder_block_out_channels=(8,) * 6,
    decoder_block_out_channels=(8,) * 6,
    encoder_layers_per_block=(0, 1, 1, 1, 1, 1),
    decoder_layers_per_block=(0, 1, 1, 1, 1, 1),
    encoder_qkv_multiscales=((),) * 5 + ((5,),),
    decoder_qkv_multiscales=((),) * 5 + ((5,),),
    scaling_factor=0.5,
)
DEEP_AUTOENCODER = AutoencoderConfig(
    attention_head_dim=8,
    encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
    decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
    latent_channels=8,
    encoder_block_out_channels=(8, 16, 32),
    decoder_block_out_channels=(8, 16, 32),
    encoder_layers_per_block=(0, 1, 2),
    decoder_layers_per_block=(0, 2, 1),
    encoder_qkv_multiscales=((), (), (5,)),
    decoder_qkv_multiscales=((), (), (3, 5)),
    decoder_norm_types=("batch_norm", "batch_norm", "rms_norm"),
    decoder_act_fns=("relu", "relu", "silu"),
)
TRANSFORMER = TransformerConfig(
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=8,
    num_layers=2,
    num_cross_attention_heads=2,
    cross_attention_head_dim=8,
    cross_attention_dim=16,
    caption_channels=8,
    sample_size=2,
)


def tiny_components(habits: Habits | None = None) -> Components:
    """Random, but the same every time."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(TOKENIZER))
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        query_pre_attn_scalar=4,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    llm = Gemma2Model._from_config(config, attn_implementation="eager")
    transformer = LinearDiT(TRANSFORMER)
    # The published start makes captions almost silent; here a word must change the picture.
    torch.nn.init.ones_(transformer.caption_norm.weight)
    habits = habits or Habits()
    prompts = PromptEncoder(tokenizer, TextEncoder(llm), instruction=habits.instruction)
    components = Components(
        transformer=transformer,
        autoencoder=Autoencoder(AUTOENCODER),
        prompts=prompts,
        habits=habits,
        name="tiny",
    )
    for module in (transformer, components.autoencoder, llm):
        module.eval().requires_grad_(False)
    return components


def write_tiny(folder: Path) -> Path:
    """Save the tiny model and give its folder."""
    save_components(tiny_components(), folder)
    return folder


ROUNDING = 1e-5
"""How far pixels of the same fp32 weights may be apart when their files are laid out differently.

Weights stay where they lie in a mapped file. A matrix that begins at an odd multiple of 8 bytes is
multiplied with a single row, as of one token, in another order of sums by the BLAS of many CPUs.
"""


def assert_same_weights(one: Any, other: Any) -> None:
    """Two pipelines hold the same tensors, to the bit."""
    for part in ("transformer", "vae", "text_encoder"):
        states = (getattr(pipe, part).state_dict() for pipe in (one, other))
        assert_close(*states, rtol=0, atol=0)
