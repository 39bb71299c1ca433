"""The Gemma-2 family (Gemma Team 2024), the text encoders of SANA: a decoder's final states.

Modules and parameters have their published names, and so `final_states` runs the network of
`transformers` as well as ours: it calls whatever stands under the names of layers, norms and
activations. There is no head: an encoder needs none.

Source: transformers src/transformers/models/gemma2/modeling_gemma2.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from sanakit.models.outputs import ModelOutput
from sanakit.nn.inference import Linear
from sanakit.shapes import Text, TextMask, TokenIds

FULL, SLIDING = "full_attention", "sliding_attention"
MOST_LAYERS, LARGEST = 256, 1 << 20
# What a config may not say otherwise: whoever does has another network.
FIXED: Mapping[str, tuple[object, ...]] = {
    "model_type": ("gemma2",),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False,),
    "use_bidirectional_attention": (None, False),
    "rope_scaling": (None,),
}


@dataclass(frozen=True, kw_only=True)
class Gemma2Config:
    """The published fields that decide a state; defaults are those of Gemma-2-2B."""

    vocab_size: int = 256_000
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    query_pre_attn_scalar: float = 256
    attn_logit_softcapping: float | None = 50.0
    sliding_window: int = 4096
    layer_types: tuple[str, ...] = ()
    """One a layer; none: every other layer slides, the first does."""
    published: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """All that its ``config.json`` says."""

    def __post_init__(self) -> None:
        if not self.layer_types:
            kinds = tuple((SLIDING, FULL)[layer % 2] for layer in range(self.num_hidden_layers))
            object.__setattr__(self, "layer_types", kinds)


def config_of(values: Mapping[str, Any]) -> Gemma2Config | None:
    """Read a ``config.json`` as versions 4 and 5 of transformers write it.

    None: of another family, or with a value that this network does not have or that is of no
    network.
    """
    if any(values.get(name, known[0]) not in known for name, known in FIXED.items()):
        return None
    rope = values.get("rope_parameters")
    rope = {"rope_theta": values.get("rope_theta")} if rope is None else rope
    if not isinstance(rope, Mapping) or rope.get("rope_type", "default") != "default":
        return None
    if rope.keys() - {"rope_theta", "rope_type"}:
        return None
    own = {name for name in Gemma2Config.__dataclass_fields__ if name != "published"}
    given = {name: values[name] for name in own & values.keys()}
    given |= {"rope_theta": rope.get("rope_theta")}
    kinds = given.pop("layer_types", None)
    if not all(_usual(name, value) for name, value in given.items()):
        return None
    config = Gemma2Config(
        **given, layer_types=tuple(kinds) if isinstance(kinds, list) else (), published=values
    )
    fits = (
        values.get("model_type") == "gemma2"
        and (kinds is None or (isinstance(kinds, list) and bool(kinds)))
        and all(kind in (FULL, SLIDING) for kind in config.layer_types)
        and len(config.layer_types) == config.num_hidden_layers <= MOST_LAYERS
        and config.hidden_size % config.num_attention_heads == 0
        and config.num_attention_heads % config.num_key_value_heads == 0
        and config.head_dim % 2 == 0
    )
    return config if fits else None


def _usual(name: str, value: object) -> bool:
    if value is None:
        return name == "attn_logit_softcapping"
    real = Gemma2Config.__dataclass_fields__[name].type != "int"
    known = type(value) is int or (real and type(value) is float and math.isfinite(value))
    return known and 0 < value <= LARGEST  # type: ignore[operator]


class RMSNorm(nn.Module):
    """Root mean square norm in fp32 with gains of ``1 + weight``."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).mul_(1 + self.weight.float()).type_as(x)


class ScaledEmbedding(nn.Embedding):
    """Embeddings times the root of their width, which is rounded to the dtype of the weights."""

    def forward(self, input: Tensor) -> Tensor:
        """Look tokens up."""
        scale = torch.tensor(self.embedding_dim**0.5, dtype=self.weight.dtype)
        return super().forward(input) * scale.to(self.weight.device)


