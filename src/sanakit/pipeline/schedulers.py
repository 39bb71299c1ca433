"""Schedulers under the ecosystem's names: frozen settings, each naming a solver and its grid.

What ``scheduler_config.json`` of a published folder says is honoured or refused, never ignored.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn, TypeVar

import torch
from torch import Tensor

from sanakit.errors import ConfigError, did_you_mean, refuse_unknown
from sanakit.files import expanded, read_json, write_json
from sanakit.flow.grids import (
    TRAIN_STEPS,
    SigmaGrid,
    flow_dpm_sigmas,
    flow_euler_sigmas,
    flow_unipc_sigmas,
    shift_sigmas,
    timesteps_given,
)
from sanakit.flow.path import Generators, draw_noise
from sanakit.flow.scm import (
    MAX_TIME,
    SECOND_TIME,
    SIGMA_DATA,
    ArcGrid,
    ArcWalk,
    arc_grid,
    on_arc,
    scm_grid,
    scm_grid_asked,
    scm_step,
)
from sanakit.flow.solvers import Solver, dpmpp_step, euler_step, heun_step, unipc_step
from sanakit.flow.walk import Walk
from sanakit.models.outputs import SchedulerOutput, SCMSchedulerOutput
from sanakit.pipeline.scheduler_settings import (
    FLOW_SHIFTS,
    NO_NOISE,
    REFUSED,
    SchedulerConfig,
    positive,
    settings_for,
)
from sanakit.shapes import Latent
from sanakit.weights.lockfile import asking
from sanakit.weights.resolve import resolve_model

CONFIG = "scheduler_config.json"
INSTEAD = {
    "set_shift": "pipe.scheduler = pipe.scheduler.shifted(5.0)",
    "register_to_config": "type(scheduler).from_config(scheduler.config, flow_shift=5.0)",
    "alphas_cumprod": "scheduler.sigmas: levels are those of a flow",
    "betas": "scheduler.sigmas: levels are those of a flow",
    "set_begin_index": "nothing: step finds the timestep that it is given",
}
S = TypeVar("S", bound="Scheduler")


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """Settings that all schedulers share; a subclass says which solver they mean.

    Raises:
        ConfigError: for a setting that cannot be honoured, saying why.
    """

    num_train_timesteps: int = TRAIN_STEPS

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in REFUSED and value != field.default:
                self._refuse(field.name, REFUSED[field.name], f"leave it at {field.default!r}")
            if field.name in FLOW_SHIFTS and not positive(value):
                self._refuse(field.name, "it must be a positive number", "1 is no shift")
            if field.name == "solver_order" and (value not in (1, 2, 3) or value is True):
                self._refuse("solver_order", "orders are 1, 2 and 3", "2 is usual with guidance")

    init_noise_sigma: ClassVar[float] = 1.0
    usual_steps: ClassVar[int] = 20

    @property
    def latent_unit(self) -> float:
        """What published callbacks see states multiplied by."""
        return 1.0

    @property
    def solver(self) -> Solver:
        """The step, and the grid it is published with."""
        raise NotImplementedError

    @property
    def flow_shift(self) -> float:
        """How far levels are moved towards noise, under whichever published name."""
        raise NotImplementedError

    def grid(self, num_steps: int) -> SigmaGrid:
        """Give the levels of a run.

        Raises:
            ConfigError: for no steps, or too many.
        """
        return self.solver.grid(num_steps, self.flow_shift)

    def custom_grid(
        self, timesteps: Sequence[float] | None = None, sigmas: Sequence[float] | None = None
    ) -> SigmaGrid:
        """Give a grid of the caller's own; both run from noise to data, the closing 0 is added.

        ``sigmas`` are shifted as the scheduler's own levels are. ``timesteps`` are what the network
        is told, and nothing moves them.

        Raises:
            ConfigError: for both or none, or values that do not fall.
        """
        if (timesteps is None) == (sigmas is None):
            given = "neither" if sigmas is None else "both"
            raise ConfigError(f"timesteps and sigmas: {given} given", hint="pass one of them")
        if sigmas is not None:
            return self.solver.grid_through(sigmas, self.flow_shift)
        assert timesteps is not None
        return timesteps_given(timesteps)

    @property
    def solver_name(self) -> str | None:
        """Its name among the options of ``solver``; None where settings differ from all of them."""
        alike = (name for name, known in NAMED.items() if type(known) is type(self))
        names = (name for name in alike if NAMED[name].shifted(self.flow_shift) == self)
        return next(names, None)

    @property
    def config(self) -> SchedulerConfig:
        """All settings, and the class in ``_class_name``."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return SchedulerConfig({"_class_name": type(self).__name__} | values)

    def shifted(self: S, flow_shift: float) -> S:
        """Give the same scheduler with another flow shift.

        Raises:
            ConfigError: for a shift that is not positive.
        """
        if flow_shift == self.flow_shift:
            return self
        return self.from_config(self.config, flow_shift=flow_shift)

    @classmethod
    def from_config(cls: type[S], config: Mapping[str, Any], **changes: Any) -> S:
        """Build from the settings of any scheduler, ours or the ecosystem's, with ``changes``.

        What both classes know is carried over, the shift under its other name too. A setting that
        only the other class has stays behind.

        Raises:
            ConfigError: an unknown setting, naming the nearest; one that cannot be honoured.
        """
        own = {field.name for field in fields(cls)}
        return cls(**settings_for(cls.__name__, own, config, changes))

    @classmethod
    def from_pretrained(
        cls: type[S],
        folder: str | Path,
        subfolder: str | None = "scheduler",
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **changes: Any,
    ) -> S:
        """Read a model's ``scheduler_config.json``; what it says of another class is carried over.

        ``changes`` are as for :meth:`from_config`, all else as for :meth:`load_config`.
        """
        config = cls.load_config(
            folder,
            subfolder,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        return cls.from_config(config, **changes)

    @classmethod
    @refuse_unknown
    def load_config(
        cls,
        folder: str | Path,
        subfolder: str | None = "scheduler",
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> dict[str, Any]:
        """Read what a model's ``scheduler_config.json`` says.

        Args:
            folder: a folder that holds the file, or a model: an embedded name, a folder, or
                ``owner/name``.
            subfolder: where the file lies in a model.
            revision: of a hub repository.
            cache_dir: in the place of the Hugging Face cache.
            token: of the hub.
            force_download: fetch again what is damaged.
            local_files_only: fail rather than download.

        Raises:
            MissingModelError: no such folder or file. ConfigError: it is no JSON object.
        """
        inside = Path(subfolder or "") / CONFIG
        places = [expanded(folder) / name for name in (inside, CONFIG)]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            with asking(cache_dir=cache_dir, token=token, force_download=force_download):
                path = resolve_model(folder, revision=revision, offline=local_files_only) / inside
        return read_json(path)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``scheduler_config.json`` as the ecosystem reads it."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        write_json(target / CONFIG, dict(self.config))

    save_config = save_pretrained

    def __getattr__(self, name: str) -> NoReturn:
        """Say what to write in the place of a published method that changes settings."""
        instead = INSTEAD.get(name)
        raise AttributeError(
            f"{type(self).__name__!r} object has no attribute {name!r}"
            + (f"; write {instead}" if instead else "")
        )

    @refuse_unknown
    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[float] | None = None,
        mu: None = None,
    ) -> None:
        """Begin a run by hand: so many steps, or through the caller's own levels.

        Raises:
            ConfigError: as `grid` and `custom_grid`; for ``mu``, a shift by the picture's size.
        """
        if mu is not None:
            raise ConfigError(f"mu={mu}: the shift is a number of the model", hint="leave it out")
        if sigmas is not None or timesteps is not None:
            grid = self.custom_grid(timesteps, sigmas)
        elif num_inference_steps is None:
            raise ConfigError("set_timesteps needs num_inference_steps, sigmas or timesteps")
        else:
            grid = self.grid(num_inference_steps)
        vars(self)["_walk"] = self._walk_over(grid, device)

    def along(self: S, grid: SigmaGrid) -> S:
        """Give the same scheduler at the begin of a run over a grid of its own."""
        begun = copy(self)
        vars(begun)["_walk"] = begun._walk_over(grid, None)
        return begun

    def _walk_over(self, grid: SigmaGrid, device: str | torch.device | None) -> Any:
        return Walk(self.solver.step, grid, device)

    @property
    def compatibles(self) -> list[type[Scheduler]]:
        """The classes that can be made of these settings: all that sample the same models."""
        noisy = self.solver.adds_noise
        return [kind for kind in CLASSES.values() if kind().solver.adds_noise == noisy]

    def __len__(self) -> int:
        return self.num_train_timesteps

    @property
    def timesteps(self) -> Tensor:
        """What the network is told, one for each velocity; before `set_timesteps` all of 1000."""
        walk: Walk | None = vars(self).get("_walk")
        return TRAIN_STEPS * self._all_sigmas() if walk is None else walk.timesteps

    @property
    def sigmas(self) -> Tensor:
        """Their noise levels, and the closing 0; before `set_timesteps` all of 1000 without it."""
        walk: Walk | None = vars(self).get("_walk")
        return self._all_sigmas() if walk is None else walk.sigmas

    @property
    def num_inference_steps(self) -> int | None:
        """Steps of the run by hand."""
        walk: Walk | None = vars(self).get("_walk")
        return None if walk is None else len(walk.timesteps)

    @property
    def order(self) -> int:
        """Velocities for each step."""
        return 2 if self.solver.step is heun_step else 1

    def _all_sigmas(self) -> Tensor:
        return shift_sigmas(torch.arange(TRAIN_STEPS, 0, -1) / TRAIN_STEPS, self.flow_shift)

    @refuse_unknown
    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Latent,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Take a velocity at a timestep; ``prev_sample`` is the state to go on with.

        ``generator`` is read by none of these solvers: they add no noise.

        Raises:
            ConfigError: before `set_timesteps`, or for a timestep that is not of the run.
        """
        walk: Walk | None = vars(self).get("_walk")
        if walk is None:
            raise ConfigError("step before set_timesteps", hint="scheduler.set_timesteps(20)")
        sample = walk.step(model_output, timestep, sample)
        return SchedulerOutput(prev_sample=sample) if return_dict else (sample,)

    def scale_model_input(self, sample: Latent, timestep: float | Tensor | None = None) -> Latent:
        """Give the state as it is: these networks take it so."""
        return sample

    def scale_noise(
        self, sample: Latent, timestep: float | Tensor, noise: Latent | None = None
    ) -> Latent:
        """Give ``(1 - sigma) sample + sigma noise`` at a timestep, or at one for each row.

        Raises:
            ConfigError: a timestep that is none of :attr:`timesteps`.
        """
        if noise is None:
            noise = torch.randn_like(sample)
        asked = torch.as_tensor(timestep).reshape(-1).cpu().float()
        known = self.timesteps.cpu().float()
        near = (known[None] - asked[:, None]).abs().min(dim=1)
        if (near.values > 1e-3).any():
            raise ConfigError(
                f"timestep={asked[near.values.argmax()]:g} is none of this scheduler's",
                hint="take them from scheduler.timesteps",
            )
        sigma = self.sigmas.cpu()[near.indices].to(sample)
        sigma = sigma.reshape(-1, *[1] * (sample.ndim - 1))
        return (1 - sigma) * sample + sigma * noise

    def add_noise(self, original_samples: Latent, noise: Latent, timesteps: Tensor) -> Latent:
        """The same as :meth:`scale_noise`, by the name that other published schedulers have."""
        return self.scale_noise(original_samples, timesteps, noise)

    def _refuse(self, name: str, why: str, hint: str) -> NoReturn:
        raise ConfigError(
            f"{type(self).__name__}: {name}={getattr(self, name)!r}: {why}", hint=hint
        )


@dataclass(frozen=True, kw_only=True)
class DPMSolverMultistepScheduler(Scheduler):
    """Flow-DPM-Solver, as published SANA models are drawn with: order 2, shift of the model."""

    solver_order: int = 2
    prediction_type: str = "flow_prediction"
    thresholding: bool = False
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    """Honoured either way: into sigma 0 every step is Euler's."""
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    use_flow_sigmas: bool = True
    flow_shift: float = 1.0
    final_sigmas_type: str = "zero"
    variance_type: str | None = None
    use_dynamic_shifting: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algorithm_type != "dpmsolver++":
            why = NO_NOISE if "sde" in str(self.algorithm_type) else "the flow is solved for x0"
            self._refuse("algorithm_type", why, "leave it at 'dpmsolver++'")
        if self.solver_type not in ("midpoint", "heun"):
            self._refuse("solver_type", "order 2 has two forms", "try 'midpoint' or 'heun'")

    @property
    def solver(self) -> Solver:
        """DPM-Solver++ multistep of the chosen order. (S7), (S8), (S15)."""
        step = partial(
            dpmpp_step,
            order=self.solver_order,
            slope_weight="heun" if self.solver_type == "heun" else "midpoint",
            lower_order_final=self.lower_order_final,
        )
        return Solver(step, flow_dpm_sigmas, True)


@dataclass(frozen=True, kw_only=True)
class UniPCMultistepScheduler(Scheduler):
    """UniPC: predicts as DPM-Solver does, and corrects every step by the next evaluation."""

    solver_order: int = 2
    prediction_type: str = "flow_prediction"
    thresholding: bool = False
    predict_x0: bool = True
    solver_type: str = "bh2"
    lower_order_final: bool = True
    disable_corrector: Collection[int] = ()
    solver_p: None = None
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_flow_sigmas: bool = True
    flow_shift: float = 1.0
    final_sigmas_type: str = "zero"
    use_dynamic_shifting: bool = False
    shift_terminal: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver_type != "bh2":
            why = "bh1 has no finite step into sigma 0"
            self._refuse("solver_type", why, "leave it at 'bh2'")
        object.__setattr__(self, "disable_corrector", tuple(self.disable_corrector))
        if not all(type(step) is int and step >= 0 for step in self.disable_corrector):
            self._refuse("disable_corrector", "it lists steps from 0 up", "try [0]")
        if not self.lower_order_final:
            why = "the last step reaches sigma 0, where only order 1 is finite"
            self._refuse("lower_order_final", why, "leave it at True")

    @property
    def solver(self) -> Solver:
        """UniPC of the chosen order. (S16)-(S18)."""
        never = frozenset(self.disable_corrector)
        step = partial(unipc_step, order=self.solver_order, uncorrected=never)
        return Solver(step, flow_unipc_sigmas, True)


@dataclass(frozen=True, kw_only=True)
class _FlowMatch(Scheduler):
    """Schedulers that publish the flow shift as ``shift``."""

    shift: float = 1.0

    @property
    def flow_shift(self) -> float:
        """The same as ``shift``."""
        return self.shift


@dataclass(frozen=True, kw_only=True)
class FlowMatchEulerDiscreteScheduler(_FlowMatch):
    """Euler's method: first order, one evaluation a step."""

    use_dynamic_shifting: bool = False
    invert_sigmas: bool = False
    shift_terminal: float | None = None
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    stochastic_sampling: bool = False

    @property
    def solver(self) -> Solver:
        """Euler's step. (S5)."""
        return Solver(euler_step, flow_euler_sigmas, False)


@dataclass(frozen=True, kw_only=True)
class FlowMatchHeunDiscreteScheduler(_FlowMatch):
    """Heun's method: second order, two evaluations a step."""

    @property
    def solver(self) -> Solver:
        """Heun's step. (S6)."""
        return Solver(heun_step, flow_euler_sigmas, False)


@dataclass(frozen=True, kw_only=True)
class SCMScheduler(Scheduler):
    """One to a few steps for Sprint models, each with fresh noise from the call's generators.

    Of its own methods ``timesteps`` are angles that end with 0, and `step` takes predictions and
    states in the published unit of ``sigma_data``; pipelines need none of them.
    """

    prediction_type: str = "trigflow"
    sigma_data: float = SIGMA_DATA

    usual_steps: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not positive(self.sigma_data):
            self._refuse("sigma_data", "it must be a positive number", f"{SIGMA_DATA} is usual")

    @property
    def flow_shift(self) -> float:
        """None: times are not shifted."""
        return 1.0

    @property
    def latent_unit(self) -> float:
        """States of published callbacks are in the unit of the data."""
        return self.sigma_data

    @property
    def solver(self) -> Solver:
        """Consistency with fresh noise. (S22)."""
        return Solver(scm_step, lambda num_steps, shift: scm_grid(num_steps), False, True)

    def custom_grid(
        self, timesteps: Sequence[float] | None = None, sigmas: Sequence[float] | None = None
    ) -> SigmaGrid:
        """Give a grid through angles of the caller's own, from noise to data.

        Raises:
            ConfigError: for sigmas, which this solver does not go by, or angles that do not fall.
        """
        if timesteps is None or sigmas is not None:
            raise ConfigError(
                "SCMScheduler takes no sigmas", hint="timesteps=[1.5708, 1.3, 0] are angles"
            )
        return arc_grid(timesteps)

    @refuse_unknown
    def set_timesteps(  # type: ignore[override]  # as published
        self,
        num_inference_steps: int | None = None,
        timesteps: Sequence[float] | None = None,
        device: str | torch.device | None = None,
        max_timesteps: float | None = MAX_TIME,
        intermediate_timesteps: float | None = SECOND_TIME,
    ) -> None:
        """Begin a run by hand; arguments and errors are those of `scm_grid_asked`."""
        grid = scm_grid_asked(num_inference_steps, timesteps, max_timesteps, intermediate_timesteps)
        vars(self)["_walk"] = self._walk_over(grid, device)

    def _walk_over(self, grid: SigmaGrid, device: str | torch.device | None) -> ArcWalk:
        assert isinstance(grid, ArcGrid)
        return ArcWalk(grid, self.sigma_data, device)

    @property
    def num_inference_steps(self) -> int | None:
        """Steps of the run by hand."""
        walk: ArcWalk | None = vars(self).get("_walk")
        return None if walk is None else len(walk.timesteps) - 1

    @refuse_unknown
    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Latent,
        generator: Generators | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Take a prediction along the arc at an angle, and draw the noise to go on with.

        ``prev_sample`` is the state at the next angle, ``pred_original_sample`` the estimate of x0.

        Raises:
            ConfigError: before `set_timesteps`, or for an angle that is not of the run.
        """
        walk: ArcWalk | None = vars(self).get("_walk")
        if walk is None:
            raise ConfigError("step before set_timesteps", hint="scheduler.set_timesteps(2)")
        noise = draw_noise(len(sample), sample.shape[1:], generator).to(sample)
        state, denoised = walk.step(model_output, timestep, sample, noise)
        if not return_dict:
            return state, denoised
        return SCMSchedulerOutput(prev_sample=state, pred_original_sample=denoised)

    def scale_noise(
        self, sample: Latent, timestep: float | Tensor, noise: Latent | None = None
    ) -> Latent:
        """Give the state at an angle, or at one for each row; ``sample`` is in the unit of step."""
        time = torch.as_tensor(timestep).to(sample).reshape(-1, *[1] * (sample.ndim - 1))
        noise = torch.randn_like(sample) if noise is None else noise
        return on_arc(sample, self.sigma_data * noise, time)


CLASSES: Mapping[str, type[Scheduler]] = MappingProxyType(
    {
        face.__name__: face
        for face in (
            DPMSolverMultistepScheduler,
            FlowMatchEulerDiscreteScheduler,
            FlowMatchHeunDiscreteScheduler,
            SCMScheduler,
            UniPCMultistepScheduler,
        )
    }
)
# The solvers that a request may name, and the settings that they mean.
NAMED: Mapping[str, Scheduler] = MappingProxyType(
    {
        "flow-dpm-solver": DPMSolverMultistepScheduler(),
        "flow-dpm-solver-1": DPMSolverMultistepScheduler(solver_order=1),
        "flow-dpm-solver-3": DPMSolverMultistepScheduler(solver_order=3),
        "flow-euler": FlowMatchEulerDiscreteScheduler(),
        "flow-heun": FlowMatchHeunDiscreteScheduler(),
        "flow-unipc": UniPCMultistepScheduler(),
        "flow-unipc-3": UniPCMultistepScheduler(solver_order=3),
    }
)


def scheduler_named(solver: str, flow_shift: float) -> Scheduler:
    """Give the scheduler that a name of ``solver`` means."""
    if solver not in NAMED:
        raise ConfigError(f"solver {solver!r} is unknown", hint=did_you_mean(solver, NAMED))
    return NAMED[solver].shifted(flow_shift)


def scheduler_from_config(config: Mapping[str, Any]) -> Scheduler:
    """Build the scheduler that the content of a ``scheduler_config.json`` names."""
    name = str(config.get("_class_name", "without a _class_name"))
    if name not in CLASSES:
        raise ConfigError(f"scheduler {name} is not known", hint=did_you_mean(name, CLASSES))
    return CLASSES[name].from_config(config)


def read_scheduler(folder: Path) -> Scheduler:
    """Build the scheduler of a model from its folder."""
    config = read_json(folder / CONFIG)
    try:
        return scheduler_from_config(config)
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG}: {error.message}", hint=error.hint) from error


def as_scheduler(scheduler: object) -> Scheduler:
    """Take a scheduler of ours as it is, and one of the ecosystem's by its settings."""
    if isinstance(scheduler, Scheduler):
        return scheduler
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"{scheduler!r} is no scheduler",
            hint=f"build one with {next(iter(CLASSES))}.from_config(pipe.scheduler.config)",
        )
    # A config also carries what other classes were set to, which this one does not read.
    own = inspect.signature(type(scheduler).__init__).parameters
    values = {name: value for name, value in config.items() if name in own}
    if "shift" in values:
        values["shift"] = getattr(scheduler, "_shift", values["shift"])  # `set_shift` changes it
    return scheduler_from_config({**values, "_class_name": type(scheduler).__name__})
