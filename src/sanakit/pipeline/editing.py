"""Drawing that begins at a picture: how far from it (strength), where (mask), and onto how much.

`Pipeline.generate` is handed an `Edit`. Of its grid the first steps are left out, the state to
begin with is the picture's latent mixed with noise at the level that is left, and where a mask
keeps the picture its own latent comes back after every step, at that step's level of noise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor
from torch.nn import functional as F

from sanakit.errors import ConfigError
from sanakit.flow.grids import Leg, SigmaGrid
from sanakit.flow.solvers import Past, SolverStep, Stepped, Velocity
from sanakit.images.files import LIMITS, digest_of, read_image
from sanakit.pipeline.aspect_ratios import check_canvas
from sanakit.pipeline.input_images import BLACK, as_mask, of_pil
from sanakit.pipeline.picture_requests import EditRequest, Expand
from sanakit.pipeline.pixels import Pixels, cover, from_pixels, to_pixels
from sanakit.shapes import Image, Latent, PixelMask
from sanakit.untrusted import fits, shown

IMAGE_STRENGTH = 0.6
MASK_STRENGTH = 1.0
ENLARGED = 2
"""Pixels of a picture over those that are drawn, beyond which it is said."""
FEATHER = 8
"""Pixels inside of a mask's edge over which the new picture comes in."""


