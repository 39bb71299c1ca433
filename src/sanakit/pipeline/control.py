"""Drawing that follows a control image: edges, a scribble, a depth map.

`Pipeline.generate` is handed a `Control`. Its image is encoded once; from then on the denoiser has
a `Steering`, which it asks in every pass for what to do with the tokens after each block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import cast

from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.images.files import digest_of, read_image
from sanakit.models.controlnet import ControlBranch
from sanakit.models.parts import first_weight, steers_as_built
from sanakit.models.transformer import DIFFUSERS_FIRST, PreparedText, Residuals, Steer
from sanakit.pipeline.components import Components
from sanakit.pipeline.control_images import control_image
from sanakit.pipeline.editing import covering, each_picture, on_canvas
from sanakit.pipeline.input_images import of_pil
from sanakit.pipeline.numerics import safer_copy
from sanakit.pipeline.picture_requests import ControlRequest
from sanakit.shapes import Image, Latent, PerSample, Text, TextMask
from sanakit.untrusted import shown

USUAL_SCALE, LARGEST_SCALE = 1.0, 1e6


def check_scale(scale: object) -> None:
    """Refuse a strength of the control that is no finite number from 0."""
    real = isinstance(scale, Real) and not isinstance(scale, bool)
    if not real or not 0 <= cast(float, scale) < LARGEST_SCALE:
        raise ConfigError(
            f"controlnet_conditioning_scale={shown(scale)} must be a number from 0 to 1e6",
            hint="1 is usual; 0 draws without the control",
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Control:
    """A control image, ``b 3 H W`` in [-1, 1]: one for all pictures, or one for each prompt."""

    image: Image
    scale: float = USUAL_SCALE

    def __post_init__(self) -> None:
        check_scale(self.scale)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image, and of what is drawn by it."""
        height, width = self.image.shape[-2:]
        return height, width

    @staticmethod
    def branch_of(components: Components) -> ControlBranch:
        """Give the branch that steers a model.

        Raises:
            ConfigError: there is none.
        """
        if components.controlnet is None:
            raise ConfigError(
                "a control image needs a control branch, and this model has none",
                hint="SanaControlNetPipeline.from_pretrained(..., controlnet=...), or --controlnet",
            )
        return components.controlnet

    def at(self, height: int, width: int) -> Control:
        """Give the same at another size: scaled to cover it, the centre cut out."""
        if (height, width) == self.size:
            return self
        return replace(self, image=covering(self.image, height, width))

    def steering(
        self,
        branch: ControlBranch,
        encode: Callable[[Image], Latent],
        size: tuple[int, int],
        count: int,
    ) -> Steering:
        """Give what steers ``count`` pictures that are drawn at a size.

        ``encode`` gives scaled latents of pictures.

        Raises:
            ConfigError: images that are neither one nor one for each prompt.
        """
        latent = each_picture(encode(on_canvas(self.image, *size)), count, "control_image")
        return Steering(branch=branch, latent=latent, scale=float(self.scale))


def remembered(request: ControlRequest) -> ControlRequest:
    """Give the same request with the digest of its file."""
    return replace(request, image_sha256=request.image_sha256 or digest_of(request.image))


def read_control(request: ControlRequest) -> Control:
    """Read the file of a request and make a control image of it.

    Raises:
        DataError: it is no picture, or not the one that it was. ConfigError: a kind that is not
            made here, a scale that is none.
    """
    check_scale(request.scale)
    picture = read_image(request.image, digest=request.image_sha256)
    return Control(image=of_pil(control_image(picture, request.kind)), scale=request.scale)


@dataclass(frozen=True, kw_only=True, eq=False)
class Steering:
    """A control branch and the encoded control of each picture, ``b c h w``.

    ``text`` is what the branch made of the texts of a run; one that a user wrapped or patched is
    called as published instead, with the text itself.
    """

    branch: ControlBranch
    latent: Latent
    scale: float
    text: PreparedText | Text | None = None

    def rows(self, rows: slice) -> Steering:
        """Give that of some of the pictures."""
        return replace(self, latent=self.latent[rows])

    def reading(self, text: Text) -> Steering:
        """Give the same with the texts of a run."""
        near = text.to(first_weight(self.branch))
        ours = steers_as_built(self.branch)
        if not ours and self.branch.config.wiring != "diffusers":
            raise ConfigError(
                "the control branch is wrapped, hooked or compiled, and is wired as the original: "
                "what is called then is not its forward",
                hint="hook or wrap its transformer_blocks; compile_repeated_blocks() compiles them",
            )
        return replace(self, text=self.branch.prepare_text(near) if ours else near)

    def safer(self, where: str) -> Steering:
        """Give the same by a branch in a safer dtype; its texts are to be read again."""
        return replace(self, branch=safer_copy(self.branch, "controlnet", where), text=None)

    def steer(self, x: Latent, timestep: PerSample, rows: Tensor | None, mask: TextMask) -> Steer:
        """Give what acts on the tokens of one pass.

        ``rows`` are those of the texts that the pass reads, None all; ``x`` has one for each.
        """
        weight, text = first_weight(self.branch), self.text
        assert text is not None
        if rows is not None:
            text = text.rows(rows) if isinstance(text, PreparedText) else text[rows]
        latent = self.latent.repeat(len(x) // len(self.latent), 1, 1, 1).to(weight)
        x = x.to(weight)
        if isinstance(text, PreparedText):
            return self.branch.steering(
                x, timestep, text, mask, latent, conditioning_scale=self.scale
            )
        (residuals,) = self.branch(
            x,
            encoder_hidden_states=text,
            encoder_attention_mask=mask.long(),
            timestep=timestep,
            controlnet_cond=latent,
            conditioning_scale=self.scale,
            return_dict=False,
        )
        return Residuals(residuals, first=DIFFUSERS_FIRST)
