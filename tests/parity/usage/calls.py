"""The call and its arguments, as users of published pipelines write them."""

from __future__ import annotations

import inspect

import numpy as np
import torch

from places import draw, loaded, seeded


def prompt_alone(lib, at):
    return draw(loaded(lib, at), "a blue boat on a lake")


def prompts(lib, at):
    return draw(loaded(lib, at), ["a red apple", "a cat"])


def negative(lib, at):
    return draw(loaded(lib, at), negative_prompt="blurry, low quality")


def negatives(lib, at):
    return draw(loaded(lib, at), ["a cat", "a dog"], negative_prompt=["grey", "blue"])


def one_negative_for_two(lib, at):
    return draw(loaded(lib, at), ["a cat", "a dog"], negative_prompt="grey")


def no_guidance(lib, at):
    return draw(loaded(lib, at), guidance_scale=1.0)


def guidance_of_nought(lib, at):
    return draw(loaded(lib, at), guidance_scale=0.0)


def strong_guidance(lib, at):
    return draw(loaded(lib, at), guidance_scale=9.0)


def whole_guidance(lib, at):
    return draw(loaded(lib, at), guidance_scale=5)


def several_of_one(lib, at):
    return draw(loaded(lib, at), num_images_per_prompt=3)


def several_of_two(lib, at):
    return draw(loaded(lib, at), ["a cat", "a dog"], num_images_per_prompt=2)


def several_with_a_seed_each(lib, at):
    return draw(loaded(lib, at), num_images_per_prompt=2, generator=[seeded(1), seeded(2)])


def prompts_with_a_seed_each(lib, at):
    return draw(loaded(lib, at), ["a cat", "a dog"], generator=[seeded(i) for i in (4, 5)])


def twenty_steps(lib, at):
    return draw(loaded(lib, at), num_inference_steps=20, output_type="latent")


def one_step(lib, at):
    return draw(loaded(lib, at), num_inference_steps=1)


def wide(lib, at):
    return draw(loaded(lib, at), height=64, width=160)


def binned(lib, at):
    return draw(loaded(lib, at), height=700, width=1300, num_inference_steps=1, binning=True).shape


def binned_latents(lib, at):
    options = {"height": 768, "width": 1344, "num_inference_steps": 1, "output_type": "latent"}
    return draw(loaded(lib, at), binning=True, **options)


def own_latents(lib, at):
    latents = torch.randn(1, 4, 2, 2, generator=seeded(8))
    return draw(loaded(lib, at), latents=latents)


def own_latents_for_two(lib, at):
    latents = torch.randn(2, 4, 2, 2, generator=seeded(8))
    return draw(loaded(lib, at), ["a cat", "a dog"], latents=latents)


def pictures(lib, at):
    return draw(loaded(lib, at), output_type="pil")


def picture_is_pillow_s(lib, at):
    picture = draw(loaded(lib, at), output_type="pil")[0]
    return [picture.mode, picture.size, np.asarray(picture)]


def tensors(lib, at):
    return draw(loaded(lib, at), output_type="pt")


def arrays(lib, at):
    return draw(loaded(lib, at), output_type="np")


def latents(lib, at):
    return draw(loaded(lib, at), output_type="latent")


def latents_decoded_by_hand(lib, at):
    pipe = loaded(lib, at)
    latents = draw(pipe, output_type="latent")
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return pipe.image_processor.postprocess(decoded, output_type="np")


def tuple_instead_of_output(lib, at):
    given = draw(loaded(lib, at), return_dict=False)
    return [type(given).__name__, len(given), given[0]]


def output_by_index(lib, at):
    pipe = loaded(lib, at)
    given = pipe("a cat", **at.call)
    return [type(given).__name__, given[0], given["images"], [*given.keys()]]


def saved_picture(lib, at):
    picture = draw(loaded(lib, at), output_type="pil")[0]
    picture.save(at.folder / "out.png")
    return np.asarray(lib.load_image(str(at.folder / "out.png")))


def plain_text_without_instruction(lib, at):
    return draw(loaded(lib, at), complex_human_instruction=None)


def instruction_of_nothing(lib, at):
    return draw(loaded(lib, at), complex_human_instruction=[])


def own_instruction(lib, at):
    return draw(loaded(lib, at), complex_human_instruction=["Draw the following.", "User: "])


def default_instruction_is_the_published_one(lib, at):
    call = inspect.signature(lib.SanaPipeline.__call__).parameters
    return call["complex_human_instruction"].default


def defaults_of_the_call(lib, at):
    call = inspect.signature(lib.SanaPipeline.__call__).parameters
    return {name: repr(one.default) for name, one in call.items() if name != "self"}


def defaults_of_the_pag_call(lib, at):
    call = inspect.signature(lib.SanaPAGPipeline.__call__).parameters
    return {name: repr(one.default) for name, one in call.items() if name != "self"}


def order_of_the_call(lib, at):
    return list(inspect.signature(lib.SanaPipeline.__call__).parameters)


def cleaned_caption(lib, at):
    return draw(loaded(lib, at), "A  Cat", clean_caption=False)


def short_texts(lib, at):
    return draw(loaded(lib, at), max_sequence_length=40)


