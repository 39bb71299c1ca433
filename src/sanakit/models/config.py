"""Frozen shapes of every network and their named presets.

Field names are those of the published ``config.json`` files: like parameter names they are a public
contract, so a config is read and written without a translation table (docs/decisions/0002).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

from sanakit.errors import ConfigError
from sanakit.untrusted import check_fields, dataclass_from

WIDE, DEEP = (1, 1 << 16), (0, 1024)
POSITIVE = (1e-12, 1e12)
MOST_STAGES = 10
# Wide enough for any network that could be built, and no wider: a config is not trusted.
TRANSFORMER_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "in_channels": WIDE,
        "out_channels": WIDE,
        "num_attention_heads": WIDE,
        "attention_head_dim": WIDE,
        "num_layers": DEEP,
        "num_cross_attention_heads": WIDE,
        "cross_attention_head_dim": WIDE,
        "cross_attention_dim": WIDE,
        "caption_channels": WIDE,
        "mlp_ratio": (1e-3, 1e3),
        "dropout": (0.0, 1.0),
        "sample_size": WIDE,
        "patch_size": (1, 64),
        "norm_eps": (0.0, 1.0),
        "interpolation_scale": POSITIVE,
        "timestep_scale": POSITIVE,
    }
)
AUTOENCODER_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "in_channels": WIDE,
        "latent_channels": WIDE,
        "attention_head_dim": WIDE,
        "encoder_block_out_channels": WIDE,
        "decoder_block_out_channels": WIDE,
        "encoder_layers_per_block": DEEP,
        "decoder_layers_per_block": DEEP,
        "encoder_qkv_multiscales": (1, 63),
        "decoder_qkv_multiscales": (1, 63),
        "scaling_factor": POSITIVE,
    }
)

BlockType = Literal["ResBlock", "EfficientViTBlock"]
Stages = tuple[int, ...]
Multiscales = tuple[tuple[int, ...], ...]
T = TypeVar("T")
FP16_END = 65504.0
"""The largest finite value of fp16."""


def config_from_dict(kind: type[T], values: Mapping[str, Any], *, source: str) -> T:
    """Build a config from published JSON; keys that start with ``_`` are the writer's notes."""
    ours = _own_keys(kind)
    named = {ours.get(key, key): value for key, value in values.items()}
    given = {key: value for key, value in named.items() if not key.startswith("_")}
    return dataclass_from(kind, given, source=source)


def config_to_dict(config: Any) -> dict[str, Any]:
    """Give the config's fields as JSON-ready values, in the order they are declared.

    Fields of ours alone stand last, where they are set, under keys that begin with ``_``: other
    readers of published files pass over those.
    """
    values, ours = asdict(config), _own_keys(type(config))
    for name in config.NOT_IN_FILES:
        del values[name]
    found = {key: values.pop(name) for key, name in ours.items()}
    return values | {key: value for key, value in found.items() if value is not None}


def _own_keys(kind: type[Any]) -> dict[str, str]:
    """The keys in files of the fields that no published config has."""
    return {f"_{each.name}": each.name for each in fields(kind) if each.metadata.get("ours")}


