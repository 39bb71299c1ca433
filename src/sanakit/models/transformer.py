"""The linear diffusion transformer: latent, time and text in, velocity out.

Module names are the published parameter names (docs/decisions/0001); nothing here knows how to
sample, load or tokenise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from sanakit.errors import ConfigError
from sanakit.models.config import TransformerConfig
from sanakit.models.outputs import Transformer2DModelOutput
from sanakit.nn.attention import CrossAttention, Kept, TextHeads
from sanakit.nn.embed import GuidedTimeEmbed, PatchEmbed, TextProjection, TimeEmbed
from sanakit.nn.linear_attention import LinearAttention
from sanakit.nn.lora import lora_strength
from sanakit.nn.mix_ffn import MixFFN
from sanakit.nn.norm import RMSNorm, modulated_norm
from sanakit.nn.processor import keep_freed_blocks
from sanakit.nn.recompute import checkpointed, recomputed
from sanakit.nn.step_cache import StepCache
from sanakit.nn.ways import infers_at_length, infers_on_cpu, lengths_where_it_pays
from sanakit.nn.wide_products import with_wide_activations, with_wide_products
from sanakit.shapes import Grid, Latent, Mix, PerSample, Text, TextMask, Tokens

CAPTION_NORM_EPS = 1e-5
FINAL_NORM_EPS = 1e-6

KeysValues = tuple[TextHeads, TextHeads]
Steer = Callable[[int, Tokens], Tokens]
"""Asked after each block, with its index and the tokens that it made: gives those to go on with."""


class PreparedText(NamedTuple):
    """The text side of a whole sampling run: it changes neither with the noise nor the step."""

    states: Text  # projected to the model width and normalised
    keys_values: tuple[KeysValues, ...]  # one pair a block

    def rows(self, index: slice | Tensor) -> PreparedText:
        """Take some samples of the batch, as ``states[index]`` would."""
        return PreparedText(
            self.states[index], tuple((k[index], v[index]) for k, v in self.keys_values)
        )


class Modulation(NamedTuple):
    """What one branch does to its input and output; each field is ``b 1 d``."""

    shift: Tensor
    scale: Tensor
    gate: Tensor

    def added(self, x: Tokens, y: Tokens) -> Tokens:
        """Add what the branch gives to what it was given, as far as the gate lets it."""
        if infers_at_length(x):
            return torch.addcmul(x, self.gate, y)
        return x + self.gate * y


def readable(mask: TextMask | None) -> TextMask | None:
    """Read a text with no real token whole, as the published additive mask has it."""
    return None if mask is None else mask | ~mask.any(dim=1, keepdim=True)


def text_mask_of(mask: Tensor | None) -> TextMask | None:
    """Read a published mask, ``b l``: numbers that are not zero stand on real tokens."""
    if mask is None or mask.ndim == 2:
        return None if mask is None else mask.bool()
    raise ConfigError(
        f"encoder_attention_mask is {tuple(mask.shape)}", hint="pass b x l: one number a token"
    )


def check_latent(x: Latent, config: TransformerConfig) -> None:
    """Raise a `ConfigError` for a latent of the wrong channels or size."""
    if x.shape[1] != config.in_channels:
        raise ConfigError(
            f"latent has {x.shape[1]} channels, the model takes {config.in_channels}",
            hint="use the autoencoder the model was trained with",
        )
    if x.shape[2] % config.patch_size or x.shape[3] % config.patch_size:
        raise ConfigError(
            f"latent is {x.shape[2]} x {x.shape[3]}: both sides must be multiples of "
            f"patch_size={config.patch_size}"
        )


class Block(nn.Module):
    """One block as the paper draws it: linear attention, text, Mix-FFN; three residuals."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, eps = config.width, config.norm_eps
        qk_norm = config.qk_norm is not None
        self.norm1 = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
        self.attn1 = LinearAttention(
            config.num_attention_heads,
            config.attention_head_dim,
            bias=config.attention_bias,
            qk_norm=qk_norm,
            dropout=config.dropout,
            clip=config.attention_clip,
        )
        self.norm2 = nn.LayerNorm(width, eps=eps, elementwise_affine=config.norm_elementwise_affine)
        self.attn2 = CrossAttention(
            config.num_cross_attention_heads,
            config.cross_attention_head_dim,
            qk_norm=qk_norm,
            dropout=config.dropout,
        )
        self.ff = MixFFN(width, config.ffn_width)
        table = nn.Parameter(torch.empty(6, width))
        self.scale_shift_table = nn.init.normal_(table, std=width**-0.5)

    def forward(
        self,
        x: Tokens,
        text: Text,
        keys_values: KeysValues | None,
        mask: Kept,
        time: Float[Tensor, "b six_d"],
        grid: Grid,
        mix: Mix | None,
    ) -> Tokens:
        """Refine the tokens; ``keys_values`` spares the block making them from ``text``."""
        rows = (
            rearrange(time, "b (six d) -> six b 1 d", six=6) + self.scale_shift_table[:, None, None]
        )
        attn, ffn = Modulation(*rows[:3]), Modulation(*rows[3:])
        k, v = self.attn2.keys_values(text) if keys_values is None else keys_values
        y = recomputed(lambda x: modulated_norm(x, self.norm1, attn.shift, attn.scale), x)
        x = attn.added(x, self.attn1(y, mix=mix))
        x = x + self.attn2(x, k, v, mask)
        y = recomputed(lambda x: modulated_norm(x, self.norm2, ffn.shift, ffn.scale), x)
        y = rearrange(y, "b (h w) d -> b d h w", w=grid[1])
        return ffn.added(x, rearrange(self.ff(y), "b d h w -> b (h w) d"))