class Rotary(nn.Module):
    """Rotary position embedding (Su 2021). Frequencies are fp32 whatever the network is cast to."""

    def __init__(self, width: int, theta: float) -> None:
        super().__init__()
        self.width, self.theta = width, theta

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``b l dh`` of positions ``b l``, in the dtype of ``x``."""
        exponents = torch.arange(0, self.width, 2, dtype=torch.float32) / self.width
        frequencies = (1.0 / self.theta**exponents).to(x.device)
        angles = positions[..., None].float() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class Attention(nn.Module):
    """Projections of grouped-query attention (Ainslie 2023), and how its scores are scaled."""

    is_causal = True

    def __init__(self, config: Gemma2Config) -> None:
        super().__init__()
        width, dh = config.hidden_size, config.head_dim
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = dh
        self.scaling = config.query_pre_attn_scalar**-0.5
        self.attn_logit_softcapping = config.attn_logit_softcapping
        self.q_proj = Linear(width, heads * dh, bias=False)
        self.k_proj = Linear(width, groups * dh, bias=False)
        self.v_proj = Linear(width, groups * dh, bias=False)
        self.o_proj = Linear(heads * dh, width, bias=False)


class GatedMLP(nn.Module):
    """Projections of a feed-forward layer gated by GELU (Shazeer 2020)."""

    def __init__(self, config: Gemma2Config) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(width, inner, bias=False)
        self.up_proj = Linear(width, inner, bias=False)
        self.down_proj = Linear(inner, width, bias=False)
        self.act_fn = nn.GELU(approximate="tanh")


class Layer(nn.Module):
    """What one layer holds."""

    def __init__(self, config: Gemma2Config) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config)
        self.mlp = GatedMLP(config)
        self.input_layernorm = RMSNorm(width, eps)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.pre_feedforward_layernorm = RMSNorm(width, eps)
        self.post_feedforward_layernorm = RMSNorm(width, eps)


@dataclass
class States(ModelOutput):
    """``last_hidden_state`` are the states after the final norm."""

    last_hidden_state: Text


class Gemma2Model(nn.Module):
    """A decoder of this family, without a head."""

    def __init__(self, config: Gemma2Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = ScaledEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = Rotary(config.head_dim, config.rope_theta)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """That of its weights."""
        return self.embed_tokens.weight.dtype

    def get_input_embeddings(self) -> nn.Embedding:
        """The embeddings of its tokens."""
        return self.embed_tokens

    def forward(
        self, input_ids: TokenIds, attention_mask: Tensor | None = None, use_cache: bool = False
    ) -> States:
        """States of all positions; ``attention_mask`` is not 0 on tokens that are seen.

        ``use_cache`` is what the published call says: nothing is kept here.
        """
        mask = None if attention_mask is None else attention_mask.bool()
        return States(last_hidden_state=final_states(self, input_ids, mask))


class Pair(NamedTuple):
    """Keys and values of a token sequence in one layer."""

    keys: Float[Tensor, "heads n dh"]
    values: Float[Tensor, "heads n dh"]


OUTSIDE = "transformers.models.gemma2.modeling_gemma2"
_OURS = (Gemma2Model, Layer, Attention, GatedMLP)
_OUTSIDE = ("Gemma2Model", "Gemma2DecoderLayer", "Gemma2Attention", "Gemma2MLP")


def runs_as_built(llm: nn.Module) -> bool:
    """Whether `final_states` is all that a call of this network does.

    Not if it is of another family, or its user hooked, patched, wrapped or compiled it or a layer
    of it. What stands in the place of a projection, a norm or the embeddings is called.
    """
    if not _as_built(llm, 0) or llm.training:
        return False
    config: Any = llm.config
    known = getattr(config, "_attn_implementation", "eager") in ("eager", "sdpa")
    layers: list[Any] = list(llm.get_submodule("layers").children())
    return (
        known
        and config.sliding_window is not None
        and len(layers) == config.num_hidden_layers == len(config.layer_types)
        and all(
            _as_built(layer, 1)
            and _as_built(layer.self_attn, 2)
            and layer.self_attn.is_causal
            and _as_built(layer.mlp, 3)
            for layer in layers
        )
    )


def _as_built(part: Any, place: int) -> bool:
    kind = type(part)
    outside = kind.__module__ == OUTSIDE and kind.__name__ == _OUTSIDE[place]
    return (
        (kind is _OURS[place] or (outside and kind.forward.__module__ == OUTSIDE))
        and "forward" not in vars(part)
        and getattr(part, "_compiled_call_impl", None) is None
        and not part._forward_hooks
        and not part._forward_pre_hooks
    )


def final_states(
    llm: nn.Module,
    ids: TokenIds,
    mask: TextMask | None = None,
    *,
    before: Sequence[Pair] = (),
    every: bool = True,
) -> Text:
    """States ``b l d`` after the final norm, of tokens behind those of ``before``, if any.

    ``mask`` is True on real tokens, which come first in each row. States at padding see the real
    tokens alone, like the reference's; they are zeros unless ``every`` one is computed.
    """
    run = _Run(llm, ids, mask, before, every=every)
    for _ in run.layers():
        pass
    return run.states()


def keys_and_values(llm: nn.Module, ids: TokenIds) -> tuple[list[Pair], Text]:
    """What later tokens look back at, of one row of tokens, and the states of that row."""
    run = _Run(llm, ids, None, (), every=True)
    return [
        Pair(*(each.squeeze(1).clone() for each in pair)) for pair in run.layers()
    ], run.states()


class _Run:
    """One pass; tokens ``t d`` of all rows stand one after another, without padding."""

    def __init__(
        self,
        llm: Any,
        ids: TokenIds,
        mask: TextMask | None,
        before: Sequence[Pair],
        *,
        every: bool,
    ) -> None:
        self.llm, self.before = llm, before
        self.rows, self.length = ids.shape
        full = mask is None or bool(mask.all())
        x = llm.embed_tokens(ids)
        start = before[0].keys.shape[1] if before else 0
        positions = torch.arange(start, start + self.length, device=x.device)
        cos, sin = llm.rotary_emb(x, positions[None])
        self.rotation = cos[0], sin[0]
        seen = None if full else mask
        self.hidden = {
            kind: _hidden(positions, start, llm.config.sliding_window if kind == SLIDING else None)
            for kind in set(llm.config.layer_types)
        }
        if seen is not None and every:
            unseen = functional.pad(~seen, (start, 0))[:, None, None]
            self.hidden = {kind: hidden | unseen for kind, hidden in self.hidden.items()}
        self.places = None
        self.x = x.flatten(0, 1)
        if seen is not None and not every:
            self.places = seen.flatten().nonzero().squeeze(1)
            self.x = self.x[self.places]

    def layers(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through the layers; give each one's keys and values ``heads b l dh``."""
        pairs = self.before or (None,) * len(self.llm.layers)
        for layer, kind, before in zip(
            self.llm.layers, self.llm.config.layer_types, pairs, strict=True
        ):
            x = self.x
            attended, pair = self._attended(layer, layer.input_layernorm(x), kind, before)
            x = x + layer.post_attention_layernorm(attended)
            inner, mlp = layer.pre_feedforward_layernorm(x), layer.mlp
            fed = mlp.down_proj(mlp.act_fn(mlp.gate_proj(inner)) * mlp.up_proj(inner))
            self.x = x + layer.post_feedforward_layernorm(fed)
            yield pair

    def states(self) -> Text:
        """What the last layer gave, after the final norm."""
        return self._padded(self.llm.norm(self.x))

    def _padded(self, x: Tensor) -> Tensor:
        """Tokens ``t d`` as ``b l d``."""
        if self.places is not None:
            whole = x.new_zeros(self.rows * self.length, x.shape[-1])
            x = whole.index_copy_(0, self.places, x)
        return x.view(self.rows, self.length, -1)

    def _attended(
        self, layer: Any, x: Tensor, kind: str, before: Pair | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attention of tokens ``t d``; what is before several rows is shared by two products.

        Heads come first, so that rows lie one after another for the keys that all of them share.
        """
        attn, (rows, length) = layer.self_attn, (self.rows, self.length)
        dh = attn.head_dim
        q, k, v = (
            self._padded(project(x)).view(rows, length, -1, dh)
            for project in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        heads, group = k.shape[2], q.shape[2] // k.shape[2]
        # heads b group l dh, and heads b l dh
        q = q.view(rows, length, heads, group, dh).permute(2, 0, 3, 1, 4)
        k, v = k.permute(2, 0, 1, 3), v.permute(2, 0, 1, 3)
        q, k = self._rotated(q), self._rotated(k)
        flat = (heads * rows, -1, dh)
        own_k, own_v = k.reshape(flat), v.reshape(flat)
        if before is not None and rows == 1:  # nothing is shared: the bits of a run of the whole
            own_k = torch.cat([before.keys, own_k], dim=1)
            own_v = torch.cat([before.values, own_v], dim=1)
            before = None
        own = own_k.shape[1]
        scores = (q.reshape(flat) @ own_k.mT).view(heads, rows, group, length, own)
        if before is not None:
            far = q.reshape(heads, -1, dh) @ before.keys.mT
            scores = torch.cat([far.view(heads, rows, group, length, -1), scores], dim=-1)
        scores = scores * attn.scaling
        if attn.attn_logit_softcapping is not None:
            scores = (scores / attn.attn_logit_softcapping).tanh() * attn.attn_logit_softcapping
        scores = scores.masked_fill(self.hidden[kind], torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype)
        near = weights[..., -own:].reshape(heads * rows, -1, own)
        if before is None:
            found = near @ own_v
        else:
            far = weights[..., :-own].reshape(heads, rows * group * length, -1) @ before.values
            found = torch.baddbmm(far.view(flat), near, own_v)
        found = found.view(heads, rows, group, length, dh).permute(1, 3, 0, 2, 4)
        found = found.reshape(rows * length, -1)
        if self.places is not None:
            found = found[self.places]
        return attn.o_proj(found), (k, v)

    def _rotated(self, x: Tensor) -> Tensor:
        cos, sin = self.rotation
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin


def _hidden(positions: Tensor, start: int, window: int | None) -> Bool[Tensor, "l n"]:
    """Which of all tokens so far those at ``positions`` do not look at."""
    keys = torch.arange(start + len(positions), device=positions.device)
    distance = positions[:, None] - keys
    hidden = distance < 0
    return hidden if window is None else hidden | (distance >= window)
