"""The networks by themselves, and networks that a user wrapped, compiled, hooked or replaced."""

from __future__ import annotations

import torch

from places import draw, loaded, seeded


def _transformer(lib, at):
    return lib.SanaTransformer2DModel.from_pretrained(at.model, subfolder="transformer")


def _vae(lib, at):
    return lib.AutoencoderDC.from_pretrained(at.model, subfolder="vae")


def _inputs(transformer):
    width = transformer.config.caption_channels
    return {
        "hidden_states": torch.randn(2, 4, 4, 4, generator=seeded(1)),
        "encoder_hidden_states": torch.randn(2, 7, width, generator=seeded(2)),
        "timestep": torch.tensor([300.0, 700.0]),
        "encoder_attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3]),
    }


def called_by_keywords(lib, at):
    transformer = _transformer(lib, at)
    return transformer(**_inputs(transformer)).sample


def called_for_a_tuple(lib, at):
    transformer = _transformer(lib, at)
    return transformer(**_inputs(transformer), return_dict=False)[0]


def called_without_mask(lib, at):
    transformer = _transformer(lib, at)
    inputs = _inputs(transformer)
    del inputs["encoder_attention_mask"]
    return transformer(**inputs).sample


def called_by_position(lib, at):
    transformer = _transformer(lib, at)
    inputs = _inputs(transformer)
    return transformer(
        inputs["hidden_states"], inputs["encoder_hidden_states"], inputs["timestep"]
    ).sample


def output_by_index(lib, at):
    transformer = _transformer(lib, at)
    return transformer(**_inputs(transformer))[0]


def trained_a_step(lib, at):
    transformer = _transformer(lib, at).train()
    transformer.requires_grad_(True)
    transformer(**_inputs(transformer)).sample.square().mean().backward()
    return transformer.transformer_blocks[0].attn1.to_q.weight.grad


def trained_a_step_with_checkpoints(lib, at):
    transformer = _transformer(lib, at).train()
    transformer.requires_grad_(True)
    transformer.enable_gradient_checkpointing()
    transformer(**_inputs(transformer)).sample.square().mean().backward()
    return [transformer.is_gradient_checkpointing, transformer.proj_out.weight.grad]


def config_entries(lib, at):
    config = _transformer(lib, at).config
    return [config.num_layers, config["num_layers"], config.get("patch_size"), "nothing" in config]


def config_as_a_dict(lib, at):
    config = dict(_transformer(lib, at).config)
    keys = ("in_channels", "num_attention_heads", "caption_channels", "sample_size", "mlp_ratio")
    return [config[key] for key in keys]


def made_from_a_config(lib, at):
    config = lib.SanaTransformer2DModel.load_config(at.model, subfolder="transformer")
    made = lib.SanaTransformer2DModel.from_config(config)
    made.load_state_dict(_transformer(lib, at).state_dict())
    return made(**_inputs(made)).sample


def made_by_hand(lib, at):
    made = lib.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=32,
    )
    return [sum(p.numel() for p in made.parameters()), sorted(made.state_dict())]


def counted(lib, at):
    return [_transformer(lib, at).num_parameters(), str(_transformer(lib, at).dtype)]


def device_and_dtype(lib, at):
    vae = _vae(lib, at)
    return [str(vae.device), str(vae.dtype), str(vae.to(torch.bfloat16).dtype)]


def names_of_weights(lib, at):
    return [sorted(_transformer(lib, at).state_dict()), sorted(_vae(lib, at).state_dict())]


def saved(lib, at):
    _transformer(lib, at).save_pretrained(at.folder / "network")
    again = lib.SanaTransformer2DModel.from_pretrained(at.folder / "network")
    return [
        sorted(p.name for p in (at.folder / "network").iterdir()),
        again(**_inputs(again)).sample,
    ]


def encoded(lib, at):
    pixels = torch.rand(1, 3, 64, 64, generator=seeded(3)) * 2 - 1
    return _vae(lib, at).encode(pixels).latent


def encoded_to_a_tuple(lib, at):
    pixels = torch.rand(1, 3, 64, 64, generator=seeded(3)) * 2 - 1
    return _vae(lib, at).encode(pixels, return_dict=False)[0]


def decoded(lib, at):
    return _vae(lib, at).decode(torch.randn(1, 4, 2, 2, generator=seeded(4))).sample


def decoded_to_a_tuple(lib, at):
    latents = torch.randn(1, 4, 2, 2, generator=seeded(4))
    return _vae(lib, at).decode(latents, return_dict=False)[0]


def there_and_back(lib, at):
    pixels = torch.rand(1, 3, 64, 64, generator=seeded(3)) * 2 - 1
    return _vae(lib, at)(pixels).sample


def scaling(lib, at):
    vae = _vae(lib, at)
    return [vae.config.scaling_factor, vae.config["latent_channels"], vae.spatial_compression_ratio]


def gradient_of_the_decoder(lib, at):
    latents = torch.randn(1, 4, 2, 2, generator=seeded(4)).requires_grad_()
    _vae(lib, at).decode(latents).sample.square().mean().backward()
    return latents.grad


def sliced(lib, at):
    vae = _vae(lib, at)
    vae.enable_slicing()
    return vae.decode(torch.randn(3, 4, 2, 2, generator=seeded(4))).sample


