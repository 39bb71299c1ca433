"""LoRA: loaded, weighed, fused, saved and trained, as users of published pipelines write it."""

from __future__ import annotations

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from places import draw, loaded


def _with_one(lib, at, **options):
    pipe = loaded(lib, at)
    pipe.load_lora_weights(at.lora, adapter_name="first", **options)
    return pipe


def _with_two(lib, at):
    pipe = _with_one(lib, at)
    pipe.load_lora_weights(at.second_lora, adapter_name="second")
    return pipe


def folder(lib, at):
    pipe = loaded(lib, at)
    pipe.load_lora_weights(at.lora)
    return draw(pipe)


def file_by_name(lib, at):
    pipe = loaded(lib, at)
    pipe.load_lora_weights(at.lora, weight_name="pytorch_lora_weights.safetensors")
    return draw(pipe)


def file_by_path(lib, at):
    pipe = loaded(lib, at)
    pipe.load_lora_weights(f"{at.lora}/pytorch_lora_weights.safetensors")
    return draw(pipe)


def tensors_in_memory(lib, at):
    pipe = loaded(lib, at)
    pipe.load_lora_weights(lib.SanaPipeline.lora_state_dict(at.lora))
    return draw(pipe)


def named(lib, at):
    return draw(_with_one(lib, at))


def scaled_in_the_call(lib, at):
    return draw(_with_one(lib, at), attention_kwargs={"scale": 0.4})


def scale_of_nought(lib, at):
    return draw(_with_one(lib, at), attention_kwargs={"scale": 0.0})


def weight_set(lib, at):
    pipe = _with_one(lib, at)
    pipe.set_adapters("first", 0.7)
    return draw(pipe)


def weight_set_by_keyword(lib, at):
    pipe = _with_one(lib, at)
    pipe.set_adapters(["first"], adapter_weights=[0.3])
    return draw(pipe)


def newest_alone_is_active(lib, at):
    pipe = _with_two(lib, at)
    return [pipe.get_active_adapters(), draw(pipe)]


def two_at_once(lib, at):
    pipe = _with_two(lib, at)
    pipe.set_adapters(["first", "second"])
    return [pipe.get_active_adapters(), draw(pipe)]


def two_with_weights(lib, at):
    pipe = _with_two(lib, at)
    pipe.set_adapters(["first", "second"], adapter_weights=[0.5, 1.5])
    return draw(pipe)


def back_to_the_first(lib, at):
    pipe = _with_two(lib, at)
    pipe.set_adapters("first")
    return draw(pipe)


def listed(lib, at):
    return _with_two(lib, at).get_list_adapters()


def off(lib, at):
    pipe = _with_one(lib, at)
    pipe.disable_lora()
    return draw(pipe)


def off_and_on(lib, at):
    pipe = _with_one(lib, at)
    pipe.disable_lora()
    pipe.enable_lora()
    return draw(pipe)


def deleted(lib, at):
    pipe = _with_two(lib, at)
    pipe.delete_adapters("second")
    return [pipe.get_list_adapters(), draw(pipe)]


def both_deleted(lib, at):
    pipe = _with_two(lib, at)
    pipe.delete_adapters(["first", "second"])
    return draw(pipe)


def unloaded(lib, at):
    pipe = _with_one(lib, at)
    pipe.unload_lora_weights()
    return draw(pipe)


def fused(lib, at):
    pipe = _with_one(lib, at)
    pipe.fuse_lora()
    return [pipe.num_fused_loras, draw(pipe)]


def fused_with_scale(lib, at):
    pipe = _with_one(lib, at)
    pipe.fuse_lora(lora_scale=0.6)
    return draw(pipe)


def fused_and_unloaded(lib, at):
    pipe = _with_one(lib, at)
    pipe.fuse_lora(adapter_names=["first"], lora_scale=1.0)
    pipe.unload_lora_weights()
    return draw(pipe)


def fused_two_of_two(lib, at):
    pipe = _with_two(lib, at)
    pipe.set_adapters(["first", "second"], adapter_weights=[0.5, 1.5])
    pipe.fuse_lora(adapter_names=["first", "second"])
    return draw(pipe)


def fused_one_of_two(lib, at):
    pipe = _with_two(lib, at)
    pipe.fuse_lora(adapter_names=["first"])
    pipe.unload_lora_weights()
    return draw(pipe)


def unfused(lib, at):
    pipe = _with_one(lib, at)
    pipe.fuse_lora()
    pipe.unfuse_lora()
    return draw(pipe)


def fused_and_saved(lib, at):
    pipe = _with_one(lib, at)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(at.folder / "merged")
    return draw(lib.SanaPipeline.from_pretrained(at.folder / "merged"))


def hot_swapped(lib, at):
    pipe = _with_one(lib, at)
    pipe.load_lora_weights(at.second_lora, adapter_name="first", hotswap=True)
    return draw(pipe)


def unknown_name_is_refused(lib, at):
    pipe = _with_one(lib, at)
    try:
        pipe.set_adapters("third")
    except ValueError:
        return "ValueError"
    return "set"


def same_name_twice_is_refused(lib, at):
    pipe = _with_one(lib, at)
    try:
        pipe.load_lora_weights(at.second_lora, adapter_name="first")
    except ValueError:
        return "ValueError"
    return "loaded"


def on_the_network(lib, at):
    pipe = loaded(lib, at)
    path = f"{at.lora}/pytorch_lora_weights.safetensors"
    pipe.transformer.load_lora_adapter(path, adapter_name="mine", prefix="transformer")
    return draw(pipe)


def made_for_training(lib, at):
    transformer = lib.SanaTransformer2DModel.from_pretrained(at.model, subfolder="transformer")
    transformer.requires_grad_(False)
    transformer.add_adapter(
        LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=["to_k", "to_q"])
    )
    return [sum(p.numel() for p in transformer.parameters() if p.requires_grad)]


def saved_after_training(lib, at):
    pipe = loaded(lib, at)
    torch.manual_seed(0)
    pipe.transformer.add_adapter(
        LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=["to_q", "to_v"])
    )
    layers = get_peft_model_state_dict(pipe.transformer)
    lib.SanaPipeline.save_lora_weights(at.folder / "saved", transformer_lora_layers=layers)
    again = loaded(lib, at)
    again.load_lora_weights(at.folder / "saved")
    return [sorted(path.name for path in (at.folder / "saved").iterdir()), draw(again)]


def half_the_scale_twice(lib, at):
    pipe = _with_one(lib, at)
    pipe.set_adapters("first", 0.5)
    once = draw(pipe)
    return [once, draw(pipe, attention_kwargs={"scale": 0.5})]


def changed_between_steps(lib, at):
    pipe = _with_one(lib, at)

    def callback(pipe, step, timestep, tensors):
        pipe.set_adapters("first", 1.0 - 0.2 * step)
        return tensors

    return draw(pipe, num_inference_steps=4, callback_on_step_end=callback)


def under_pag(lib, at):
    pipe = lib.SanaPAGPipeline.from_pretrained(
        at.model, pag_applied_layers=["transformer_blocks.1"]
    )
    pipe.load_lora_weights(at.lora)
    return draw(pipe, pag_scale=2.0)


def moved_to_a_device(lib, at):
    pipe = _with_one(lib, at)
    pipe.set_lora_device(["first"], "cpu")
    return draw(pipe)


def cast_while_fused(lib, at):
    pipe = _with_one(lib, at)
    pipe.fuse_lora()
    pipe.to(torch.bfloat16)
    pipe.to(torch.float32)
    return [str(pipe.transformer.dtype)]
