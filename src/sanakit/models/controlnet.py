"""The control branch: a second latent, such as an encoded scribble, steers a linear transformer.

Module names are the published parameter names (docs/decisions/0001).
"""

from __future__ import annotations

from torch import nn

from sanakit.errors import ConfigError
from sanakit.models.config import TransformerConfig
from sanakit.models.transformer import CAPTION_NORM_EPS, Block, check_latent, readable
from sanakit.nn.cpu import with_wide_products
from sanakit.nn.embed import PatchEmbed, TextProjection, TimeEmbed
from sanakit.nn.norm import RMSNorm
from sanakit.shapes import Latent, PerSample, Text, TextMask, Tokens


def _zero_linear(width: int) -> nn.Linear:
    """A square projection that starts at zero, so that a new branch changes nothing."""
    linear = nn.Linear(width, width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class ControlBranch(nn.Module):
    """The first blocks of a `LinearDiT` once more, with its own weights and a zero projection each.

    The wiring is that of diffusers: the stream starts from the embedded latent. The original
    starts it one block later, from what block 0 made of the latent. Source: diffusers
    src/diffusers/models/controlnets/controlnet_sana.py; the original: NVlabs/Sana
    diffusion/model/nets/sana_multi_scale_controlnet.py.

    Raises:
        ConfigError: for a config with ``qk_norm`` or ``guidance_embeds``, which no published
            branch has.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        for name in ("qk_norm", "guidance_embeds"):
            if getattr(config, name):
                raise ConfigError(
                    f"{name}={getattr(config, name)!r}: a control branch has none",
                    hint="branches steer the SANA 1.0 models, not SANA 1.5 or Sprint",
                )
        width = config.width
        self.config = config
        self.patch_embed = PatchEmbed(
            config.in_channels, width, config.patch_size, span=config.position_span
        )
        self.time_embed = TimeEmbed(width)
        self.caption_projection = TextProjection(config.caption_channels, width)
        self.caption_norm = RMSNorm(width, CAPTION_NORM_EPS)
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.input_block = _zero_linear(width)
        self.controlnet_blocks = nn.ModuleList(
            _zero_linear(width) for _ in range(config.num_layers)
        )

    @with_wide_products
    def forward(
        self,
        x: Latent,
        timestep: PerSample,
        text: Text,
        text_mask: TextMask | None,
        control: Latent,
        *,
        conditioning_scale: float = 1.0,
    ) -> tuple[Tokens, ...]:
        """Give the ``residuals`` of `LinearDiT.velocity`, one a block of the branch.

        The first four arguments are those of the transformer; all tensors have the dtype of the
        weights.

        Args:
            x: noisy latent.
            timestep: in [0, 1000).
            text: hidden states of the text encoder.
            text_mask: True where a token is real; None reads every token.
            control: encoded control image, scaled like ``x`` and of its shape.
            conditioning_scale: factor on every residual; 0 leaves the transformer alone.
        """
        check_latent(x, self.config)
        if control.shape != x.shape:
            raise ConfigError(
                f"control is {tuple(control.shape)}, the latent {tuple(x.shape)}: "
                "both must have one shape",
                hint="encode a control image of the size of the picture, one a sample",
            )
        grid = (x.shape[2] // self.config.patch_size, x.shape[3] // self.config.patch_size)
        y = self.patch_embed(x) + self.input_block(self.patch_embed(control))
        time, _ = self.time_embed(timestep, y.dtype)
        states = self.caption_norm(self.caption_projection(text))
        mask = readable(text_mask)

        residuals: list[Tokens] = []
        for block, project in zip(self.transformer_blocks, self.controlnet_blocks, strict=True):
            y = block(y, states, None, mask, time, grid, None)
            residuals.append(conditioning_scale * project(y))
        return tuple(residuals)
