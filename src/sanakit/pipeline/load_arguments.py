"""Arguments of published loading: which mean something here, which nothing, which are refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sanakit.errors import ConfigError, UnknownArgumentError, did_you_mean
from sanakit.models.published import say_once
from sanakit.weights.dtypes import Requested

# Published arguments of loading that decide nothing here, and why: they are taken, and it is said.
NEEDLESS = {
    "low_cpu_mem_usage": "weights are always read straight into place",
    "offload_folder": "weights are mapped from their own files",
    "offload_state_dict": "weights are mapped from their own files",
    "disable_mmap": "weights are always mapped from their files",
    "silence_dtype_warnings": "a dtype is right or refused",
    "proxies": "the environment's HTTPS_PROXY is used",
    "resume_download": "downloads always go on where they stopped",
    "mirror": "the environment's HF_ENDPOINT is used",
    "output_loading_info": "all weights fit, or loading fails",
    "safety_checker": "these models have none",
    "feature_extractor": "these models have none",
    "requires_safety_checker": "these models have none",
}
# Those that would run or read what is never run or read here; None and False are taken.
REFUSED = {
    "custom_pipeline": "code of a model is never run",
    "custom_revision": "code of a model is never run",
    "trust_remote_code": "code of a model is never run",
    "use_onnx": "weights are safetensors",
    "from_flax": "weights are safetensors",
    "use_flashpack": "weights are safetensors",
    "provider": "weights are safetensors, run by torch",
    "sess_options": "weights are safetensors, run by torch",
}
# Values that mean what is done anyway.
SILENT = {"low_cpu_mem_usage": True}


def heed_other_arguments(
    function: str, given: Mapping[str, object], known: Collection[str]
) -> None:
    """Say of published loading arguments that they are needless, and refuse the others.

    Raises:
        UnknownArgumentError: a name that is neither. ConfigError: one that cannot be honoured.
    """
    for name, value in given.items():
        if name not in NEEDLESS and name not in REFUSED:
            names = {*known, *NEEDLESS} - {"cls", "needless"}
            raise UnknownArgumentError(
                f"{function} has no argument {name!r}", hint=did_you_mean(name, names)
            )
        if value is None or value is SILENT.get(name, False):
            continue
        if name in REFUSED:
            raise ConfigError(f"{name}={value!r}: {REFUSED[name]}", hint="leave it out")
        say_once(f"{name}={value!r} decides nothing here: {NEEDLESS[name]}")


def refuse_pickle_readers(use_safetensors: bool | None) -> None:
    """Refuse ``use_safetensors=False`` as a `ConfigError`: there is no other reader."""
    if use_safetensors is False:
        raise ConfigError("use_safetensors=False would read pickles", hint="leave it out")


def one_dtype(torch_dtype: Requested, dtype: Requested) -> Requested:
    """Give the dtype that was asked for, by its older name or its newer.

    Raises:
        ConfigError: both, and they differ.
    """
    if torch_dtype is not None and dtype is not None and torch_dtype != dtype:
        raise ConfigError(f"torch_dtype={torch_dtype} and dtype={dtype}", hint="pass one of them")
    return torch_dtype if dtype is None else dtype
