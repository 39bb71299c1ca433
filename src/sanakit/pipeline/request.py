"""What decides pictures, as values: a request of the command, or a call of a published pipeline.

A `GenerateRequest` can be written down: it is one prompt and numbers. A `Call` also takes what can
only be held in memory: embeddings, latents, generators. `Pipeline.generate` draws both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from sanakit.errors import ConfigError, did_you_mean
from sanakit.flow.guidance import Guidance
from sanakit.flow.path import Generators, draw_noise
from sanakit.flow.projection import AdaptiveProjectedGuidance
from sanakit.models.published import say_once
from sanakit.pipeline.aspect_ratios import check_count
from sanakit.pipeline.numerics import require_finite
from sanakit.pipeline.picture_requests import ControlRequest, EditRequest
from sanakit.pipeline.prompts import MODEL_DEFAULT, Compat, EncodedText, check_compat
from sanakit.pipeline.schedulers import Scheduler, scheduler_named
from sanakit.shapes import Latent
from sanakit.untrusted import dataclass_from

if TYPE_CHECKING:
    from sanakit.pipeline.control import Control
    from sanakit.pipeline.editing import Edit

FORMER_INTERVAL = "sigma_interval"
"""What pictures drawn before it had an option call ``guidance_interval``."""
REAL = ("guidance_scale", "pag_scale", "flow_shift", "step_cache")


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateRequest:
    """One prompt and everything that decides its pictures; None means the model's own default.

    ``count`` pictures are drawn, the i-th with seed ``seed + i``: each is the picture that its seed
    draws alone. ``use_resolution_binning`` draws at the nearest size that a published model was
    trained at, and cuts to the size asked for. ``edit`` is a picture to begin with, ``control`` one
    to follow; its size is then the default.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    count: int = 1
    height: int | None = None
    width: int | None = None
    use_resolution_binning: bool = True
    num_steps: int | None = None
    guidance_scale: float | None = None
    pag_scale: float = 0.0
    pag_layers: tuple[int, ...] = (0,)
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guider: AdaptiveProjectedGuidance | None = None
    step_cache: float = 0.0
    solver: str | None = None
    flow_shift: float | None = None
    edit: EditRequest | None = None
    control: ControlRequest | None = None

    def __post_init__(self) -> None:
        for name in ("seed", "count", "num_steps"):
            value = getattr(self, name)
            if value is None and name == "num_steps":
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{name}={value!r} must be a whole number")
        if self.num_steps is not None and not 1 <= self.num_steps <= 1000:
            raise ConfigError(f"num_steps={self.num_steps} must be 1 to 1000", hint="20 is usual")
        check_count(self.count, self.seed)
        if self.solver is not None:
            scheduler_named(self.solver, 1.0)
        if self.flow_shift is not None and not self.flow_shift > 0:
            raise ConfigError(
                f"flow_shift={self.flow_shift} must be positive", hint="1 is no shift"
            )
        for name in ("height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"{name}={value} must be positive", hint="leave it out for the default"
                )
        check_step_cache(self.step_cache)
        self.guidance(1.0)

    def guidance(self, default_scale: float) -> Guidance:
        """Give the guidance as a value; ``default_scale`` stands in where none was asked for."""
        scale = default_scale if self.guidance_scale is None else self.guidance_scale
        return Guidance(
            guidance_scale=scale,
            pag_scale=self.pag_scale,
            guidance_interval=self.guidance_interval,
            guider=self.guider,
        )

    def with_digests(self) -> GenerateRequest:
        """Give the same with what its picture files are; a plain drawing reads nothing here."""
        edit, control = self.edit, self.control
        if edit is not None:
            from sanakit.pipeline import editing  # noqa: PLC0415

            edit = editing.remembered(edit)
        if control is not None:
            from sanakit.pipeline import control as controls  # noqa: PLC0415

            control = controls.remembered(control)
        return dataclasses.replace(self, edit=edit, control=control)

    def as_call(self, own: Scheduler, *, max_sequence_length: int) -> Call:
        """Give this as a call: one prompt, one generator and one batch a picture.

        Matrix products of another batch size round differently, and a seed must give the same
        picture however many were asked for. ``own`` is the model's scheduler.

        Raises:
            DataError: a file that is no picture, or not the one that it was.
        """
        scheduler = own if self.solver is None else scheduler_named(self.solver, 1.0)
        if scheduler.solver.adds_noise == own.solver.adds_noise:
            scheduler = scheduler.shifted(
                own.flow_shift if self.flow_shift is None else self.flow_shift
            )
        edit = control = None
        if self.edit is not None:
            from sanakit.pipeline.editing import read_edit  # noqa: PLC0415

            edit = read_edit(self.edit)
        if self.control is not None:
            from sanakit.pipeline.control import read_control  # noqa: PLC0415

            control = read_control(self.control)
        return Call(
            edit=edit,
            control=control,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            num_images_per_prompt=self.count,
            at_once=1,
            generator=[
                torch.Generator().manual_seed(self.seed + place) for place in range(self.count)
            ],
            height=self.height,
            width=self.width,
            use_resolution_binning=self.use_resolution_binning,
            scheduler=scheduler,
            num_inference_steps=self.num_steps,
            guidance_scale=self.guidance_scale,
            guidance_interval=self.guidance_interval,
            guider=self.guider,
            step_cache=self.step_cache,
            pag_scale=self.pag_scale,
            pag_layers=self.pag_layers,
            max_sequence_length=max_sequence_length,
        )

    def to_json(self) -> dict[str, Any]:
        """Give all fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GenerateRequest:
        """Undo :meth:`to_json`.

        Raises:
            ConfigError: for an unknown key, a missing prompt, or a value of another type or out of
                range.
        """
        if FORMER_INTERVAL in values:
            values = {**values, "guidance_interval": values[FORMER_INTERVAL]}
            del values[FORMER_INTERVAL]
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values.keys() - set(known):
            raise ConfigError(f"{key!r} is no setting of a request", hint=did_you_mean(key, known))
        if "prompt" not in values:
            raise ConfigError("a request needs a prompt", hint='an empty one is ""')
        try:
            # JSON has one kind of number.
            real: dict[str, Any] = {
                k: float(values[k]) for k in REAL if isinstance(values.get(k), int)
            }
            if (guider := values.get("guider")) is not None:
                kind = AdaptiveProjectedGuidance
                real["guider"] = dataclass_from(kind, guider, source="the settings' guider")
            if (edit := values.get("edit")) is not None:
                real["edit"] = dataclass_from(EditRequest, edit, source="the settings' edit")
            if (control := values.get("control")) is not None:
                real["control"] = dataclass_from(
                    ControlRequest, control, source="the settings' control"
                )
            return dataclass_from(cls, {**values, **real}, source="the settings")
        except (ValueError, OverflowError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"the settings: {error}") from error


Prompts = str | Sequence[str]
Callback = Callable[[Any, int, Tensor, dict[str, Tensor]], "dict[str, Tensor] | None"]
OutputType = Literal["pil", "np", "pt", "latent"]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
TENSOR_INPUTS = ("latents", "prompt_embeds", "negative_prompt_embeds")
"""What a callback may ask for and replace."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """The arguments of one call, by the names that users of diffusers know.

    Each is checked as far as it can be alone. None of ``scheduler``, ``num_inference_steps``,
    ``guidance_scale``, ``height`` and ``width`` means the model's own; ``at_once`` None draws one
    by one on a CPU, where matrix products of another batch size round differently and a batch gains
    little. ``edit`` is a picture to begin with, ``control`` one to follow; its size is then the one
    that None means.
    """

    prompt: Prompts | None
    negative_prompt: Prompts | None = ""
    num_inference_steps: int | None = None
    timesteps: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None
    guidance_scale: float | None = None
    num_images_per_prompt: int = 1
    height: int | None = None
    width: int | None = None
    eta: float = 0.0
    generator: Generators | None = None
    latents: Latent | None = None
    prompt_embeds: Tensor | None = None
    prompt_attention_mask: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    negative_prompt_attention_mask: Tensor | None = None
    output_type: OutputType = "pil"
    return_dict: bool = True
    clean_caption: bool = False
    use_resolution_binning: bool = True
    attention_kwargs: dict[str, Any] | None = None
    callback_on_step_end: Callback | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",)
    max_sequence_length: int = 300
    complex_human_instruction: Sequence[str] | None = MODEL_DEFAULT
    compat: Compat = "diffusers"
    pag_scale: float = 0.0
    pag_adaptive_scale: float = 0.0
    pag_layers: Sequence[int] = ()
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guider: AdaptiveProjectedGuidance | None = None
    step_cache: float = 0.0
    scheduler: Scheduler | None = None
    at_once: int | None = None
    edit: Edit | None = None
    control: Control | None = None

    def __post_init__(self) -> None:
        for name in ("num_images_per_prompt", "num_inference_steps"):
            value = getattr(self, name)
            if name == "num_inference_steps" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least 1")
        if self.eta != 0.0:
            raise ConfigError(
                f"eta={self.eta} does nothing: it is of DDIM, which samples none of these models",
                hint="leave eta at 0.0",
            )
        if self.output_type not in OUTPUT_TYPES:
            raise ConfigError(
                f"output_type={self.output_type!r}", hint=f"one of {', '.join(OUTPUT_TYPES)}"
            )
        check_compat(self.compat)
        check_step_cache(self.step_cache)
        if not isinstance(self.guider, AdaptiveProjectedGuidance | None):
            kind = type(self.guider)
            raise ConfigError(
                f"guider is a {kind.__module__}.{kind.__name__}",
                hint="sanakit.AdaptiveProjectedGuidance takes the same arguments",
            )
        if unknown := sorted(set(self.attention_kwargs or ()) - {"scale"}):
            raise ConfigError(
                f"attention_kwargs has {', '.join(unknown)}: nothing here reads it",
                hint="'scale' is the strength of LoRA weights",
            )
        if not isinstance(self.lora_scale, int | float | None):
            raise ConfigError(f"attention_kwargs has scale={self.lora_scale!r}: no number")
        if unknown := sorted(set(self.tensor_inputs) - set(TENSOR_INPUTS)):
            raise ConfigError(
                f"callback_on_step_end_tensor_inputs names {', '.join(unknown)}",
                hint=f"to be had: {', '.join(TENSOR_INPUTS)}",
            )

    def check_model(self, scheduler: Scheduler, *, few_steps: bool) -> None:
        """Refuse a scheduler that is not for a model, and what a model of few steps never reads.

        Raises:
            ConfigError: naming it.
        """
        if scheduler.solver.adds_noise != few_steps:
            kind = "embeds its guidance" if few_steps else "is not of few steps"
            raise ConfigError(
                f"{type(scheduler).__name__} does not sample this model, which {kind}",
                hint="SCMScheduler() does" if few_steps else "leave the scheduler out",
            )
        asked = {
            "negative_prompt": any(listed(self.negative_prompt, "negative_prompt") or []),
            "negative_prompt_embeds": self.negative_prompt_embeds is not None,
            "pag_scale": self.pag_scale != 0,
            "guidance_interval": self.guidance_interval != (0.0, 1.0),
            "guider": self.guider is not None,
            "step_cache": self.step_cache != 0,
        }
        for name, given in asked.items():
            if given and few_steps:
                raise ConfigError(
                    f"{name} does nothing here: this model was taught its guidance and few steps",
                    hint="leave it out; guidance_scale is heeded",
                )

    def tell_idle(self, *, guided: bool) -> None:
        """Say once what does nothing because nothing guides."""
        negative = any(listed(self.negative_prompt, "negative_prompt") or [])
        idle = {
            "a negative prompt": negative or self.negative_prompt_embeds is not None,
            "adaptive projected guidance": self.guider is not None,
        }
        for name, given in idle.items():
            if given and not guided:
                say_once(f"{name} does nothing at a guidance scale of 1")

    @property
    def tensor_inputs(self) -> Sequence[str]:
        """What the callback is shown; a callback object says so itself."""
        own = getattr(self.callback_on_step_end, "tensor_inputs", None)
        return self.callback_on_step_end_tensor_inputs if own is None else own

    @property
    def lora_scale(self) -> float | None:
        """Strength of LoRA weights in this call; None leaves it as it is."""
        scale: float | None = (self.attention_kwargs or {}).get("scale")
        return scale

    def guidance(self, default_scale: float) -> Guidance:
        """Give the guidance as a value; ``default_scale`` stands in where none was asked for."""
        return Guidance(
            guidance_scale=default_scale if self.guidance_scale is None else self.guidance_scale,
            pag_scale=self.pag_scale,
            pag_adaptive_scale=self.pag_adaptive_scale,
            guidance_interval=self.guidance_interval,
            guider=self.guider,
        )

    def embeddings(self, channels: int | None) -> tuple[EncodedText | None, EncodedText | None]:
        """What the caller embedded, and the negative side; None takes any number of channels."""
        text, null = self.prompt_embeds, self.negative_prompt_embeds
        return (
            _embedded(text, self.prompt_attention_mask, "prompt", channels),
            _embedded(null, self.negative_prompt_attention_mask, "negative_prompt", channels),
        )

    def noise(self, count: int, shape: tuple[int, int, int]) -> Latent:
        """Noise ``count c h w`` to start from: the caller's, or drawn.

        One generator draws all of it, a list one picture each.
        """
        if self.latents is not None:
            if tuple(self.latents.shape) != (count, *shape):
                raise ConfigError(
                    f"latents are {tuple(self.latents.shape)}, this call needs {(count, *shape)}",
                    hint="b, latent channels, height / 32, width / 32 of the size that is drawn; "
                    "use_resolution_binning=False draws the very size asked for",
                )
            return self.latents
        return draw_noise(count, shape, self.generator)

    def fresh_noise(self, count: int, shape: tuple[int, int, int]) -> FreshNoise:
        """Noise for solvers that add some in each step, of ``count`` pictures."""
        return FreshNoise(self.generator, count, shape)


class FreshNoise:
    """Noise that is drawn when a step needs it, in the order of the steps."""

    def __init__(self, generator: Generators | None, count: int, shape: tuple[int, ...]) -> None:
        self._generator, self._count, self._shape = generator, count, shape
        self._drawn: dict[int, Latent] = {}

    def at(self, step: int, rows: slice) -> Latent:
        """Noise of some of the pictures, which come batch after batch, through all steps each.

        A generator of their own gives each picture its noise; one for all gives a step's noise at
        once, and what later batches need of it is held.
        """
        generator = self._generator
        if not isinstance(generator, torch.Generator | None):
            own = generator[rows]
            return draw_noise(len(own), self._shape, own)
        if step not in self._drawn:
            self._drawn[step] = draw_noise(self._count, self._shape, generator)
        last = rows.stop >= self._count
        return (self._drawn.pop(step) if last else self._drawn[step])[rows]


def check_step_cache(threshold: float) -> None:
    """Refuse what is no threshold of a step cache."""
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not threshold >= 0:
        raise ConfigError(
            f"step_cache={threshold!r} must be a number from 0 up", hint="0.1 is usual, 0 is off"
        )


def listed(prompt: Prompts | None, name: str = "prompt") -> list[str] | None:
    """One prompt or several, as a list."""
    if prompt is None:
        return None
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(
                f"{name} holds a {type(text).__name__}", hint="a string or a list of strings"
            )
    return texts


def _embedded(
    text: Tensor | None, mask: Tensor | None, prefix: str, channels: int | None
) -> EncodedText | None:
    """Embeddings that the caller made, with their mask; ``prefix`` begins both arguments' names."""
    if text is None and mask is None:
        return None
    if text is None or mask is None:
        raise ConfigError(f"{prefix}_embeds and {prefix}_attention_mask come together")
    if text.ndim != 3 or mask.shape != text.shape[:2]:
        raise ConfigError(
            f"{prefix}_embeds are {tuple(text.shape)}, their mask {tuple(mask.shape)}",
            hint="embeddings are (b, tokens, channels), the mask (b, tokens)",
        )
    if channels is not None and text.shape[2] != channels:
        raise ConfigError(
            f"{prefix}_embeds have {text.shape[2]} channels, the transformer takes {channels}",
            hint="make them with this model's encode_prompt",
        )
    require_finite(text, f"{prefix}_embeds")
    return EncodedText(text=text, mask=mask.bool(), dropped=(0,) * len(text))
