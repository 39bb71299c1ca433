"""Strict loading: a state fits a module exactly, or the module stays as it was."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from sanakit.errors import WeightsError

SHOWN = 5


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    filled: Collection[str] = (),
) -> None:
    """Fill every parameter and persistent buffer of ``module``; on a misfit change nothing.

    Tensors are assigned, not copied: a module built on the meta device becomes real, takes dtype
    and device of ``state`` and shares its memory. ``source`` names the file in the error;
    ``filled`` are submodules that have their tensors already, and of which ``state`` has none.

    Raises:
        WeightsError: for missing, unexpected or mis-shaped tensors, and for integers where the
            module has real numbers; the first five are listed.
    """
    wanted = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if not any(name.startswith(f"{owner}.") for owner in filled)
    }
    problems = [f"missing     {name}" for name in wanted.keys() - state.keys()]
    problems += [f"unexpected  {name}" for name in state.keys() - wanted.keys()]
    for name in wanted.keys() & state.keys():
        given, own = state[name], wanted[name]
        if given.shape != own.shape:
            problems.append(
                f"shape       {name}: file {tuple(given.shape)}, model {tuple(own.shape)}"
            )
        elif given.is_floating_point() != own.is_floating_point():
            problems.append(f"kind        {name}: file {given.dtype}, model {own.dtype}")
    if problems:
        raise WeightsError(
            f"{source}: {_counted(problems)} do not fit {type(module).__name__}\n  "
            + "\n  ".join([*sorted(problems)[:SHOWN], *_rest(problems)]),
            hint="config.json must be the one these weights were made with",
        )
    fitting = {name: state[name].detach() for name in wanted}
    module.load_state_dict(fitting, strict=not filled, assign=True)


def _counted(problems: list[str]) -> str:
    kinds = [problem.split()[0] for problem in problems]
    parts = [f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))]
    return f"{len(problems)} tensor{'s'[: len(problems) > 1]} ({', '.join(parts)})"


def _rest(problems: list[str]) -> list[str]:
    return [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
