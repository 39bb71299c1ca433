"""Memory, speed and device switches: what a CPU can do, and words where there is nothing to do."""

from __future__ import annotations

import copy
import gc
import pickle

import torch

from places import draw, loaded


def vae_tiling(lib, at):
    pipe = loaded(lib, at)
    pipe.enable_vae_tiling()
    return draw(pipe)


def vae_slicing(lib, at):
    pipe = loaded(lib, at)
    pipe.enable_vae_slicing()
    return draw(pipe, ["a cat", "a dog"])


def vae_slicing_off(lib, at):
    pipe = loaded(lib, at)
    pipe.enable_vae_slicing()
    pipe.disable_vae_slicing()
    pipe.disable_vae_tiling()
    return draw(pipe)


def slicing_on_the_vae(lib, at):
    pipe = loaded(lib, at)
    pipe.vae.enable_slicing()
    return draw(pipe, num_images_per_prompt=2)


def model_offload_on_cpu(lib, at):
    pipe = loaded(lib, at)
    pipe.enable_model_cpu_offload(device="cpu")
    return draw(pipe)


def sequential_offload_on_cpu(lib, at):
    pipe = loaded(lib, at)
    pipe.enable_sequential_cpu_offload(device="cpu")
    return draw(pipe)


def group_offload(lib, at):
    pipe = loaded(lib, at)
    pipe.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
    )
    return draw(pipe)


def group_offload_of_the_transformer(lib, at):
    pipe = loaded(lib, at)
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )
    return draw(pipe)


def layerwise_casting(lib, at):
    pipe = loaded(lib, at)
    pipe.transformer.enable_layerwise_casting(
        storage_dtype=torch.float32, compute_dtype=torch.float32
    )
    return draw(pipe)


def hooks_removed(lib, at):
    pipe = loaded(lib, at)
    pipe.remove_all_hooks()
    pipe.maybe_free_model_hooks()
    return draw(pipe)


def compiled_blocks(lib, at):
    pipe = loaded(lib, at)
    type(pipe.transformer)._repeated_blocks = ["SanaTransformerBlock"]
    pipe.transformer.compile_repeated_blocks(backend="eager")
    return draw(pipe)


def fused_projections(lib, at):
    pipe = loaded(lib, at)
    pipe.transformer.fuse_qkv_projections()
    return draw(pipe)


def copied(lib, at):
    pipe = loaded(lib, at)
    pipe.transformer = copy.deepcopy(pipe.transformer)
    return draw(pipe)


def config_survives_pickling(lib, at):
    config = loaded(lib, at).transformer.config
    return pickle.loads(pickle.dumps(config))["num_layers"]


def forgotten(lib, at):
    pipe = loaded(lib, at)
    drawn = draw(pipe)
    del pipe
    gc.collect()
    return drawn


def reset_of_the_device_map(lib, at):
    pipe = loaded(lib, at)
    return [pipe.hf_device_map, pipe.reset_device_map()]


def text_encoder_thrown_away(lib, at):
    pipe = loaded(lib, at)
    embeds, mask, no_embeds, no_mask = pipe.encode_prompt("a cat")
    pipe.text_encoder = None
    gc.collect()
    return draw(
        pipe,
        prompt=None,
        negative_prompt=None,
        prompt_embeds=embeds,
        prompt_attention_mask=mask,
        negative_prompt_embeds=no_embeds,
        negative_prompt_attention_mask=no_mask,
    )


def in_autocast(lib, at):
    pipe = loaded(lib, at)
    with torch.autocast("cpu", enabled=False):
        return draw(pipe)


def watermark_free_and_no_safety_checker(lib, at):
    pipe = loaded(lib, at)
    return hasattr(pipe, "safety_checker")


def num_of_threads_left_alone(lib, at):
    before = torch.get_num_threads()
    draw(loaded(lib, at))
    return torch.get_num_threads() == before


def default_dtype_left_alone(lib, at):
    loaded(lib, at)
    return str(torch.get_default_dtype())


def random_state_left_alone(lib, at):
    torch.manual_seed(4)
    pipe = loaded(lib, at)
    torch.manual_seed(4)
    draw(pipe)
    return torch.rand(1)