def tiling_on_and_off(lib, at):
    vae = _vae(lib, at)
    vae.enable_tiling()
    vae.disable_tiling()
    return vae.decode(torch.randn(1, 4, 2, 2, generator=seeded(4))).sample


def tiling_as_the_dreambooth_script_calls_it(lib, at):
    pipe = loaded(lib, at)
    pipe.vae.enable_tiling(
        tile_sample_min_height=1024,
        tile_sample_min_width=1024,
        tile_sample_stride_height=896,
        tile_sample_stride_width=896,
    )
    return draw(pipe)


def compiled_transformer(lib, at):
    pipe = loaded(lib, at)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    return draw(pipe)


def compiled_in_place(lib, at):
    pipe = loaded(lib, at)
    pipe.transformer.compile(backend="eager")
    return draw(pipe)


def compiled_decoder(lib, at):
    pipe = loaded(lib, at)
    pipe.vae.decode = torch.compile(pipe.vae.decode, backend="eager")
    return draw(pipe)


def decode_replaced(lib, at):
    pipe = loaded(lib, at)
    plain = pipe.vae.decode

    def halved(z, *args, **options):
        return plain(z * 0.5, *args, **options)

    pipe.vae.decode = halved
    return draw(pipe)


def forward_replaced(lib, at):
    pipe = loaded(lib, at)
    plain = pipe.transformer.forward

    def damped(*args, **options):
        given = plain(*args, **options)
        return (given[0] * 0.5, *given[1:]) if isinstance(given, tuple) else given

    pipe.transformer.forward = damped
    return draw(pipe)


def hook_on_the_transformer(lib, at):
    pipe = loaded(lib, at)
    calls = []
    pipe.transformer.register_forward_hook(lambda module, args, output: calls.append(1))
    return [draw(pipe, num_inference_steps=3), len(calls)]


def hook_on_a_block(lib, at):
    pipe = loaded(lib, at)
    block = pipe.transformer.transformer_blocks[1]
    block.register_forward_hook(lambda module, args, output: output * 0.8)
    return draw(pipe)


def hook_on_the_text_encoder(lib, at):
    pipe = loaded(lib, at)

    def silenced(module, args, output):
        output.last_hidden_state.mul_(0.5)
        return output

    pipe.text_encoder.register_forward_hook(silenced)
    return draw(pipe)


def block_replaced(lib, at):
    pipe = loaded(lib, at)
    del pipe.transformer.transformer_blocks[2]
    return draw(pipe)


def weights_changed_in_place(lib, at):
    pipe = loaded(lib, at)
    first = draw(pipe)
    with torch.no_grad():
        pipe.transformer.proj_out.weight.mul_(0.5)
        for weight in pipe.text_encoder.parameters():
            weight.mul_(1.05)
    return [first, draw(pipe)]


def encode_prompt_replaced(lib, at):
    pipe = loaded(lib, at)
    plain = pipe.encode_prompt

    def louder(*args, **options):
        embeds, *others = plain(*args, **options)
        return (embeds * 1.2, *others)

    pipe.encode_prompt = louder
    return draw(pipe)


def subclass_of_the_pipeline(lib, at):
    class Damped(lib.SanaPipeline):
        def prepare_latents(self, *args, **options):
            return super().prepare_latents(*args, **options) * 0.9

    return draw(loaded(lib, at, Damped))


def subclass_that_checks_and_counts(lib, at):
    seen = []

    class Watched(lib.SanaPipeline):
        def check_inputs(self, prompt, height, width, *args, **options):
            super().check_inputs(prompt, height, width, *args, **options)
            seen.append((prompt, height, width))

        def progress_bar(self, iterable=None, total=None):
            seen.append(total)
            return super().progress_bar(iterable, total)

    draw(loaded(lib, at, Watched), prompt=["a cat"], height=64, width=96)
    return seen


def frozen(lib, at):
    pipe = loaded(lib, at)
    for part in (pipe.vae, pipe.transformer, pipe.text_encoder):
        part.requires_grad_(False)
    return sum(p.requires_grad for p in pipe.transformer.parameters())


def channels_last(lib, at):
    pipe = loaded(lib, at)
    pipe.vae.to(memory_format=torch.channels_last)
    return draw(pipe)


def evaluated(lib, at):
    pipe = loaded(lib, at)
    return [pipe.transformer.training, pipe.vae.eval() is pipe.vae]


def weights_handed_over(lib, at):
    pipe = loaded(lib, at)
    weights = {name: value * 0.9 for name, value in pipe.transformer.state_dict().items()}
    pipe.transformer.load_state_dict(weights)
    return draw(pipe)


def a_wrapper_of_their_own(lib, at):
    class Wrapped(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.config, self.calls = inner, inner.config, 0

        @property
        def dtype(self):
            return self.inner.dtype

        @property
        def device(self):
            return self.inner.device

        def forward(self, *args, **options):
            self.calls += 1
            return self.inner(*args, **options)

    pipe = loaded(lib, at)
    wrapped = Wrapped(pipe.transformer)
    pipe.transformer = wrapped
    return [draw(pipe, num_inference_steps=3), wrapped.calls]