class Fields(Mapping[str, Any]):
    """A config is a mapping, too: ``config["num_layers"]``, ``dict(config)``, as files have it."""

    __slots__ = ()
    NOT_IN_FILES: ClassVar[tuple[str, ...]] = ()
    """Fields that the published class does not have; they stay at their defaults."""

    def __getitem__(self, name: str) -> Any:
        return config_to_dict(self)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(config_to_dict(self))

    def __len__(self) -> int:
        return len(config_to_dict(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig(Fields):
    """Everything that decides the shapes and the arithmetic of a linear diffusion transformer.

    Defaults are those of ``SanaTransformer2DModel``. Source: diffusers
    src/diffusers/models/transformers/sana_transformer.py.
    """

    in_channels: int = 32
    out_channels: int | None = 32
    num_attention_heads: int = 70
    attention_head_dim: int = 32
    """Width of one linear-attention head; a token costs width * head_dim."""
    num_layers: int = 20
    num_cross_attention_heads: int = 20
    cross_attention_head_dim: int = 112
    cross_attention_dim: int = 2240
    caption_channels: int = 2304
    """Width of the text encoder's hidden states."""
    mlp_ratio: float = 2.5
    dropout: float = 0.0
    attention_bias: bool = False
    sample_size: int = 32
    """Side of the latent grid the model was trained at; anchors the positional encoding."""
    patch_size: int = 1
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-6
    interpolation_scale: float | None = None
    """None: no positional encoding (NoPE). A number: sincos, spanning sample_size / scale."""
    guidance_embeds: bool = False
    guidance_embeds_scale: float = 0.1
    qk_norm: Literal["rms_norm_across_heads"] | None = None
    timestep_scale: float = 1.0
    attention_clip: float | None = field(default=None, metadata={"ours": True})
    """Bound of what self-attention gives, both ways: 65504, the end of fp16, for a network trained
    in fp16, whose every step was cut there; None: no bound. In files ``_attention_clip``."""

    def __post_init__(self) -> None:
        clip = self.attention_clip
        if clip is not None and not (type(clip) in (int, float) and 0 < clip < math.inf):
            raise ConfigError(
                f"attention_clip={clip!r} must be a positive number or null",
                hint=f"{FP16_END:.0f} is what networks trained in fp16 were bounded by",
            )
        check_fields(self, TRANSFORMER_RANGES)
        cross = self.num_cross_attention_heads * self.cross_attention_head_dim
        if cross != self.cross_attention_dim or cross != self.width:
            raise ConfigError(
                f"cross attention is {cross} wide, cross_attention_dim={self.cross_attention_dim}, "
                f"the model {self.width}: all three must be equal"
            )
        if self.interpolation_scale is not None and self.width % 4:
            raise ConfigError(f"width={self.width} is not a multiple of 4, which sincos needs")

    @property
    def width(self) -> int:
        """Model width: what one token carries between blocks."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def ffn_width(self) -> int:
        """Hidden width of the Mix-FFN after its gate; the convolutions carry twice as much."""
        return int(self.mlp_ratio * self.width)

    @property
    def position_span(self) -> float | None:
        """Range of the coordinates in the positional encoding; None where there is none."""
        scale = self.interpolation_scale
        return None if scale is None else self.sample_size // self.patch_size / scale

    @property
    def output_channels(self) -> int:
        """Channels of the prediction; ``out_channels`` where given, else ``in_channels``."""
        return self.out_channels or self.in_channels


CONTROL_LAYERS = 7
"""Blocks of a published control branch."""
Wiring = Literal["diffusers", "original"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlBranchConfig(TransformerConfig):
    """The shape of a control branch: that of the transformer it steers, with fewer blocks.

    Defaults are those of ``SanaControlNetModel``, whose config has no fields for what a branch
    cannot have. Source: diffusers src/diffusers/models/controlnets/controlnet_sana.py.
    """

    NOT_IN_FILES: ClassVar[tuple[str, ...]] = (
        "guidance_embeds",
        "guidance_embeds_scale",
        "qk_norm",
        "timestep_scale",
    )
    num_layers: int = CONTROL_LAYERS
    wiring: Wiring = field(default="diffusers", metadata={"ours": True})
    """Where the branch begins and its residuals are added: as diffusers does it, or, one block
    apart on both ends, the original, which trained all published weights. In files ``_wiring``."""

    def __post_init__(self) -> None:
        TransformerConfig.__post_init__(self)
        for name in self.NOT_IN_FILES:
            if getattr(self, name) != TransformerConfig.__dataclass_fields__[name].default:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r}: a control branch has none",
                    hint="branches steer the SANA 1.0 models, not SANA 1.5 or Sprint",
                )

    @classmethod
    def of(
        cls,
        transformer: TransformerConfig,
        *,
        num_layers: int | None = None,
        wiring: Wiring = "diffusers",
    ) -> ControlBranchConfig:
        """Give the config of a branch for a transformer; of up to seven blocks unless told.

        Raises:
            ConfigError: a transformer of SANA 1.5 or Sprint, or of fewer blocks than the branch.
        """
        if num_layers is None:
            num_layers = min(CONTROL_LAYERS, transformer.num_layers)
        if not 0 < num_layers <= transformer.num_layers:
            raise ConfigError(
                f"num_layers={num_layers} of a control branch must be 1 to "
                f"{transformer.num_layers}: they are the first blocks of its transformer"
            )
        own = {each.name: getattr(transformer, each.name) for each in fields(TransformerConfig)}
        return cls(**(own | {"num_layers": num_layers, "wiring": wiring}))


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig(Fields):
    """Everything that decides the shapes and the arithmetic of a deep-compression autoencoder.

    Defaults are those of ``AutoencoderDC``. Source: diffusers
    src/diffusers/models/autoencoders/autoencoder_dc.py.
    """

    in_channels: int = 3
    latent_channels: int = 32
    attention_head_dim: int = 32
    encoder_block_types: BlockType | tuple[BlockType, ...] = "ResBlock"
    decoder_block_types: BlockType | tuple[BlockType, ...] = "ResBlock"
    encoder_block_out_channels: Stages = (128, 256, 512, 512, 1024, 1024)
    decoder_block_out_channels: Stages = (128, 256, 512, 512, 1024, 1024)
    encoder_layers_per_block: Stages = (2, 2, 2, 3, 3, 3)
    decoder_layers_per_block: Stages = (3, 3, 3, 3, 3, 3)
    encoder_qkv_multiscales: Multiscales = ((), (), (), (5,), (5,), (5,))
    decoder_qkv_multiscales: Multiscales = ((), (), (), (5,), (5,), (5,))
    upsample_block_type: Literal["pixel_shuffle", "interpolate"] = "pixel_shuffle"
    downsample_block_type: Literal["pixel_unshuffle", "conv", "Conv"] = "pixel_unshuffle"
    decoder_norm_types: str | tuple[str, ...] = "rms_norm"
    decoder_act_fns: str | tuple[str, ...] = "silu"
    encoder_out_shortcut: bool = True
    decoder_in_shortcut: bool = True
    decoder_conv_act_fn: str = "relu"
    scaling_factor: float = 1.0
    """1 / RMS of the raw latents: multiplies what the encoder gives, divides before decoding."""

    def __post_init__(self) -> None:
        check_fields(self, AUTOENCODER_RANGES)
        for side in ("encoder", "decoder"):
            widths = getattr(self, f"{side}_block_out_channels")
            if not 0 < len(widths) <= MOST_STAGES:
                raise ConfigError(
                    f"{side}_block_out_channels has {len(widths)} entries",
                    hint=f"one a stage, 1 to {MOST_STAGES}",
                )
            for name in ("layers_per_block", "qkv_multiscales"):
                if len(getattr(self, f"{side}_{name}")) != len(widths):
                    raise ConfigError(
                        f"{side}_{name} has {len(getattr(self, f'{side}_{name}'))} entries, "
                        f"{side}_block_out_channels has {len(widths)}: they must agree"
                    )
            for kind in self.per_stage(f"{side}_block_types"):
                if kind not in ("ResBlock", "EfficientViTBlock"):
                    raise ConfigError(
                        f"{side}_block_types names {kind!r}",
                        hint="blocks are ResBlock and EfficientViTBlock",
                    )
            if widths[-1] % self.latent_channels:
                raise ConfigError(
                    f"{side}: last width {widths[-1]} is not a multiple of "
                    f"latent_channels={self.latent_channels}"
                )

    @property
    def spatial_factor(self) -> int:
        """Side of the image over side of the latent: 32, 64 or 128 for the published ones."""
        return int(2 ** (len(self.encoder_block_out_channels) - 1))

    def per_stage(self, name: str) -> tuple[str, ...]:
        """Give a field that may be one word for all stages as one word a stage."""
        value = getattr(self, name)
        stages = len(self.encoder_block_out_channels)
        per_stage: tuple[str, ...] = (value,) * stages if isinstance(value, str) else value
        if len(per_stage) != stages:
            raise ConfigError(f"{name} has {len(per_stage)} entries for {stages} stages")
        return per_stage


def _sana(width: int, cross_heads: int, depth: int, **more: Any) -> TransformerConfig:
    return TransformerConfig(
        num_attention_heads=width // 32,
        num_layers=depth,
        num_cross_attention_heads=cross_heads,
        cross_attention_head_dim=width // cross_heads,
        cross_attention_dim=width,
        **more,
    )


_QK: Any = {"qk_norm": "rms_norm_across_heads"}
_SPRINT: Any = {**_QK, "guidance_embeds": True}

TRANSFORMERS: Mapping[str, TransformerConfig] = MappingProxyType(
    {
        "tiny": TransformerConfig(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=4,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=8,
        ),
        # The embedded model's: 256 px is a latent of 8 x 8. Patches of 2 x 2, where the published
        # networks have single ones, are four times as many pictures for the same compute.
        "glyph": TransformerConfig(
            num_attention_heads=12,
            num_layers=12,
            num_cross_attention_heads=6,
            cross_attention_head_dim=64,
            cross_attention_dim=384,
            caption_channels=256,
            sample_size=8,
            patch_size=2,
        ),
        "sana-0.6b": _sana(1152, 16, 28),
        "sana-0.6b-512": _sana(1152, 16, 28, sample_size=16),
        "sana-1.6b": _sana(2240, 20, 20),
        "sana-1.6b-512": _sana(2240, 20, 20, sample_size=16),
        "sana-1.6b-2k": _sana(2240, 20, 20, sample_size=64, interpolation_scale=1.0),
        "sana-1.6b-4k": _sana(2240, 20, 20, sample_size=128, interpolation_scale=2.0),
        "sana-2.4b": _sana(2240, 20, 30),
        "sana1.5-1.6b": _sana(2240, 20, 20, **_QK),
        "sana1.5-3.2b": _sana(2240, 20, 40, **_QK),
        "sana1.5-4.8b": _sana(2240, 20, 60, **_QK),
        "sprint-0.6b": _sana(1152, 16, 28, **_SPRINT),
        "sprint-1.6b": _sana(2240, 20, 20, **_SPRINT),
    }
)

CONTROL_BRANCHES: Mapping[str, ControlBranchConfig] = MappingProxyType(
    {
        "controlnet-0.6b": ControlBranchConfig.of(TRANSFORMERS["sana-0.6b"], wiring="original"),
        "controlnet-1.6b": ControlBranchConfig.of(TRANSFORMERS["sana-1.6b"], wiring="original"),
    }
)


_RESIDUAL: tuple[BlockType, ...] = ("ResBlock",)
_ATTENTION: tuple[BlockType, ...] = ("EfficientViTBlock",)


def _dc_ae_in(deep_stages: int, latent_channels: int, scaling_factor: float) -> AutoencoderConfig:
    """One of the ImageNet family: 3 residual stages, then ``deep_stages`` attention stages."""
    widths = (128, 256, 512, 512, 1024, 1024, 2048, 2048)[: 3 + deep_stages]
    kinds = _RESIDUAL * 3 + _ATTENTION * deep_stages
    scales: Multiscales = ((),) * len(widths)
    return AutoencoderConfig(
        latent_channels=latent_channels,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(0, 4, 8) + (2,) * deep_stages,
        decoder_layers_per_block=(0, 5, 10) + (2,) * deep_stages,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        decoder_norm_types=("batch_norm",) * 3 + ("rms_norm",) * deep_stages,
        decoder_act_fns=("relu",) * 3 + ("silu",) * deep_stages,
        scaling_factor=scaling_factor,
    )


_SANA_KINDS = _RESIDUAL * 3 + _ATTENTION * 3

AUTOENCODERS: Mapping[str, AutoencoderConfig] = MappingProxyType(
    {
        "tiny": AutoencoderConfig(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
        ),
        # The embedded model's. Attention only where there are 4 x 4 positions: on a CPU it costs
        # more time than it repays (docs/research/lab-log.md); the decoder is the deeper half.
        "glyph": AutoencoderConfig(
            encoder_block_types=_RESIDUAL * 5 + _ATTENTION,
            decoder_block_types=_RESIDUAL * 5 + _ATTENTION,
            encoder_block_out_channels=(16, 32, 64, 128, 256, 256),
            decoder_block_out_channels=(16, 32, 64, 128, 256, 256),
            encoder_layers_per_block=(0, 1, 2, 2, 2, 2),
            decoder_layers_per_block=(0, 1, 2, 3, 4, 2),
            encoder_qkv_multiscales=((),) * 6,
            decoder_qkv_multiscales=((),) * 6,
        ),
        "dc-ae-f32c32-sana-1.0": AutoencoderConfig(
            encoder_block_types=_SANA_KINDS,
            decoder_block_types=_SANA_KINDS,
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            scaling_factor=0.41407,
        ),
        # A decoder of residual blocks alone, for the same latents: half the time of the other.
        "dc-ae-lite-f32c32-sana-1.1": AutoencoderConfig(
            encoder_block_types=_SANA_KINDS,
            decoder_block_types=_RESIDUAL * 6,
            decoder_layers_per_block=(0, 3, 5, 4, 4, 4),
            decoder_qkv_multiscales=((),) * 6,
            decoder_conv_act_fn="silu",
            downsample_block_type="conv",
            scaling_factor=0.41407,
        ),
        "dc-ae-f32c32-in-1.0": _dc_ae_in(3, 32, 0.3189),
        "dc-ae-f32c32-mix-1.0": _dc_ae_in(3, 32, 0.4552),
        "dc-ae-f64c128-in-1.0": _dc_ae_in(4, 128, 0.2889),
        "dc-ae-f64c128-mix-1.0": _dc_ae_in(4, 128, 0.4538),
        "dc-ae-f128c512-in-1.0": _dc_ae_in(5, 512, 0.4883),
        "dc-ae-f128c512-mix-1.0": _dc_ae_in(5, 512, 0.3620),
    }
)


def check_fit(
    transformer: TransformerConfig, *, text_width: int, latent_channels: int, source: str
) -> None:
    """Refuse parts of different models, of which one gives what the next does not take."""
    for name, gives, takes in (
        ("text encoder", text_width, transformer.caption_channels),
        ("autoencoder", latent_channels, transformer.in_channels),
    ):
        if gives != takes:
            raise ConfigError(
                f"{source}: the {name} gives {gives} channels, the transformer takes {takes}",
                hint="the two parts are of different models",
            )
    if transformer.output_channels % latent_channels:
        raise ConfigError(
            f"{source}: the transformer makes {transformer.output_channels} channels, the "
            f"autoencoder takes {latent_channels}",
            hint="the two parts are of different models",
        )


def check_branch(branch: ControlBranchConfig, transformer: TransformerConfig) -> None:
    """Refuse a control branch that cannot steer a transformer."""
    for name in ControlBranchConfig.NOT_IN_FILES:
        if getattr(transformer, name) != getattr(branch, name):
            raise ConfigError(
                f"the transformer has {name}={getattr(transformer, name)!r}, which no control "
                "branch knows",
                hint="branches steer the SANA 1.0 models, not SANA 1.5 or Sprint",
            )
    for name in ("in_channels", "caption_channels", "patch_size", "width"):
        ours, theirs = getattr(branch, name), getattr(transformer, name)
        if ours != theirs:
            raise ConfigError(
                f"{name} of the control branch is {ours}, of the transformer {theirs}",
                hint="the two are of different models",
            )
    if branch.num_layers > transformer.num_layers:
        raise ConfigError(
            f"{branch.num_layers} blocks of a control branch for {transformer.num_layers} of the "
            "transformer",
            hint="use the control branch that was trained for this model",
        )
