"""Every published SANA checkpoint as a value: its names, its rule of precision, its licences.

Knows no file, no network and no torch, so that the command line lists models at once. Source:
NVlabs/Sana asset/docs/model_zoo.md and the converters of diffusers
(scripts/convert_sana_to_diffusers.py, scripts/convert_dcae_to_diffusers.py). The licences are
quoted, not judged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Literal

from sanakit.errors import nearest_names

Kind = Literal["pipeline", "transformer", "controlnet", "autoencoder", "quantized"]
HalfDtype = Literal["float16", "bfloat16"]

TEXT_ENCODER_PARAMETERS = 2_614_000_000
"""Gemma-2-2B-it as the paper's table 9 counts it."""
AUTOENCODER_PARAMETERS = 312_250_275
"""DC-AE f32c32, which every pipeline carries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Licence:
    """What is licensed, under which name its publisher says so, and where it says it."""

    subject: str
    name: str
    url: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One published repository."""

    repository: str
    aliases: tuple[str, ...]
    """Short names; the first is the one that lists and messages use."""
    kind: Kind
    preset: str | None = None
    """Name in ``models.config``; None where no preset has this shape."""
    parameters: int
    """Of the repository's own network: text encoder and autoencoder of a pipeline come on top."""
    dtype: HalfDtype | None = None
    """Recommended for the transformer; None for autoencoders."""
    variant: str | None = None
    """The ``fp16`` of ``NAME.fp16.safetensors`` to fetch; the fp32 files stay where they are."""
    resolution: int | None = None
    """Side in pixels of the square that it was trained at."""
    flow_shift: float | None = None
    """As the published scheduler config has it."""
    original_flow_shift: float | None = None
    """As the original code trains and samples; differs for the 0.6B at 1024 px."""
    twin: str | None = None
    """The same weights in the other layout: original .pth against pipeline folder."""

    @property
    def alias(self) -> str:
        """The short name to type."""
        return self.aliases[0]

    @property
    def page(self) -> str:
        """Where its publisher describes it."""
        return f"https://huggingface.co/{self.repository}"

    @property
    def loadable(self) -> bool:
        """Whether `sanakit` reads it as published: safetensors in the published folder layout."""
        return self.kind == "pipeline" or (
            self.kind in ("autoencoder", "controlnet")
            and self.repository.endswith(("-diffusers", "_diffusers"))
        )

    @property
    def total_parameters(self) -> int:
        """Of everything that the repository holds."""
        extra = TEXT_ENCODER_PARAMETERS + AUTOENCODER_PARAMETERS
        return self.parameters + (extra if self.kind == "pipeline" else 0)

    @property
    def download_bytes(self) -> int:
        """An estimate: what is fetched has two bytes for each parameter, of autoencoders four."""
        return self.total_parameters * (4 if self.kind == "autoencoder" else 2)

    @property
    def licences(self) -> tuple[Licence, ...]:
        """Of code, weights and text encoder, as stated by their publishers; outputs: ask them."""
        if self.kind == "autoencoder":
            weights = Licence(subject="weights", name="as its page states", url=self.page)
            return (CODE_DC_AE, weights)
        weights = Licence(
            subject="weights", name=WEIGHTS_NAME, url=f"{self.page}/blob/main/LICENSE.txt"
        )
        if not self.repository.startswith(f"{OWNER}/"):
            weights = Licence(subject="weights", name="as its page states", url=self.page)
        return (CODE, weights, *GEMMA)


CODE = Licence(
    subject="original code (not used here; sanakit is Apache-2.0)",
    name="Apache-2.0",
    url="https://github.com/NVlabs/Sana/blob/main/LICENSE",
)
CODE_DC_AE = Licence(
    subject="original code (not used here; sanakit is Apache-2.0)",
    name="Apache-2.0",
    url="https://github.com/mit-han-lab/efficientvit/blob/master/LICENSE",
)
WEIGHTS_NAME = "NSCL v2-custom; governing terms: NVIDIA License (as the model card states)"
GEMMA = (
    Licence(
        subject="text encoder Gemma-2-2B-it",
        name="Gemma Terms of Use",
        url="https://ai.google.dev/gemma/terms",
    ),
    Licence(
        subject="text encoder Gemma-2-2B-it",
        name="Gemma Prohibited Use Policy",
        url="https://ai.google.dev/gemma/prohibited_use_policy",
    ),
)

OWNER = "Efficient-Large-Model"
HUB_FOLDER = "models--"
"""How the hub's client begins the name of a repository's folder in its cache."""
VARIANTS: dict[HalfDtype, str] = {"float16": "fp16", "bfloat16": "bf16"}


