"""Every tensor shape of the package, named once.

b    batch              n  image tokens, n = h * w      heads  attention heads
c    latent channels    l  text tokens                  dh     width of one head
h w  latent grid        d  model width, d = heads * dh  H W    pixel grid
"""

from __future__ import annotations

from typing import TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor

Image: TypeAlias = Float[Tensor, "b 3 H W"]  # range [-1, 1]
PixelMask: TypeAlias = Float[Tensor, "b 1 H W"]  # 1 where a picture is drawn anew, 0 where it stays
Latent: TypeAlias = Float[Tensor, "b c h w"]  # scaled to about unit variance
Map: TypeAlias = Float[Tensor, "b d h w"]  # features on a grid
AnyMap: TypeAlias = Float[Tensor, "b _ _ _"]  # the same batch on another grid or width
Tokens: TypeAlias = Float[Tensor, "b n d"]
Heads: TypeAlias = Float[Tensor, "b heads n dh"]
Text: TypeAlias = Float[Tensor, "b l d"]
TokenIds: TypeAlias = Int[Tensor, "b l"]
TextMask: TypeAlias = Bool[Tensor, "b l"]  # True where a token is real, False on padding
PerSample: TypeAlias = Float[Tensor, " b"]
Mix: TypeAlias = Bool[Tensor, " b"]  # False: this row's attention is the identity
Grid: TypeAlias = tuple[int, int]  # (h, w)
