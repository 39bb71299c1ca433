"""Original checkpoints in miniature, written down from the authors' module trees.

Nothing here knows the tables under test: names and shapes are spelt out a second time.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sanakit.models.config import AutoencoderConfig, TransformerConfig

Shapes = dict[str, tuple[int, ...]]
TOKENS = 300


def filled(shapes: Mapping[str, tuple[int, ...]], *, device: str = "cpu") -> dict[str, Tensor]:
    """Random, the same every time; running variances are positive."""
    generator = torch.Generator(device).manual_seed(0) if device == "cpu" else None
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.ones((), dtype=torch.int64, device=device)
            continue
        fan = max(1, torch.Size(shape[1:]).numel()) if len(shape) > 1 else 4
        drawn = torch.randn(shape, generator=generator, device=device) / fan**0.5
        if name.endswith("running_var"):
            drawn = drawn.abs() + 0.5
        state[name] = drawn
    return state


def block_shapes(prefix: str, width: int, hidden: int, *, qk_norm: bool) -> Shapes:
    shapes: Shapes = {
        "scale_shift_table": (6, width),
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "cross_attn.q_linear.weight": (width, width),
        "cross_attn.q_linear.bias": (width,),
        "cross_attn.kv_linear.weight": (2 * width, width),
        "cross_attn.kv_linear.bias": (2 * width,),
        "cross_attn.proj.weight": (width, width),
        "cross_attn.proj.bias": (width,),
        "mlp.inverted_conv.conv.weight": (2 * hidden, width, 1, 1),
        "mlp.inverted_conv.conv.bias": (2 * hidden,),
        "mlp.depth_conv.conv.weight": (2 * hidden, 1, 3, 3),
        "mlp.depth_conv.conv.bias": (2 * hidden,),
        "mlp.point_conv.conv.weight": (width, hidden, 1, 1),
    }
    if qk_norm:
        for name in ("attn.q_norm", "attn.k_norm", "cross_attn.q_norm", "cross_attn.k_norm"):
            shapes[f"{name}.weight"] = (width,)
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def transformer_shapes(config: TransformerConfig, *, branch: int = 0) -> Shapes:
    width, patch = config.width, config.patch_size
    side = config.sample_size // patch
    shapes: Shapes = {
        "pos_embed": (1, side * side, width),
        "x_embedder.proj.weight": (width, config.in_channels, patch, patch),
        "x_embedder.proj.bias": (width,),
        "t_block.1.weight": (6 * width, width),
        "t_block.1.bias": (6 * width,),
        "y_embedder.y_embedding": (TOKENS, config.caption_channels),
        "y_embedder.y_proj.fc1.weight": (width, config.caption_channels),
        "y_embedder.y_proj.fc1.bias": (width,),
        "y_embedder.y_proj.fc2.weight": (width, width),
        "y_embedder.y_proj.fc2.bias": (width,),
        "attention_y_norm.weight": (width,),
        "final_layer.linear.weight": (patch**2 * config.output_channels, width),
        "final_layer.linear.bias": (patch**2 * config.output_channels,),
        "final_layer.scale_shift_table": (2, width),
    }
    embedders = ["t_embedder"]
    if config.guidance_embeds:
        embedders.append("cfg_embedder")
        shapes |= {"logvar_linear.weight": (1, width), "logvar_linear.bias": (1,)}
    for name in embedders:
        shapes |= {f"{name}.mlp.0.weight": (width, 256), f"{name}.mlp.0.bias": (width,)}
        shapes |= {f"{name}.mlp.2.weight": (width, width), f"{name}.mlp.2.bias": (width,)}
    qk_norm = config.qk_norm is not None
    for index in range(config.num_layers):
        shapes |= block_shapes(f"blocks.{index}", width, config.ffn_width, qk_norm=qk_norm)
    for index in range(branch):
        name = f"controlnet.{index}"
        shapes |= block_shapes(f"{name}.copied_block", width, config.ffn_width, qk_norm=qk_norm)
        for projection in ("before_proj", "after_proj") if index == 0 else ("after_proj",):
            shapes |= {
                f"{name}.{projection}.weight": (width, width),
                f"{name}.{projection}.bias": (width,),
            }
    return shapes


def native_transformer(
    config: TransformerConfig, *, branch: int = 0, device: str = "cpu"
) -> dict[str, Tensor]:
    state = filled(transformer_shapes(config, branch=branch), device=device)
    side = config.sample_size // config.patch_size
    if device == "cpu":
        state["pos_embed"] = torch.zeros(1, side * side, config.width)
        if config.interpolation_scale is not None:
            state["pos_embed"] = sincos(config.width, side, config.interpolation_scale)
    return state


def sincos(width: int, side: int, scale: float) -> Tensor:
    """The table of the original, by its definition: columns first, then rows, each sin then cos."""
    place = torch.arange(side, dtype=torch.float64) / scale
    rate = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    axis = torch.cat([(place[:, None] * rate).sin(), (place[:, None] * rate).cos()], dim=1)
    cells = [torch.cat([axis[x], axis[y]]) for y in range(side) for x in range(side)]
    return torch.stack(cells).float().unsqueeze(0)


def autoencoder_shapes(config: AutoencoderConfig) -> Shapes:
    shapes: Shapes = {}
    first_is_empty = config.encoder_layers_per_block[0] == 0
    strided = config.downsample_block_type != "pixel_unshuffle"
    down_name = "conv" if strided else "conv.conv"
    for side in ("encoder", "decoder"):
        widths = getattr(config, f"{side}_block_out_channels")
        counts = getattr(config, f"{side}_layers_per_block")
        kinds = config.per_stage(f"{side}_block_types")
        norms = config.per_stage("decoder_norm_types") if side == "decoder" else ["rms_norm"] * 99
        for stage, (width, count) in enumerate(zip(widths, counts, strict=True)):
            scales = getattr(config, f"{side}_qkv_multiscales")[stage]
            resampled = count > 0 and stage + 1 < len(widths)
            place = f"{side}.stages.{stage}.op_list"
            offset = 1 if side == "decoder" and resampled else 0
            for index in range(count):
                name = f"{place}.{index + offset}"
                if kinds[stage] == "ResBlock":
                    shapes |= res_block(name, width, norms[stage])
                else:
                    head = config.attention_head_dim
                    shapes |= vit_block(name, width, head, scales, norms[stage])
            if not resampled:
                continue
            if side == "encoder":
                made = widths[stage + 1] // (1 if strided else 4)
                shapes |= conv(f"{place}.{count}.main.{down_name}", made, width)
            else:
                made = width * (1 if config.upsample_block_type == "interpolate" else 4)
                shapes |= conv(f"{place}.0.main.conv.conv", made, widths[stage + 1])
    widths, latent = config.encoder_block_out_channels, config.latent_channels
    if first_is_empty:
        made = widths[1] // (1 if strided else 4)
        shapes |= conv(f"encoder.project_in.{down_name}", made, config.in_channels)
    else:
        shapes |= conv("encoder.project_in.conv", widths[0], config.in_channels)
    main = "main." if config.encoder_out_shortcut else ""
    shapes |= conv(f"encoder.project_out.{main}op_list.0.conv", latent, widths[-1])
    main = "main." if config.decoder_in_shortcut else ""
    widths = config.decoder_block_out_channels
    shapes |= conv(f"decoder.project_in.{main}conv", widths[-1], latent)
    last = widths[1] if first_is_empty else widths[0]
    shapes |= norm("decoder.project_out.op_list.0", last, "rms_norm")
    if first_is_empty:
        made = config.in_channels * (1 if config.upsample_block_type == "interpolate" else 4)
        shapes |= conv("decoder.project_out.op_list.2.conv.conv", made, last)
    else:
        shapes |= conv("decoder.project_out.op_list.2.conv", config.in_channels, last)
    return shapes


def conv(name: str, out: int, into: int, kernel: int = 3, *, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (out, into, kernel, kernel)}
    return {**shapes, f"{name}.bias": (out,)} if bias else shapes


def norm(name: str, width: int, kind: str) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    if kind == "batch_norm":
        shapes |= {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
        shapes |= {f"{name}.num_batches_tracked": ()}
    return shapes


def res_block(name: str, width: int, kind: str) -> Shapes:
    return {
        **conv(f"{name}.main.conv1.conv", width, width),
        **conv(f"{name}.main.conv2.conv", width, width, bias=False),
        **norm(f"{name}.main.conv2.norm", width, kind),
    }


def vit_block(name: str, width: int, head: int, scales: tuple[int, ...], kind: str) -> Shapes:
    inner = width // head * head
    attention, feed = f"{name}.context_module.main", f"{name}.local_module.main"
    shapes = conv(f"{attention}.qkv.conv", 3 * inner, width, 1, bias=False)
    for index, kernel in enumerate(scales):
        shapes[f"{attention}.aggreg.{index}.0.weight"] = (3 * inner, 1, kernel, kernel)
        shapes[f"{attention}.aggreg.{index}.1.weight"] = (3 * inner, head, 1, 1)
    return {
        **shapes,
        **conv(f"{attention}.proj.conv", width, inner * (1 + len(scales)), 1, bias=False),
        **norm(f"{attention}.proj.norm", width, kind),
        **conv(f"{feed}.inverted_conv.conv", 8 * width, width, 1),
        **conv(f"{feed}.depth_conv.conv", 8 * width, 1),
        **conv(f"{feed}.point_conv.conv", width, 4 * width, 1, bias=False),
        **norm(f"{feed}.point_conv.norm", width, "rms_norm"),
    }


def native_autoencoder(config: AutoencoderConfig, *, device: str = "cpu") -> dict[str, Tensor]:
    return filled(autoencoder_shapes(config), device=device)