def _sana(
    name: str,
    aliases: str,
    parameters: int,
    dtype: HalfDtype,
    *,
    preset: str | None = "",
    shift: float | None = 3.0,
    original_shift: float | None = None,
    resolution: int = 1024,
) -> tuple[Checkpoint, Checkpoint]:
    """The pipeline folder, and the same transformer as the original .pth.

    The preset is the first alias where none is named.
    """
    names = tuple(aliases.split())
    original, folder = f"{OWNER}/{name}", f"{OWNER}/{name}_diffusers"
    pipeline = Checkpoint(
        repository=folder,
        aliases=names,
        kind="pipeline",
        preset=names[0] if preset == "" else preset,
        parameters=parameters,
        dtype=dtype,
        variant=VARIANTS[dtype],
        resolution=resolution,
        flow_shift=shift,
        original_flow_shift=original_shift or shift,
        twin=original,
    )
    pth = tuple(f"{alias}-pth" for alias in names)
    return pipeline, replace(
        pipeline, repository=original, aliases=pth, kind="transformer", variant=None, twin=folder
    )


def _control(
    name: str, alias: str, preset: str, parameters: int, dtype: HalfDtype, shift: float
) -> Checkpoint:
    folder = name.endswith("_diffusers")
    return Checkpoint(
        repository=name,
        aliases=(alias,),
        kind="controlnet",
        preset=preset,
        variant=VARIANTS[dtype] if folder else None,
        parameters=parameters,
        dtype=dtype,
        resolution=1024,
        flow_shift=3.0,
        original_flow_shift=shift,
    )


def _dc_ae(name: str, parameters: int, *aliases: str) -> tuple[Checkpoint, Checkpoint]:
    original, folder = f"mit-han-lab/{name}", f"mit-han-lab/{name}-diffusers"
    published = Checkpoint(
        repository=folder,
        aliases=(*aliases, name),
        kind="autoencoder",
        # 1.1 differs from 1.0 in its decoder's weights, not in shape.
        preset=name.replace("sana-1.1", "sana-1.0"),
        parameters=parameters,
        twin=original,
    )
    names = (f"{name}-original",)
    return published, replace(published, repository=original, aliases=names, twin=folder)


FP16: HalfDtype = "float16"
BF16: HalfDtype = "bfloat16"
_06B, _16B, _48B = 591_747_872, 1_604_462_752, 4_721_825_952
# With norms on queries and keys.
_QK_06B, _QK_16B = 591_876_896, 1_604_641_952
# Those of few steps embed their guidance too.
_SPRINT_06B, _SPRINT_16B = 593_501_216, 1_610_237_472