def encoded_before(lib, at):
    pipe = loaded(lib, at)
    embeds, mask, negative_embeds, negative_mask = pipe.encode_prompt("a red apple")
    return draw(
        pipe,
        prompt=None,
        negative_prompt=None,
        prompt_embeds=embeds,
        prompt_attention_mask=mask,
        negative_prompt_embeds=negative_embeds,
        negative_prompt_attention_mask=negative_mask,
    )


def encoded_texts(lib, at):
    return list(loaded(lib, at).encode_prompt("a cat", True, negative_prompt="grey"))


def encoded_for_several(lib, at):
    return list(loaded(lib, at).encode_prompt(["a cat", "a dog"], num_images_per_prompt=2)[:2])


def encoded_without_guidance(lib, at):
    given = loaded(lib, at).encode_prompt("a cat", do_classifier_free_guidance=False)
    return [given[0], given[1], given[2], given[3]]


def encoded_by_keywords(lib, at):
    pipe = loaded(lib, at)
    given = pipe.encode_prompt(
        prompt="a cat",
        do_classifier_free_guidance=True,
        negative_prompt="",
        num_images_per_prompt=1,
        device=pipe.device,
        clean_caption=False,
        max_sequence_length=300,
        complex_human_instruction=None,
    )
    return list(given)


def prepared_latents(lib, at):
    pipe = loaded(lib, at)
    return pipe.prepare_latents(2, 4, 64, 96, torch.float32, torch.device("cpu"), seeded(2))


def prompt_and_embeds_are_refused(lib, at):
    pipe = loaded(lib, at)
    embeds, mask, *_ = pipe.encode_prompt("a cat")
    try:
        draw(pipe, prompt_embeds=embeds, prompt_attention_mask=mask)
    except ValueError:
        return "ValueError"
    return "drawn"


def size_off_the_grid_is_refused(lib, at):
    try:
        draw(loaded(lib, at), height=65)
    except ValueError:
        return "ValueError"
    return "drawn"


def wrong_prompt_type_is_refused(lib, at):
    try:
        draw(loaded(lib, at), 17)
    except (ValueError, TypeError):
        return "refused"
    return "drawn"


def generators_must_be_as_many_as_pictures(lib, at):
    try:
        draw(loaded(lib, at), num_images_per_prompt=3, generator=[seeded(1), seeded(2)])
    except ValueError:
        return "ValueError"
    return "drawn"


def pag(lib, at):
    pipe = lib.SanaPAGPipeline.from_pretrained(at.model, pag_applied_layers="transformer_blocks.0")
    return draw(pipe, pag_scale=3.0)


def pag_off(lib, at):
    pipe = lib.SanaPAGPipeline.from_pretrained(at.model, pag_applied_layers="transformer_blocks.0")
    return draw(pipe, pag_scale=0.0)


def pag_adapting(lib, at):
    pipe = lib.SanaPAGPipeline.from_pretrained(at.model, pag_applied_layers="transformer_blocks.1")
    return draw(pipe, pag_scale=3.0, pag_adaptive_scale=0.002, num_inference_steps=4)


def pag_without_guidance(lib, at):
    pipe = lib.SanaPAGPipeline.from_pretrained(at.model, pag_applied_layers="transformer_blocks.1")
    return draw(pipe, pag_scale=3.0, guidance_scale=1.0)


def pag_layers_by_pattern(lib, at):
    layers = [r"transformer_blocks\.(0|1)"]
    pipe = lib.SanaPAGPipeline.from_pretrained(at.model, pag_applied_layers=layers)
    return draw(pipe, pag_scale=2.0)


def progress_off(lib, at):
    pipe = loaded(lib, at)
    pipe.set_progress_bar_config(disable=True)
    return draw(pipe)


def progress_named(lib, at):
    pipe = loaded(lib, at)
    pipe.set_progress_bar_config(desc="drawing", leave=False)
    return draw(pipe)


def in_inference_mode(lib, at):
    with torch.inference_mode():
        return draw(loaded(lib, at))


def without_gradients(lib, at):
    with torch.no_grad():
        return draw(loaded(lib, at))


def batch_of_seeds(lib, at):
    pipe = loaded(lib, at)
    return [draw(pipe, generator=torch.Generator("cpu").manual_seed(i)) for i in range(3)]


def grid_of_pictures(lib, at):
    pictures = draw(loaded(lib, at), num_images_per_prompt=4, output_type="pil")
    return np.asarray(lib.make_image_grid(pictures, rows=2, cols=2))


def whole_call_as_the_page_has_it(lib, at):
    pipe = lib.SanaPipeline.from_pretrained(at.model, torch_dtype=torch.float32)
    pipe.to("cpu")
    pipe.text_encoder.to(torch.float32)
    pipe.transformer = pipe.transformer.to(torch.float32)
    image = pipe(
        prompt='a cyberpunk cat with a neon sign that says "Sana"',
        height=64,
        width=64,
        guidance_scale=5.0,
        num_inference_steps=4,
        use_resolution_binning=False,
        generator=torch.Generator().manual_seed(42),
    )[0]
    return np.asarray(image[0])
