"""The shape of a language model that learns in no time; its ids are those of our tokenizers."""

from __future__ import annotations

from transformers import Gemma2Config


def tiny_lm_config(vocab_size: int = 8192, layers: int = 1) -> Gemma2Config:
    """Two heads over states of eight numbers."""
    return Gemma2Config(
        vocab_size=vocab_size,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        query_pre_attn_scalar=4,
        final_logit_softcapping=None,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