class Trunk(nn.Module):
    """Embedders and blocks: of a transformer, and of a control branch that steers one."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.gradient_checkpointing = False
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.patch_embed = PatchEmbed(
            config.in_channels, width, config.patch_size, span=config.position_span
        )
        self.time_embed = GuidedTimeEmbed(width) if config.guidance_embeds else TimeEmbed(width)
        self.caption_projection = TextProjection(config.caption_channels, width)
        self.caption_norm = RMSNorm(width, CAPTION_NORM_EPS)
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))

    @with_wide_products
    def prepare_text(self, text: Text) -> PreparedText:
        """Do all work on the text once; what takes ``text`` takes the result in its place."""
        states = self._project(text)
        blocks = (cast(Block, block) for block in self.transformer_blocks)
        return PreparedText(states, tuple(block.attn2.keys_values(states) for block in blocks))

    def _project(self, text: Text) -> Text:
        return self.caption_norm(self.caption_projection(text))

    def _through_blocks(
        self,
        y: Tokens,
        text: Text | PreparedText,
        text_mask: TextMask | None,
        time: Float[Tensor, "b six_d"],
        grid: Grid,
        *,
        mix: Mix | None = None,
        mix_layers: frozenset[int] = frozenset(),
        steer: Steer | None = None,
        cache: StepCache | None = None,
    ) -> Tokens:
        """Carry tokens through all blocks; arguments are those of `LinearDiT.velocity`."""
        if isinstance(text, PreparedText):
            states, prepared = text
        else:
            states, prepared = self._project(text), None
        mask: Kept = readable(text_mask)
        if infers_on_cpu(y):
            keep_freed_blocks()
        if isinstance(mask, Tensor) and infers_on_cpu(y):
            mask = lengths_where_it_pays(mask, y.shape[1]) or mask
        first, second = y, y
        for index, block in enumerate(self.transformer_blocks):
            keys_values = prepared[index] if prepared else None
            layer_mix = mix if index in mix_layers else None
            inputs = (y, states, keys_values, mask, time, grid, layer_mix)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                y = checkpointed(block, *inputs)
            else:
                y = block(*inputs)
            if steer is not None:
                y = steer(index, y)
            if cache is not None and index == 0:
                second = y
                if cache.skips(first, second, cast(Block, block).attn1.total):
                    return cache.kept(second)
        return y if cache is None else cache.completed(second, y)


class Residuals:
    """What a control branch gave, added to tokens: number i after block ``first`` + i."""

    def __init__(self, tokens: Sequence[Tokens], *, first: int) -> None:
        self.tokens, self.first = tokens, first

    def __call__(self, index: int, y: Tokens) -> Tokens:
        """Give the tokens to go on with after block ``index``."""
        place = index - self.first
        return y + self.tokens[place].to(y) if 0 <= place < len(self.tokens) else y


DIFFUSERS_FIRST = 1
"""The block after which diffusers adds the first residual; after the last but one, the last."""


class LinearDiT(Trunk):
    """The network of all SANA 1.0, 1.5 and Sprint models; see `TransformerConfig` for their shapes.

    Source: SANA (arXiv 2410.10629), section 2.2; diffusers
    src/diffusers/models/transformers/sana_transformer.py.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        width, patch = config.width, config.patch_size
        self.generation_defaults: object | None = None
        """What it is drawn with where a call says nothing; a pipeline that holds it sets it."""
        table = nn.Parameter(torch.empty(2, width))
        self.scale_shift_table = nn.init.normal_(table, std=width**-0.5)
        self.proj_out = nn.Linear(width, patch**2 * config.output_channels)

    def forward(
        self,
        hidden_states: Latent,
        encoder_hidden_states: Text,
        timestep: Tensor,
        guidance: PerSample | None = None,
        encoder_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        attention_kwargs: Mapping[str, Any] | None = None,
        controlnet_block_samples: Sequence[Tokens] | None = None,
        return_dict: bool = True,
        **perturbation: Any,
    ) -> Transformer2DModelOutput | tuple[Latent]:
        """Give `velocity` as the published networks are called; what is wrapped goes this way.

        Args:
            hidden_states: noisy latent.
            encoder_hidden_states: hidden states of the text encoder.
            timestep: ``b``, as in `velocity`, and whole numbers too.
            guidance: as in `velocity`.
            encoder_attention_mask: ``b l``, not zero where a token is real; None reads all.
            attention_mask: only None: linear attention has no map to mask.
            attention_kwargs: ``scale`` weighs all LoRA adapters in this call.
            controlnet_block_samples: what a control branch gave; number i is added after block
                i + 1. That is the wiring of diffusers; a ``steer`` knows its own.
            return_dict: False gives a tuple of one.
            **perturbation: ``mix``, ``mix_layers``, ``steer`` and ``cache`` of `velocity`.

        Raises:
            ConfigError: as `velocity`, for masks of another form, a scale that is no number, and
                more samples than blocks.
        """
        if attention_mask is not None:
            raise ConfigError(
                "attention_mask: self-attention is linear and reads all positions of a latent",
                hint="leave it out; a mask of text tokens is encoder_attention_mask",
            )
        if samples := tuple(controlnet_block_samples or ()):
            self._check_samples(samples, perturbation)
            perturbation["steer"] = Residuals(samples, first=DIFFUSERS_FIRST)
        scale = (attention_kwargs or {}).get("scale", 1.0)
        with nullcontext() if scale == 1.0 else lora_strength(scale):
            velocity = self.velocity(
                hidden_states,
                timestep if timestep.is_floating_point() else timestep.float(),
                encoder_hidden_states,
                text_mask_of(encoder_attention_mask),
                guidance=guidance,
                **perturbation,
            )
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    @with_wide_activations
    def velocity(
        self,
        x: Latent,
        timestep: PerSample,
        text: Text | PreparedText,
        text_mask: TextMask | None,
        *,
        guidance: PerSample | None = None,
        mix: Mix | None = None,
        mix_layers: frozenset[int] = frozenset(),
        steer: Steer | None = None,
        cache: StepCache | None = None,
    ) -> Latent:
        """Predict the velocity at ``x``. All tensors have the dtype of the weights.

        Args:
            x: noisy latent; both sides are multiples of ``patch_size``.
            timestep: as the network was trained on it, in [0, 1000) ([0, 1] for Sprint models);
                ``timestep_scale`` and truncation are the caller's.
            text: hidden states of the text encoder, or what `prepare_text` made of them.
            text_mask: True where a token is real; None reads every token. A text with no real
                token is read whole, as the published additive mask has it.
            guidance: guidance scale * ``guidance_embeds_scale``; required by, and only by, models
                with ``guidance_embeds``.
            mix: False on rows whose self-attention is the identity map in ``mix_layers``
                (perturbed-attention guidance); None mixes all rows everywhere.
            mix_layers: indices of the blocks that ``mix`` applies to.
            steer: acts on the tokens after each block: a `ControlBranch` gives one.
            cache: of one run; spares it blocks where a state has hardly changed.

        Raises:
            ConfigError: for a latent of the wrong channels or size, guidance where there is none
                to embed or the reverse, and a layer the model does not have.
        """
        check_latent(x, self.config)
        self._check(guidance, mix_layers)
        grid = (x.shape[2] // self.config.patch_size, x.shape[3] // self.config.patch_size)

        y = self.patch_embed(x)
        given = (timestep,) if guidance is None else (timestep, guidance)
        time, embedded = self.time_embed(*given, y.dtype)
        acting: dict[str, Any] = {"mix": mix, "mix_layers": mix_layers, "steer": steer}
        y = self._through_blocks(y, text, text_mask, time, grid, cache=cache, **acting)

        shift, scale = (self.scale_shift_table + embedded.unsqueeze(1)).chunk(2, dim=1)
        y = F.layer_norm(y, (self.config.width,), eps=FINAL_NORM_EPS) * (1 + scale) + shift
        pattern = "b (h w) (ph pw c) -> b c (h ph) (w pw)"
        side = self.config.patch_size
        return rearrange(self.proj_out(y), pattern, h=grid[0], ph=side, pw=side)

    def _check(self, guidance: PerSample | None, mix_layers: frozenset[int]) -> None:
        config = self.config
        if config.guidance_embeds and guidance is None:
            raise ConfigError(
                "this model embeds the guidance scale and was given none",
                hint=f"pass guidance = guidance_scale * {config.guidance_embeds_scale}",
            )
        if guidance is not None and not config.guidance_embeds:
            raise ConfigError(
                "this model does not embed a guidance scale",
                hint="leave guidance out and combine a conditional and an unconditional pass",
            )
        if absent := sorted(i for i in mix_layers if not 0 <= i < config.num_layers):
            raise ConfigError(
                f"mix_layers names block {absent[0]}, the model has {config.num_layers} blocks",
                hint=f"use indices from 0 to {config.num_layers - 1}",
            )

    def _check_samples(self, samples: tuple[Tokens, ...], more: Mapping[str, Any]) -> None:
        if len(samples) > self.config.num_layers:
            raise ConfigError(
                f"{len(samples)} residuals for {self.config.num_layers} blocks",
                hint="use the control branch that was trained for this model",
            )
        if more.get("steer") is not None:
            raise ConfigError("controlnet_block_samples and steer both steer", hint="pass one")
