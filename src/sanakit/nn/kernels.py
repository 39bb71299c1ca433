"""Triton kernels of the three functions of a block that read and write far more than they compute.

Each reads its input once where the plain functions pass it through memory several times. Sums are
fp32. `sanakit.nn.gpu` says when they run; this file is read only then, for it needs triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from sanakit.nn.ways import untouched
from sanakit.shapes import Heads, Map, Tokens

REAL = (torch.float32, torch.float16, torch.bfloat16)
HEAD_WIDTHS = (16, 32, 64, 128)
"""Powers of two: sides of the tiles that products are made of."""
TOKENS, PER_PART = 64, 1024
"""Tokens that a program reads at once, and in all; sums of parts are added in one order."""
WIDEST = 16384
"""Most channels of a token that one program holds."""


@triton.jit
def _summarise(
    k: tl.tensor,
    v: tl.tensor,
    summary: tl.tensor,
    keys: tl.tensor,
    n: tl.tensor,
    heads: tl.tensor,
    kb: tl.tensor,
    kh: tl.tensor,
    kn: tl.tensor,
    vb: tl.tensor,
    vh: tl.tensor,
    vn: tl.tensor,
    DH: tl.constexpr,
    TOKENS: tl.constexpr,
    PER_PART: tl.constexpr,
) -> None:
    """Sums over some tokens of relu(k) v^T and relu(k), of one head."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k += row // heads * kb + row % heads * kh
    v += row // heads * vb + row % heads * vh
    d = tl.arange(0, DH)
    products = tl.zeros((DH, DH), dtype=tl.float32)
    mass = tl.zeros((DH,), dtype=tl.float32)
    for start in range(0, PER_PART, TOKENS):
        token = part * PER_PART + start + tl.arange(0, TOKENS)
        there = (token < n)[:, None]
        ks = tl.load(k + token[:, None] * kn + d[None, :], mask=there, other=0.0)
        vs = tl.load(v + token[:, None] * vn + d[None, :], mask=there, other=0.0)
        ks = tl.maximum(ks.to(tl.float32), 0.0)
        products += tl.dot(tl.trans(ks), vs.to(tl.float32), input_precision="ieee")
        mass += tl.sum(ks, axis=0)
    place = row * tl.num_programs(1) + part
    tl.store(summary + place * DH * DH + d[:, None] * DH + d[None, :], products)
    tl.store(keys + place * DH + d, mass)


@triton.jit
def _read(
    q: tl.tensor,
    summary: tl.tensor,
    keys: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    heads: tl.tensor,
    qb: tl.tensor,
    qh: tl.tensor,
    qn: tl.tensor,
    ob: tl.tensor,
    oh: tl.tensor,
    on: tl.tensor,
    eps: tl.tensor,
    DH: tl.constexpr,
    TOKENS: tl.constexpr,
) -> None:
    """What some tokens of one head read of its sums."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    d = tl.arange(0, DH)
    there = (token < n)[:, None]
    q += row // heads * qb + row % heads * qh
    out += row // heads * ob + row % heads * oh
    qs = tl.load(q + token[:, None] * qn + d[None, :], mask=there, other=0.0)
    qs = tl.maximum(qs.to(tl.float32), 0.0)
    products = tl.load(summary + row * DH * DH + d[:, None] * DH + d[None, :])
    mass = tl.sum(qs * tl.load(keys + row * DH + d)[None, :], axis=1)
    y = tl.dot(qs, products, input_precision="ieee") / (mass + eps)[:, None]
    tl.store(out + token[:, None] * on + d[None, :], y.to(out.dtype.element_ty), mask=there)


def relu_linear_attention(
    q: Heads, k: Heads, v: Heads, *, eps: float = 1e-15, total: object | None = None
) -> Heads | None:
    """The twin's sums of all tokens, for heads whose width is a power of two."""
    batch, heads, n, dh = v.shape
    alike = q.shape == k.shape == v.shape and {q.dtype, k.dtype, v.dtype} <= {*REAL}
    if total is not None or not alike or dh not in HEAD_WIDTHS or not v.numel():
        return None
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    rows, parts = batch * heads, triton.cdiv(n, PER_PART)
    summary = q.new_empty(rows, parts, dh, dh, dtype=torch.float32)
    keys = q.new_empty(rows, parts, dh, dtype=torch.float32)
    _summarise[rows, parts](
        *(k, v, summary, keys, n, heads),
        *(k.stride()[:3] + v.stride()[:3]),
        DH=dh,
        TOKENS=TOKENS,
        PER_PART=PER_PART,
    )
    # As tokens lie in memory, so that what follows reads rows of all heads.
    out = v.new_empty(batch, n, heads, dh).transpose(1, 2)
    _read[rows, triton.cdiv(n, TOKENS)](
        *(q, summary.sum(dim=1), keys.sum(dim=1), out, n, heads),
        *(q.stride()[:3] + out.stride()[:3]),
        eps,
        DH=dh,
        TOKENS=TOKENS,
    )
    return out