CATALOG: tuple[Checkpoint, ...] = (
    *_sana("Sana_600M_512px", "sana-0.6b-512", _06B, FP16, resolution=512),
    *_sana("Sana_600M_1024px", "sana-0.6b sana-0.6b-1024", _06B, FP16, original_shift=4.0),
    *_sana("Sana_1600M_512px", "sana-1.6b-512", _16B, FP16, resolution=512),
    *_sana(
        "Sana_1600M_512px_MultiLing",
        "sana-1.6b-512-multiling",
        _16B,
        FP16,
        preset="sana-1.6b-512",
        resolution=512,
    ),
    *_sana("Sana_1600M_1024px", "sana-1.6b sana-1.6b-1024", _16B, FP16),
    *_sana("Sana_1600M_1024px_MultiLing", "sana-1.6b-multiling", _16B, FP16, preset="sana-1.6b"),
    *_sana("Sana_1600M_1024px_BF16", "sana-1.6b-bf16", _16B, BF16, preset="sana-1.6b"),
    *_sana("Sana_1600M_2Kpx_BF16", "sana-1.6b-2k", _16B, BF16, resolution=2048),
    *_sana("Sana_1600M_4Kpx_BF16", "sana-1.6b-4k", _16B, BF16, resolution=4096, shift=6.0),
    *_sana("SANA1.5_1.6B_1024px", "sana1.5-1.6b", _QK_16B, BF16),
    *_sana("SANA1.5_4.8B_1024px", "sana1.5-4.8b", _48B, BF16),
    *_sana(
        "Sana_Sprint_0.6B_1024px", "sprint-0.6b sana-sprint-0.6b", _SPRINT_06B, BF16, shift=None
    ),
    *_sana(
        "Sana_Sprint_1.6B_1024px", "sprint-1.6b sana-sprint-1.6b", _SPRINT_16B, BF16, shift=None
    ),
    *_sana(
        "Sana_Sprint_0.6B_1024px_teacher",
        "sprint-0.6b-teacher",
        _QK_06B,
        BF16,
        preset=None,
        shift=None,
    ),
    *_sana(
        "Sana_Sprint_1.6B_1024px_teacher",
        "sprint-1.6b-teacher",
        _QK_16B,
        BF16,
        preset="sana1.5-1.6b",
        shift=None,
    ),
    _control(
        f"{OWNER}/Sana_600M_1024px_ControlNet_HED",
        "controlnet-0.6b-hed",
        "controlnet-0.6b",
        168_765_696,
        FP16,
        shift=4.0,
    ),
    _control(
        f"{OWNER}/Sana_1600M_1024px_BF16_ControlNet_HED",
        "controlnet-1.6b-hed",
        "controlnet-1.6b",
        631_576_960,
        BF16,
        shift=3.0,
    ),
    # Whole models with a branch; the documentation of diffusers draws with the second.
    _control(
        "ishan24/Sana_600M_1024px_ControlNet_diffusers",
        "controlnet-0.6b",
        "controlnet-0.6b",
        168_765_696,
        FP16,
        shift=3.0,
    ),
    _control(
        "ishan24/Sana_600M_1024px_ControlNetPlus_diffusers",
        "controlnet-0.6b-plus",
        "controlnet-0.6b",
        168_765_696,
        FP16,
        shift=3.0,
    ),
    Checkpoint(
        repository="mit-han-lab/svdq-int4-sana-1600m",
        aliases=("svdq-int4-sana-1.6b",),
        kind="quantized",
        preset="sana-1.6b",
        parameters=_16B,
        dtype=BF16,
        resolution=1024,
        flow_shift=3.0,
        original_flow_shift=3.0,
        twin=f"{OWNER}/Sana_1600M_1024px_BF16_diffusers",
    ),
    *_dc_ae("dc-ae-f32c32-sana-1.1", AUTOENCODER_PARAMETERS, "dc-ae-f32c32-sana"),
    *_dc_ae("dc-ae-f32c32-sana-1.0", AUTOENCODER_PARAMETERS),
    Checkpoint(
        repository="mit-han-lab/dc-ae-lite-f32c32-sana-1.1-diffusers",
        aliases=("dc-ae-lite-f32c32-sana-1.1", "dc-ae-lite"),
        kind="autoencoder",
        preset="dc-ae-lite-f32c32-sana-1.1",
        parameters=421_181_228,
    ),
    *_dc_ae("dc-ae-f32c32-in-1.0", 323_356_460, "dc-ae-f32c32-in"),
    *_dc_ae("dc-ae-f32c32-mix-1.0", 323_356_460, "dc-ae-f32c32-mix"),
    *_dc_ae("dc-ae-f64c128-in-1.0", 676_896_140, "dc-ae-f64c128-in"),
    *_dc_ae("dc-ae-f64c128-mix-1.0", 676_896_140, "dc-ae-f64c128-mix"),
    *_dc_ae("dc-ae-f128c512-in-1.0", 1_120_682_252, "dc-ae-f128c512-in"),
    *_dc_ae("dc-ae-f128c512-mix-1.0", 1_120_682_252, "dc-ae-f128c512-mix"),
)

_BY_NAME: dict[str, Checkpoint] = {
    name.lower(): checkpoint
    for checkpoint in CATALOG
    for name in (checkpoint.repository, *checkpoint.aliases)
}


def find_checkpoint(name: str) -> Checkpoint | None:
    """Give the checkpoint of an alias or a repository id; case and ``@revision`` do not matter.

    None for everything else: folders, embedded models, repositories of other people.
    """
    return _BY_NAME.get(name.partition("@")[0].strip().lower())


def checkpoint_behind(place: str | PurePath) -> Checkpoint | None:
    """The checkpoint of a name, or of a path inside the hub's cache of its repository."""
    for part in PurePath(place).parts:
        if part.startswith(HUB_FOLDER):
            return find_checkpoint(part.removeprefix(HUB_FOLDER).replace("--", "/", 1))
    return find_checkpoint(str(place))


def checkpoint_of_file(file: PurePath) -> Checkpoint | None:
    """The checkpoint that an original file is by its name, which is its repository's."""
    return checkpoint_behind(file) or find_checkpoint(f"{OWNER}/{file.stem}")


def smallest_at(resolution: int) -> Checkpoint | None:
    """Give the smallest pipeline that was trained at a resolution and can be trained further.

    Those of few steps embed their guidance: they were distilled, with another loss.
    """
    found = [
        one
        for one in CATALOG
        if one.kind == "pipeline" and one.resolution == resolution and one.flow_shift is not None
    ]
    return min(found, key=lambda one: one.parameters, default=None)


def nearest_models(name: str, *, most: int = 3) -> list[str]:
    """Give the aliases and repository ids that look most like ``name``, nearest first."""
    owner, _, own = name.partition("@")[0].lower().rpartition("/")
    if owner:
        tails = {c.repository.rpartition("/")[2].lower(): c.repository for c in CATALOG}
        return [tails[near] for near in nearest_names(own, tails, most=most)]
    return nearest_names(own, [a for c in CATALOG for a in c.aliases], most=most)
