"""Captioners and scorers small enough for every test: real classes, random weights, saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from tiny import TOKENIZER

LAYERS = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SIDE, PATCH = 32, 16
CHAT = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} answer:{% endif %}"
)
SIZE = {"height": SIDE, "width": SIDE}


def _tokenizer(*tokens: str, **more: Any) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(str(TOKENIZER), **more)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return tokenizer


def _text(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    return {"vocab_size": len(tokenizer), **LAYERS, **special}


def _save(folder: Path, model: Any, processor: Any) -> Path:
    with torch.no_grad():  # spread out, so that random models say different things of pictures
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_llava(folder: Path, *, chat: bool = True, seed: int = 0) -> Path:
    """A decoder behind a CLIP tower; the chat template is what ``chat`` says."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer("<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, **LAYERS),
        text_config=LlamaConfig(**_text(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIZE),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT if chat else None,
    )
    return _save(folder, LlavaForConditionalGeneration(config), processor)


def write_idefics(folder: Path) -> Path:
    """The family of SmolVLM: pictures are cut into tiles, and several tokens mark each."""
    torch.manual_seed(0)
    marks = ("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>")
    tokenizer = _tokenizer(*marks, *(f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)))
    config = Idefics3Config(
        vision_config={"image_size": SIDE, "patch_size": PATCH // 2, **LAYERS},
        text_config=LlamaConfig(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    processor = Idefics3Processor(
        Idefics3ImageProcessor(
            size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}
        ),
        tokenizer,
        image_seq_len=4,
        chat_template=CHAT,
    )
    return _save(folder, Idefics3ForConditionalGeneration(config), processor)


def write_blip(folder: Path) -> Path:
    """The older kind: no chat, a prompt is the beginning of the caption."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(cls_token="<bos>", sep_token="<eos>")
    config = BlipConfig(
        text_config={
            **_text(tokenizer),
            "encoder_hidden_size": 16,
            "sep_token_id": 1,
            "projection_dim": 16,
        },
        vision_config={"image_size": SIDE, "patch_size": PATCH, "projection_dim": 16, **LAYERS},
        projection_dim=16,
    )
    processor = BlipProcessor(BlipImageProcessor(size=SIZE), tokenizer)
    return _save(folder, BlipForConditionalGeneration(config), processor)


def write_clip(folder: Path) -> Path:
    """CLIP with texts of at most 16 tokens, of which the end says what they are."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    config = CLIPConfig(
        text_config={**_text(tokenizer), "max_position_embeddings": 16, "projection_dim": 16},
        vision_config={"image_size": SIDE, "patch_size": PATCH, "projection_dim": 16, **LAYERS},
        projection_dim=16,
    )
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIZE)
    return _save(folder, CLIPModel(config), CLIPProcessor(images, tokenizer))


def write_siglip(folder: Path) -> Path:
    """SigLIP with texts of always 16 tokens."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(model_max_length=16)
    config = SiglipConfig(
        text_config={**_text(tokenizer), "max_position_embeddings": 16, "projection_size": 16},
        vision_config={"image_size": SIDE, "patch_size": PATCH, **LAYERS},
    )
    images = SiglipImageProcessor(size=SIZE)
    return _save(folder, SiglipModel(config), SiglipProcessor(images, tokenizer))