@triton.jit
def _modulated_norm(
    x: tl.tensor,
    shift: tl.tensor,
    scale: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    width: tl.tensor,
    shift_row: tl.tensor,
    scale_row: tl.tensor,
    eps: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One token: less its mean, over its deviation, scaled and shifted."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    there = d < width
    value = tl.load(x + row * width + d, mask=there, other=0.0).to(tl.float32)
    centred = tl.where(there, value - tl.sum(value, axis=0) / width, 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, axis=0) / width + eps)
    gain = tl.load(scale + row // tokens * scale_row + d, mask=there, other=0.0).to(tl.float32)
    bias = tl.load(shift + row // tokens * shift_row + d, mask=there, other=0.0).to(tl.float32)
    y = centred / deviation * (1.0 + gain) + bias
    tl.store(out + row * width + d, y.to(out.dtype.element_ty), mask=there)


def modulated_norm(x: Tokens, norm: nn.Module, shift: Tensor, scale: Tensor) -> Tokens | None:
    """`sanakit.nn.norm.modulated_norm` behind a plain layer norm without weights of its own."""
    plain = isinstance(norm, nn.LayerNorm) and untouched(norm, nn.LayerNorm)
    if not plain or norm.elementwise_affine or norm.normalized_shape != (x.shape[-1],):
        return None
    rows = (x.shape[0], 1, x.shape[2])
    known = x.dtype in REAL and shift.dtype == scale.dtype == x.dtype
    if not known or shift.shape != rows or scale.shape != rows or rows[2] > WIDEST or not len(x):
        return None
    x = x.contiguous()
    shift, scale = (row if row.stride(2) == 1 else row.contiguous() for row in (shift, scale))
    out = torch.empty_like(x)
    _modulated_norm[x.shape[0] * x.shape[1],](
        *(x, shift, scale, out, x.shape[1], x.shape[2], shift.stride(0), scale.stride(0)),
        norm.eps,
        BLOCK=triton.next_power_of_2(x.shape[2]),
    )
    return out


@triton.jit
def _depthwise_gate(
    hidden: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    channels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    hb: tl.tensor,
    hc: tl.tensor,
    hy: tl.tensor,
    hx: tl.tensor,
    ob: tl.tensor,
    oc: tl.tensor,
    oy: tl.tensor,
    ox: tl.tensor,
    PLACES: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """Some places of some channels: both halves convolved, the second gates the first."""
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.program_id(2).to(tl.int64)
    y, x, known = place // width, place % width, c < channels
    value = tl.zeros((PLACES, CHANNELS), dtype=tl.float32)
    gate = tl.zeros((PLACES, CHANNELS), dtype=tl.float32)
    value += tl.load(bias + c, mask=known, other=0.0).to(tl.float32)[None, :]
    gate += tl.load(bias + channels + c, mask=known, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(9):
        down, right = y + tap // 3 - 1, x + tap % 3 - 1
        inside = (down >= 0) & (down < height) & (right >= 0) & (right < width)
        there = inside[:, None] & known[None, :]
        at = hidden + row * hb + (down * hy + right * hx)[:, None]
        one = tl.load(at + c[None, :] * hc, mask=there, other=0.0).to(tl.float32)
        two = tl.load(at + (channels + c)[None, :] * hc, mask=there, other=0.0).to(tl.float32)
        of_one = tl.load(weight + c * 9 + tap, mask=known, other=0.0).to(tl.float32)
        of_two = tl.load(weight + (channels + c) * 9 + tap, mask=known, other=0.0).to(tl.float32)
        value += one / (1.0 + tl.exp(-one)) * of_one[None, :]
        gate += two / (1.0 + tl.exp(-two)) * of_two[None, :]
    gated = value * gate / (1.0 + tl.exp(-gate))
    at = out + row * ob + (y * oy + x * ox)[:, None] + c[None, :] * oc
    there = (place < height * width)[:, None] & known[None, :]
    tl.store(at, gated.to(out.dtype.element_ty), mask=there)


def depthwise_gate(hidden: Map, convolution: nn.Module) -> Map | None:
    """`sanakit.nn.mix_ffn.depthwise_gate` of a plain 3x3 convolution, channel by channel."""
    if not isinstance(convolution, nn.Conv2d) or not untouched(convolution, nn.Conv2d):
        return None
    weight, bias = convolution.weight, convolution.bias
    batch, wide, height, width = hidden.shape
    settings = (convolution.padding, convolution.stride, convolution.dilation)
    known = settings == ((1, 1),) * 3 and weight.shape == (wide, 1, 3, 3) and bias is not None
    if not known or bias is None or hidden.dtype not in REAL or not hidden.numel():
        return None
    alike = (
        (weight.device, weight.dtype) == (hidden.device, hidden.dtype) == (bias.device, bias.dtype)
    )
    if not alike or convolution.padding_mode != "zeros":
        return None
    last = hidden.stride(1) == 1
    layout = torch.channels_last if last else torch.contiguous_format
    out = hidden.new_empty(batch, wide // 2, height, width).contiguous(memory_format=layout)
    # Neighbours in memory are read together.
    places, channels = (16, 64) if last else (256, 4)
    grid = triton.cdiv(height * width, places), triton.cdiv(wide // 2, channels), batch
    _depthwise_gate[grid](
        *(hidden, weight.contiguous(), bias, out, wide // 2, height, width),
        *(hidden.stride() + out.stride()),
        PLACES=places,
        CHANNELS=channels,
    )
    return out
