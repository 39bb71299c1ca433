"""What a scheduler's config may say: settings honoured, without effect, or refused."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from sanakit.errors import ConfigError, did_you_mean

FLOW_SHIFTS = ("flow_shift", "shift")  # one thing, by the two names that published classes use
# Published keys that decide nothing where levels are those of a flow: they describe a schedule of
# betas, or an option that is refused when it is on.
WITHOUT_EFFECT = frozenset(
    {"beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"}
    | {"timestep_spacing", "steps_offset", "lambda_min_clipped", "sigma_min", "sigma_max"}
    | {"dynamic_thresholding_ratio", "sample_max_value", "time_shift_type"}
    | {"base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"}
)
OTHER_SIGMAS = "these networks were trained at levels of a flow"
NO_NOISE = "flow solvers here add no noise, so that a seed decides the picture"
# Options that exist, the one value that can be honoured (the default of their field), and why.
REFUSED = {
    "num_train_timesteps": "networks are told timesteps of 0 to 1000",
    "prediction_type": "these networks predict a flow's velocity",
    "use_flow_sigmas": OTHER_SIGMAS,
    "use_karras_sigmas": OTHER_SIGMAS,
    "use_exponential_sigmas": OTHER_SIGMAS,
    "use_beta_sigmas": OTHER_SIGMAS,
    "use_lu_lambdas": OTHER_SIGMAS,
    "use_dynamic_shifting": "the shift is a number of the model, not of a picture's size",
    "shift_terminal": "grids end at no noise",
    "final_sigmas_type": "grids end at no noise, or noise would be left in the picture",
    "invert_sigmas": "1 is noise and 0 is data for these networks",
    "thresholding": "it is made for pixels, not for latents",
    "variance_type": "no variance is read",
    "stochastic_sampling": NO_NOISE,
    "predict_x0": "the flow is solved for x0",
    "solver_p": "the predictor is its own",
}
# Published values of ``solver_type``; a class that has others takes its own default for them.
SOLVER_TYPES = {
    "DPMSolverMultistepScheduler": frozenset({"midpoint", "heun"}),
    "UniPCMultistepScheduler": frozenset({"bh1", "bh2"}),
}
PREDICTION_TYPES = ("flow_prediction", "trigflow")  # each class has one of them
ELSEWHERE = frozenset(
    {"algorithm_type", "disable_corrector", "euler_at_final", "lower_order_final", "sigma_data"}
)


class SchedulerConfig(dict[str, Any]):
    """A scheduler's settings, read as ``config["flow_shift"]`` or as ``config.flow_shift``.

    A dict, as the schedulers of others demand in ``from_config``; it cannot be changed.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self:
            raise AttributeError(f"the scheduler has no setting {name!r}")
        return self[name]

    def __reduce__(self) -> tuple[type[SchedulerConfig], tuple[dict[str, Any]]]:
        return SchedulerConfig, (dict(self),)

    def _fixed(self, *_: Any, **__: Any) -> NoReturn:
        raise ConfigError(
            "a scheduler's settings are fixed",
            hint="pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, ...)",
        )

    __setitem__ = __delitem__ = __ior__ = __setattr__ = _fixed
    clear = pop = popitem = setdefault = update = _fixed


def settings_for(
    class_name: str, own: Collection[str], config: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Choose from any scheduler's settings those that a class has, and lay ``changes`` over them.

    Args:
        class_name: the class that will be built.
        own: the settings that it has.
        config: settings of this or another class, as published or as `SchedulerConfig`.
        changes: settings that the caller asks for: each must be one of the class.
    """
    values: dict[str, Any] = {}
    for name, value in config.items():
        key = _known_as(name, own)
        if key != name and key in config:
            continue  # a shift of another class, carried along beside this one's own
        if key in own:
            values[key] = value
        elif not (name.startswith("_") or name in PUBLISHED):
            refuse_setting(name, {*own, *WITHOUT_EFFECT})
    another = config.get("_class_name", class_name) != class_name
    if another and values.get("prediction_type") in PREDICTION_TYPES:
        del values["prediction_type"]
    types = SOLVER_TYPES.get(class_name, frozenset())
    if values.get("solver_type") not in types and values.get("solver_type") in ALL_SOLVER_TYPES:
        del values["solver_type"]
    for name, value in changes.items():
        key = _known_as(name, own)
        if key in WITHOUT_EFFECT:
            raise ConfigError(
                f"{name}={value!r} has no effect on the levels of a flow", hint="leave it out"
            )
        if key not in own:
            refuse_setting(name, own)
        values[key] = value
    return values


def refuse_setting(name: str, known: Collection[str]) -> NoReturn:
    """Say that a scheduler has no such setting, and which is nearest."""
    hint = did_you_mean(name, sorted(known))
    raise ConfigError(f"{name!r} is no setting of this scheduler", hint=hint)


def positive(value: object) -> bool:
    """Whether a setting is a finite number above 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0  # type: ignore[arg-type,operator]


def _known_as(name: str, own: Collection[str]) -> str:
    """The class's own name of a setting."""
    if name in FLOW_SHIFTS:
        return next((known for known in FLOW_SHIFTS if known in own), name)
    return name


ALL_SOLVER_TYPES = frozenset({"logrho"}).union(*SOLVER_TYPES.values())
PUBLISHED = WITHOUT_EFFECT | ELSEWHERE | {*REFUSED, *FLOW_SHIFTS, "solver_order", "solver_type"}
