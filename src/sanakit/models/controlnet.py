"""The control branch: a second latent, such as an encoded scribble, steers a linear transformer.

Module names are the published parameter names (docs/decisions/0001).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from sanakit.errors import ConfigError
from sanakit.models.config import ControlBranchConfig
from sanakit.models.outputs import SanaControlNetOutput
from sanakit.models.transformer import (
    DIFFUSERS_FIRST,
    PreparedText,
    Residuals,
    Steer,
    Trunk,
    check_latent,
    text_mask_of,
)
from sanakit.nn.lora import lora_strength
from sanakit.nn.wide_products import with_wide_products
from sanakit.shapes import Latent, PerSample, Text, TextMask, Tokens

ORIGINAL_FIRST = 0
"""The block after which the original adds the first residual."""


def _zero_linear(width: int) -> nn.Linear:
    """A square projection that starts at zero, so that a new branch changes nothing."""
    linear = nn.Linear(width, width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class ControlBranch(Trunk):
    """The first blocks of a `LinearDiT` once more, with its own weights and a zero projection each.

    ``wiring`` of the config says where it begins. In diffusers that is the embedded latent, and
    residual i is added after block i + 1. In the original it is what block 0 made of the latent,
    and residual i is added after block i. Source: diffusers
    src/diffusers/models/controlnets/controlnet_sana.py; NVlabs/Sana
    diffusion/model/nets/sana_multi_scale_controlnet.py.

    Raises:
        ConfigError: for the config of a transformer of SANA 1.5 or Sprint.
    """

    config: ControlBranchConfig

    def __init__(self, config: ControlBranchConfig) -> None:
        super().__init__(config)
        width = config.width
        self.input_block = _zero_linear(width)
        self.controlnet_blocks = nn.ModuleList(
            _zero_linear(width) for _ in range(config.num_layers)
        )

    def forward(
        self,
        hidden_states: Latent,
        encoder_hidden_states: Text,
        timestep: Tensor,
        controlnet_cond: Latent,
        conditioning_scale: float = 1.0,
        encoder_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        attention_kwargs: Mapping[str, Any] | None = None,
        return_dict: bool = True,
    ) -> SanaControlNetOutput | tuple[tuple[Tokens, ...]]:
        """Give the residuals as the published network is called, in the wiring of diffusers.

        Args:
            hidden_states: noisy latent.
            encoder_hidden_states: hidden states of the text encoder.
            timestep: ``b``, in [0, 1000), whole numbers too.
            controlnet_cond: as ``control`` of `steering`.
            conditioning_scale: as there.
            encoder_attention_mask: ``b l``, not zero where a token is real; None reads all.
            attention_mask: only None: linear attention has no map to mask.
            attention_kwargs: ``scale`` weighs all LoRA adapters in this call.
            return_dict: False gives a tuple of one.

        Raises:
            ConfigError: a branch of the original wiring, which begins inside the transformer; as
                `steering`.
        """
        if attention_mask is not None:
            raise ConfigError(
                "attention_mask: self-attention is linear and reads all positions of a latent",
                hint="leave it out; a mask of text tokens is encoder_attention_mask",
            )
        if self.config.wiring != "diffusers":
            raise ConfigError(
                "this branch is wired as the original: it begins after the transformer's block 0",
                hint="transformer(..., steer=controlnet.steering(latent, timestep, text, mask, "
                "control))",
            )
        scale = (attention_kwargs or {}).get("scale", 1.0)
        with nullcontext() if scale == 1.0 else lora_strength(scale):
            residuals = self._residuals(
                self.patch_embed(self._checked(hidden_states, controlnet_cond)),
                timestep if timestep.is_floating_point() else timestep.float(),
                encoder_hidden_states,
                text_mask_of(encoder_attention_mask),
                controlnet_cond,
                conditioning_scale,
            )
        if return_dict:
            return SanaControlNetOutput(controlnet_block_samples=residuals)
        return (residuals,)

    def steering(
        self,
        x: Latent,
        timestep: PerSample,
        text: Text | PreparedText,
        text_mask: TextMask | None,
        control: Latent,
        *,
        conditioning_scale: float = 1.0,
    ) -> Steer:
        """Give the ``steer`` of `LinearDiT.velocity` in this branch's wiring, for one call of it.

        The first four arguments are those of the transformer; all tensors have the dtype of the
        branch's weights.

        Args:
            x: noisy latent.
            timestep: in [0, 1000).
            text: hidden states of the text encoder, or what `prepare_text` of this branch gave.
            text_mask: True where a token is real; None reads every token.
            control: encoded control image, scaled like ``x`` and of its shape.
            conditioning_scale: factor on every residual; 0 leaves the transformer alone.

        Raises:
            ConfigError: a latent that does not fit the branch, or the control.
        """
        self._checked(x, control)
        given = (timestep, text, text_mask, control, conditioning_scale)
        if self.config.wiring == "diffusers":
            return Residuals(self._residuals(self.patch_embed(x), *given), first=DIFFUSERS_FIRST)
        residuals = Residuals((), first=ORIGINAL_FIRST)

        def steer(index: int, y: Tokens) -> Tokens:
            if index == 0:
                residuals.tokens = self._residuals(y.to(x), *given)
            return residuals(index, y)

        return steer

    @with_wide_products
    def _residuals(
        self,
        y: Tokens,
        timestep: PerSample,
        text: Text | PreparedText,
        text_mask: TextMask | None,
        control: Latent,
        conditioning_scale: float,
    ) -> tuple[Tokens, ...]:
        """What the blocks make of tokens to which the control was added."""
        # The original tells the control no positions.
        placed = self.config.wiring == "diffusers"
        y = y + self.input_block(self.patch_embed(control, placed=placed))
        time, _ = self.time_embed(timestep, y.dtype)
        side = self.config.patch_size
        grid = (control.shape[2] // side, control.shape[3] // side)
        residuals: list[Tokens] = []

        def collect(index: int, y: Tokens) -> Tokens:
            residuals.append(conditioning_scale * self.controlnet_blocks[index](y))
            return y

        self._through_blocks(y, text, text_mask, time, grid, steer=collect)
        return tuple(residuals)

    def _checked(self, x: Latent, control: Latent) -> Latent:
        check_latent(x, self.config)
        if control.shape != x.shape:
            raise ConfigError(
                f"control is {tuple(control.shape)}, the latent {tuple(x.shape)}: "
                "both must have one shape",
                hint="encode a control image of the size of the picture, one a sample",
            )
        return x
