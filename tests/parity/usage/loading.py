"""Loading, saving and putting together, as users of published pipelines write it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from places import draw, seeded


def plain(lib, at):
    return draw(lib.SanaPipeline.from_pretrained(at.model))


def path_object(lib, at):
    return draw(lib.SanaPipeline.from_pretrained(Path(at.model)))


def dtype_by_new_name(lib, at):
    return draw(lib.SanaPipeline.from_pretrained(at.model, dtype=torch.float32))


def dtype_by_old_name(lib, at):
    return draw(lib.SanaPipeline.from_pretrained(at.model, torch_dtype=torch.float32))


def dtype_by_part(lib, at):
    wanted = {"transformer": torch.float32, "default": torch.bfloat16}
    pipe = lib.SanaPipeline.from_pretrained(at.model, dtype=wanted)
    return [str(pipe.transformer.dtype), str(pipe.vae.dtype), str(pipe.text_encoder.dtype)]


def dtype_in_words_of_the_parts(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(at.model, dtype=torch.bfloat16)
    return [str(pipe.transformer.dtype), str(pipe.vae.dtype), str(pipe.dtype)]


def moved(lib, at):
    return draw(lib.SanaPipeline.from_pretrained(at.model).to("cpu"))


def moved_with_dtype(lib, at):
    return draw(lib.SanaPipeline.from_pretrained(at.model).to("cpu", torch.float32))


def moved_by_keyword(lib, at):
    return draw(lib.SanaPipeline.from_pretrained(at.model).to(device="cpu", dtype=torch.float32))


def vae_in_float32_after_loading_in_bf16(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(at.model, dtype=torch.bfloat16)
    pipe.vae.to(torch.float32)
    pipe.text_encoder.to(torch.float32)
    return [str(pipe.vae.dtype), str(pipe.text_encoder.dtype), str(pipe.transformer.dtype)]


def any_pipeline(lib, at):
    return draw(lib.DiffusionPipeline.from_pretrained(at.model))


def any_pipeline_has_the_folder_s_class(lib, at):
    return type(lib.DiffusionPipeline.from_pretrained(at.model)).__name__


def auto_pipeline(lib, at):
    return draw(lib.AutoPipelineForText2Image.from_pretrained(at.model))


def auto_pipeline_with_pag(lib, at):
    layers = ["transformer_blocks.1"]
    pipe = lib.AutoPipelineForText2Image.from_pretrained(
        at.model, enable_pag=True, pag_applied_layers=layers
    )
    return [type(pipe).__name__, draw(pipe, pag_scale=2.0)]


def auto_pipeline_from_another(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(at.model)
    return draw(lib.AutoPipelineForText2Image.from_pipe(pipe))


def pag_from_plain(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(at.model)
    pag = lib.SanaPAGPipeline.from_pipe(pipe, pag_applied_layers=["transformer_blocks.1"])
    return draw(pag, pag_scale=3.0)


def parts_handed_on(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(at.model)
    return draw(lib.SanaPipeline(**pipe.components))


def parts_by_name(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(at.model)
    return sorted(pipe.components)


def one_part_loaded_before(lib, at):
    transformer = lib.SanaTransformer2DModel.from_pretrained(at.model, subfolder="transformer")
    return draw(lib.SanaPipeline.from_pretrained(at.model, transformer=transformer))


def vae_loaded_before(lib, at):
    vae = lib.AutoencoderDC.from_pretrained(at.model, subfolder="vae", torch_dtype=torch.float32)
    return draw(lib.SanaPipeline.from_pretrained(at.model, vae=vae))


def part_by_auto_model(lib, at):
    transformer = lib.AutoModel.from_pretrained(at.model, subfolder="transformer")
    pipe = lib.SanaPipeline.from_pretrained(at.model, transformer=transformer)
    return [type(transformer).__name__, draw(pipe)]


def vae_by_auto_model(lib, at):
    return type(lib.AutoModel.from_pretrained(at.model, subfolder="vae")).__name__


def text_encoder_by_transformers(lib, at):
    encoder = AutoModel.from_pretrained(at.model, subfolder="text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(at.model, subfolder="tokenizer")
    pipe = lib.SanaPipeline.from_pretrained(at.model, text_encoder=encoder, tokenizer=tokenizer)
    return draw(pipe)


def scheduler_loaded_before(lib, at):
    scheduler = lib.DPMSolverMultistepScheduler.from_pretrained(at.model, subfolder="scheduler")
    return draw(lib.SanaPipeline.from_pretrained(at.model, scheduler=scheduler))


def without_text_encoder(lib, at):
    texts = lib.SanaPipeline.from_pretrained(at.model, transformer=None, vae=None)
    given = texts.encode_prompt("a red apple", do_classifier_free_guidance=True)
    names = (
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    )
    pipe = lib.SanaPipeline.from_pretrained(at.model, text_encoder=None, tokenizer=None)
    assert pipe.text_encoder is None
    assert texts.transformer is None
    return draw(pipe, prompt=None, negative_prompt=None, **dict(zip(names, given, strict=True)))


def latents_then_a_decoder_of_their_own(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(at.model, vae=None)
    latents = draw(pipe, output_type="latent")
    vae = lib.AutoencoderDC.from_pretrained(at.model, subfolder="vae")
    with torch.no_grad():
        return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]


def without_transformer(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(at.model, transformer=None)
    return pipe.transformer is None


def use_safetensors(lib, at):
    return draw(lib.SanaPipeline.from_pretrained(at.model, use_safetensors=True))


def local_files_only(lib, at):
    return draw(lib.SanaPipeline.from_pretrained(at.model, local_files_only=True))


def hub_arguments(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(
        at.model, cache_dir=str(at.folder), force_download=False, token=None, revision="main"
    )
    return draw(pipe)


def low_memory_loading(lib, at):
    return draw(lib.SanaPipeline.from_pretrained(at.model, low_cpu_mem_usage=True))


def saved_and_loaded(lib, at):
    lib.SanaPipeline.from_pretrained(at.model).save_pretrained(at.folder / "copy")
    return draw(lib.SanaPipeline.from_pretrained(at.folder / "copy"))


def saved_as_variant(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(at.model)
    pipe.save_pretrained(str(at.folder / "copy"), variant="fp16")
    names = sorted(path.name for path in (at.folder / "copy").rglob("*.safetensors"))
    return [names, draw(lib.SanaPipeline.from_pretrained(at.folder / "copy", variant="fp16"))]


def saved_in_shards(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(at.model)
    pipe.transformer.save_pretrained(at.folder / "cut", max_shard_size="20KB")
    again = lib.SanaTransformer2DModel.from_pretrained(at.folder / "cut")
    assert len([*(at.folder / "cut").glob("*.safetensors")]) > 1
    pipe.transformer = again
    return draw(pipe)


def saved_with_the_old_switch(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(at.model)
    pipe.save_pretrained(at.folder / "copy", safe_serialization=True)
    return sorted(path.name for path in (at.folder / "copy").iterdir())


def index_of_a_saved_pipeline(lib, at):
    lib.SanaPipeline.from_pretrained(at.model).save_pretrained(at.folder / "copy")
    index = json.loads((at.folder / "copy" / "model_index.json").read_text())
    return [index["_class_name"], sorted(key for key in index if not key.startswith("_"))]


def another_s_folder(lib, at):
    at.other_library.SanaPipeline.from_pretrained(at.model).save_pretrained(at.folder / "theirs")
    return draw(lib.SanaPipeline.from_pretrained(at.folder / "theirs"))


def changed_transformer(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(at.model)
    pipe.transformer = lib.SanaTransformer2DModel.from_pretrained(f"{at.model}/transformer")
    return draw(pipe)


def changed_vae(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(at.model)
    vae = lib.AutoencoderDC.from_pretrained(at.model, subfolder="vae")
    torch.nn.init.zeros_(vae.decoder.conv_out.conv.weight)
    pipe.vae = vae
    return draw(pipe)


def registered_module(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(at.model)
    vae = lib.AutoencoderDC.from_pretrained(at.model, subfolder="vae")
    pipe.register_modules(vae=vae)
    return [pipe.vae is vae, draw(pipe)]


def where_and_what(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(at.model)
    return [str(pipe.device), str(pipe.dtype), str(pipe._execution_device), pipe.vae_scale_factor]


def config_of_the_pipeline(lib, at):
    config = lib.SanaPipeline.from_pretrained(at.model).config
    return [list(config["vae"])[1], config.get("nothing", "absent"), "transformer" in config]


def config_of_a_folder(lib, at):
    return lib.SanaPipeline.load_config(at.model)["transformer"][1]


def two_pipelines_of_one_model(lib, at):
    first = lib.SanaPipeline.from_pretrained(at.model)
    second = lib.SanaPipeline.from_pipe(first)
    assert second.transformer is first.transformer
    return [draw(first), draw(second, guidance_scale=2.0)]


def device_map_on_cpu(lib, at):
    return draw(lib.SanaPipeline.from_pretrained(at.model, device_map="cpu"))


def absent_variant(lib, at):
    try:
        lib.SanaPipeline.from_pretrained(at.model, variant="bf16")
    except ValueError:
        return True
    return False


def absent_folder(lib, at):
    try:
        lib.SanaPipeline.from_pretrained(str(at.folder / "nowhere"), local_files_only=True)
    except (OSError, ValueError):
        return True
    return False


def seeded_by_hand(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(at.model)
    torch.manual_seed(5)
    return draw(pipe, generator=None)


def seeded_global_generator(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(at.model)
    return draw(pipe, generator=torch.manual_seed(5))


def one_generator_for_two(lib, at):
    pipe, generator = lib.SanaPipeline.from_pretrained(at.model), seeded(9)
    return [draw(pipe, generator=generator), draw(pipe, generator=generator)]
