"""The nodes as ComfyUI sees them: inputs, outputs, and what each calls when it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Conditioning = list[list[Any]]
CATEGORY = "sanakit"
DTYPES = ("as published", "float32", "bfloat16")
SOLVERS = (
    "the model's own",
    "flow-dpm-solver",
    "flow-dpm-solver-1",
    "flow-dpm-solver-3",
    "flow-euler",
    "flow-heun",
    "flow-unipc",
    "flow-unipc-3",
)
LARGEST_SEED = 2**63 - 1


class LoadModel:
    """A model by its name, as `sanakit generate --model` takes it."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "name": ("STRING", {"default": "glyph"}),
                "dtype": (list(DTYPES),),
            }
        }

    def load(self, name: str, dtype: str) -> tuple[Any, Any, Any]:
        from .parts import load

        return load(name, None if dtype == DTYPES[0] else dtype)


class TextEncode:
    """A prompt behind the model's own instruction, or a negative prompt without it."""

    CATEGORY = CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "clip": ("CLIP",),
                "text": ("STRING", {"multiline": True, "dynamicPrompts": True}),
                "negative": ("BOOLEAN", {"default": False}),
            }
        }

    def encode(self, clip: Any, text: str, negative: bool) -> tuple[Conditioning]:
        return (clip.encode(text, negative=negative),)


class EmptyLatent:
    """Zeros of the shape that a model draws in; the sampler turns them into noise."""

    CATEGORY = CATEGORY
    FUNCTION = "make"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"min": 32, "max": 8192, "step": 32}
        return {
            "required": {
                "vae": ("VAE",),
                "width": ("INT", {"default": 1024, **side}),
                "height": ("INT", {"default": 1024, **side}),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 64}),
            }
        }

    def make(self, vae: Any, width: int, height: int, batch_size: int) -> tuple[dict[str, Tensor]]:
        return ({"samples": vae.zeros(batch_size, height, width)},)


class Sample:
    """The solvers of sanakit over ComfyUI's guidance, so that its patches, masks, previews act."""

    CATEGORY = CATEGORY
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "seed": (
                    "INT",
                    {"default": 0, "min": 0, "max": LARGEST_SEED, "control_after_generate": True},
                ),
                "steps": ("INT", {"default": 20, "min": 1, "max": 1000}),
                "cfg": ("FLOAT", {"default": 4.5, "min": 1.0, "max": 100.0, "step": 0.1}),
                "solver": (list(SOLVERS),),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 1.0, "step": 0.01}),
            }
        }

    def sample(
        self,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: dict[str, Any],
        seed: int,
        steps: int,
        cfg: float,
        solver: str,
        denoise: float,
    ) -> tuple[dict[str, Any]]:
        from .sampling import sample

        chosen = None if solver == SOLVERS[0] else solver
        samples = sample(
            model,
            positive,
            negative,
            latent_image,
            seed=seed,
            steps=steps,
            cfg=cfg,
            solver=chosen,
            denoise=denoise,
        )
        return ({**latent_image, "samples": samples},)


class Decode:
    """Pictures of latents; where memory is short by exact tiles, as the command does."""

    CATEGORY = CATEGORY
    FUNCTION = "decode"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"samples": ("LATENT",), "vae": ("VAE",)}}

    def decode(self, samples: dict[str, Any], vae: Any) -> tuple[Tensor]:
        return (vae.decode(samples["samples"]),)


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "SanakitLoadModel": LoadModel,
    "SanakitTextEncode": TextEncode,
    "SanakitEmptyLatent": EmptyLatent,
    "SanakitSample": Sample,
    "SanakitDecode": Decode,
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    "SanakitLoadModel": "Load SANA model",
    "SanakitTextEncode": "SANA text encode",
    "SanakitEmptyLatent": "Empty SANA latent",
    "SanakitSample": "SANA sampler",
    "SanakitDecode": "SANA decode",
}