def check_strength(strength: object) -> None:
    """Refuse a strength that is not in (0, 1]."""
    if isinstance(strength, bool) or not isinstance(strength, Real) or not 0 < float(strength) <= 1:
        raise ConfigError(
            f"strength={shown(strength)} must be above 0, up to 1",
            hint="0.6 is usual; 1 begins with pure noise",
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """A picture to begin with, ``b 3 H W`` in [-1, 1]: one for all prompts, or one for each.

    ``strength`` in (0, 1] is the part of the steps that runs; at 1 the beginning is pure noise.
    ``mask`` is 1 where the picture is drawn anew; elsewhere it comes back bit for bit.
    """

    image: Image
    mask: PixelMask | None = None
    strength: float = IMAGE_STRENGTH

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if self.mask is not None and self.mask.shape[-2:] != self.image.shape[-2:]:
            raise ConfigError("image and mask differ in size", hint="as_mask makes one of a size")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture, and of what comes of it."""
        height, width = self.image.shape[-2:]
        return height, width

    def at(self, height: int, width: int) -> Edit:
        """Give the same at another size: scaled to cover it, the centre cut out."""
        if (height, width) == self.size:
            return self
        mask = self.mask
        if mask is not None:
            mask = (covering(mask, height, width) > 0).float()
        return replace(self, image=covering(self.image, height, width), mask=mask)

    def expanded(self, expand: Expand) -> Edit:
        """Give a canvas that is larger at its sides; what was added is the mask, too.

        Until it is drawn, it holds the pixels of the edge.
        """
        if not fits(expand, Expand) or min(expand) < 0:
            raise ConfigError(
                f"expand={shown(expand)} must be four whole numbers of pixels from 0",
                hint="left, top, right, bottom: (0, 0, 128, 0)",
            )
        left, top, right, bottom = expand
        around = (left, right, top, bottom)
        height, width = self.size[0] + top + bottom, self.size[1] + left + right
        check_canvas(f"expand={expand}", height, width, LIMITS.max_pixels)
        mask = torch.zeros_like(self.image[:, :1]) if self.mask is None else self.mask
        return replace(
            self,
            image=F.pad(self.image, around, mode="replicate"),
            mask=F.pad(mask, around, value=1.0),
        )

    def grid(self, grid: SigmaGrid) -> SigmaGrid:
        """Give the levels that are left of a grid."""
        return grid.cut(self.strength)

    def begin(
        self,
        encode: Callable[[Image], Latent],
        size: tuple[int, int],
        noise: Latent,
        grid: SigmaGrid,
    ) -> Beginning:
        """Give what the steps of a grid begin with; ``encode`` gives scaled latents of pictures.

        ``size`` is the one that is drawn at, ``noise`` has one row for each picture to be drawn,
        ``grid`` is what :meth:`grid` left.
        """
        height, width = self.size
        if height * width > ENLARGED * size[0] * size[1]:
            warnings.warn(
                f"the picture is {width} x {height} and is drawn at {size[1]} x {size[0]}: what is "
                "drawn anew is enlarged",
                stacklevel=2,
            )
        pure, free = self.strength == 1.0, None
        if self.mask is not None:
            cell = size[0] // noise.shape[-2]
            # Every position of the latent that the mask touches is drawn anew.
            if not self.mask.amax((1, 2, 3)).all():
                warnings.warn(
                    "the mask is black everywhere: what it keeps, the whole picture, comes back "
                    "as it was; white is 1.0, or 255 of uint8",
                    stacklevel=2,
                )
            free = F.max_pool2d((on_canvas(self.mask, *size) > 0).float(), cell)
            free = each_picture(free, len(noise), "mask_image").to(noise.device)
        latent = noise
        if not pure or free is not None:
            latent = encode(on_canvas(self.image, *size))
            latent = each_picture(latent, len(noise), "image").to(noise.device)
        return Beginning(latent=latent, noise=noise, free=free, grid=grid, pure=pure)

    def pasted(self, drawn: Image, rows: slice, count: int) -> Image:
        """Give drawn pictures with the kept part of the picture in its place, bit for bit.

        ``rows`` of ``count`` pictures were drawn. The new part comes in over a few pixels inside
        of the mask's edge.
        """
        if self.mask is None:
            return drawn
        alpha = each_picture(feathered(self.mask), count, "mask_image")[rows]
        return torch.lerp(
            each_picture(self.image, count, "image")[rows], drawn.cpu().float(), alpha
        )

    def pasted_pixels(self, drawn: Pixels, rows: slice, count: int) -> Pixels:
        """The same of ``b H W 3`` uint8."""
        if self.mask is None:
            return drawn
        return to_pixels(self.pasted(from_pixels(drawn), rows, count))


def remembered(request: EditRequest) -> EditRequest:
    """Give the same request with the digests of its files and the strength that it means."""
    strength, mask = request.strength, request.mask
    if strength is None:
        partial = mask is not None or any(request.expand)
        strength = MASK_STRENGTH if partial else IMAGE_STRENGTH
    return replace(
        request,
        image_sha256=request.image_sha256 or digest_of(request.image),
        mask_sha256=request.mask_sha256 or (None if mask is None else digest_of(mask)),
        strength=strength,
    )


def read_edit(request: EditRequest) -> Edit:
    """Read the files of a request.

    Raises:
        DataError: one of them is no picture, or not the one that it was. ConfigError: a mask of
            other proportions, a strength or sides that are none.
    """
    request = remembered(request)
    image = of_pil(read_image(request.image, digest=request.image_sha256))
    mask = None
    if request.mask is not None:
        picture = read_image(request.mask, digest=request.mask_sha256, over=BLACK)
        mask = as_mask(picture, (image.shape[-2], image.shape[-1]), "the mask")
    assert request.strength is not None
    edit = Edit(image=image, mask=mask, strength=request.strength)
    return edit.expanded(request.expand) if any(request.expand) else edit


@dataclass(frozen=True, kw_only=True, eq=False)
class Beginning:
    """The latents of what is edited, their noise, and the levels that the steps go through."""

    latent: Latent
    noise: Latent
    free: Tensor | None  # b 1 h w, 1 where the latent is drawn anew
    grid: SigmaGrid
    pure: bool

    def state(self, rows: slice) -> Latent:
        """Give the state to begin with: on the path, as far out as the grid begins."""
        if self.pure:
            return self.noise[rows]
        return self.grid.mixed(0, self.latent[rows], self.noise[rows])

    def step(self, step: SolverStep, rows: slice) -> SolverStep:
        """Give a solver's step after which the kept part is back at its place on the path.

        It is part of the step, not a change after it: the next one goes on from it as its own. What
        solvers keep from past steps are estimates of the clean latent, position by position, so
        the free part never sees what was put back but through the network.
        """
        if self.free is None:
            return step
        latent, noise, free = self.latent[rows], self.noise[rows], self.free[rows]

        def blended(ask: Velocity, x: Latent, leg: Leg, past: Past) -> Stepped:
            stepped = step(ask, x, leg, past)
            kept = self.grid.mixed(leg.position + 1, latent, noise).to(stepped.x)
            return stepped._replace(x=torch.where(free.to(kept.device) > 0, stepped.x, kept))

        return blended


def on_canvas(image: Tensor, height: int, width: int) -> Tensor:
    """Put pictures where `cut_to` will find them again on a canvas of a size; the inverse of it.

    What it cuts away holds the pixels of the edge.
    """
    own_height, own_width = image.shape[-2:]
    if (own_height, own_width) == (height, width):
        return image
    high, wide, top, left = cover((height, width), (own_height, own_width))
    around = (left, wide - own_width - left, top, high - own_height - top)
    return _scaled(F.pad(image, around, mode="replicate"), height, width)


def feathered(mask: PixelMask) -> PixelMask:
    """How much of the new picture there is at each pixel: none outside of a mask, all deep inside.

    It rises over `FEATHER` pixels, or over half of a narrower mask.
    """
    inside, depth, steps = mask, torch.zeros_like(mask), 0
    while steps < FEATHER and bool(inside.any()):
        depth, steps = depth + inside, steps + 1
        inside = 1 - F.max_pool2d(1 - inside, 3, stride=1, padding=1)
    return depth / max(steps, 1)


def covering(image: Tensor, height: int, width: int) -> Tensor:
    """Scale pictures to cover a size, and cut the centre out."""
    own_height, own_width = image.shape[-2:]
    high, wide, top, left = cover((own_height, own_width), (height, width))
    return _scaled(image, high, wide)[:, :, top : top + height, left : left + width]


def _scaled(image: Tensor, height: int, width: int) -> Tensor:
    size = (height, width)
    if image.shape[1] == 1:  # a mask spreads to every pixel that it touches, and to no other
        return F.interpolate(image, size=size, mode="bilinear", antialias=True)
    return F.interpolate(image, size=size, mode="bicubic", antialias=True).clamp(-1, 1)


def each_picture(rows: Tensor, count: int, name: str) -> Tensor:
    """One row for each of ``count`` pictures; several stand for as many pictures in a row each."""
    if count % len(rows):
        raise ConfigError(
            f"{len(rows)} of {name} for {count} pictures", hint="one, or one for each prompt"
        )
    return rows.repeat_interleave(count // len(rows), dim=0)
