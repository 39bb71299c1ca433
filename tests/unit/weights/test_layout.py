from __future__ import annotations

import pytest

from sanakit.errors import MissingModelError, WeightsError
from sanakit.weights.layout import PLAIN, choose_variant, select_files, variants_of

ROOT = ["model_index.json", "README.md", "LICENSE.txt", ".gitattributes", "sample.png"]
TRANSFORMER = [
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "transformer/diffusion_pytorch_model.fp16.safetensors",
    "transformer/diffusion_pytorch_model.bin",
    "transformer/modeling_sana.py",
]
# The two orders in which writers put variant and shard number, and both kinds of index.
SHARDED = [
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "text_encoder/model.fp16-00001-of-00002.safetensors",
    "text_encoder/model.fp16-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.fp16.json",
    "text_encoder/model-00001-of-00002.bf16.safetensors",
    "text_encoder/model-00002-of-00002.bf16.safetensors",
    "text_encoder/model.safetensors.index.bf16.json",
]


def select(names: list[str], variant: str | None, **more: str) -> set[str]:
    return set(select_files(names, variant=variant, source="a/b", **more).files)


@pytest.mark.parametrize(("variant", "infix"), [(None, ""), (PLAIN, ""), ("fp16", ".fp16")])
def test_weights_of_one_variant_are_taken_and_no_pickle_code_or_picture(
    variant: str | None, infix: str
) -> None:
    assert select([*ROOT, *TRANSFORMER], variant) == {
        "model_index.json",
        "README.md",
        "LICENSE.txt",
        "transformer/config.json",
        f"transformer/diffusion_pytorch_model{infix}.safetensors",
    }


@pytest.mark.parametrize("variant", [None, "fp16", "bf16"])
def test_an_index_brings_its_shards_and_leaves_the_single_file(variant: str | None) -> None:
    weights = {n for n in select([*ROOT, *SHARDED], variant) if "safetensors" in n}
    assert len(weights) == 3
    assert "text_encoder/model.safetensors" not in weights
    assert {".bf16" in name for name in weights} == {variant == "bf16"}
    assert {".fp16" in name for name in weights} == {variant == "fp16"}


def test_a_component_without_the_variant_comes_plain_and_is_named() -> None:
    names = [*ROOT, *TRANSFORMER, "vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    selection = select_files(names, variant="fp16", source="a/b")
    assert "vae/diffusion_pytorch_model.safetensors" in selection.files
    assert selection.variants == {"transformer": "fp16", "vae": None}
    assert selection.without("fp16") == ["vae"]
    assert selection.without(PLAIN) == ["transformer"]


def test_a_variant_is_the_wanted_one_or_plain_or_the_only_one() -> None:
    assert choose_variant({None, "fp16"}, "fp16") == "fp16"
    assert choose_variant({None, "fp16"}, "bf16") is None
    assert choose_variant({"fp16", "bf16"}, PLAIN) == "bf16"
    assert choose_variant(set(), "fp16") == "fp16"
    assert variants_of(["model.fp16.safetensors", "model-00001-of-00002.safetensors"]) == {
        "fp16",
        None,
    }


def test_a_subfolder_leaves_the_other_components() -> None:
    taken = select([*ROOT, *TRANSFORMER, *SHARDED], "fp16", subfolder="transformer")
    assert "transformer/diffusion_pytorch_model.fp16.safetensors" in taken
    assert not [name for name in taken if name.startswith("text_encoder")]


def test_a_single_network_lies_at_the_root() -> None:
    names = ["config.json", "diffusion_pytorch_model.safetensors", "other.safetensors"]
    assert select(names, None) == set(names[:2])
    # Beside a pipeline's index, weights at the root are somebody's single file, not a component.
    assert not select([*ROOT, *TRANSFORMER, *names], None) & {names[1]}


@pytest.mark.parametrize(
    "name",
    [
        "../transformer/config.json",
        "transformer/../../x.json",
        "transformer/sub/config.json",
        "/transformer/config.json",
        "onnx/config.json",
        "onnx/model.safetensors",
        "transformer/.hidden.json",
        "transformer/a b.json",
    ],
)
def test_names_that_lead_elsewhere_are_not_taken(name: str) -> None:
    assert name not in select([*ROOT, *TRANSFORMER, name], None)


def test_pickles_only_is_an_error_that_says_how_to_convert() -> None:
    for names in (
        ["model_index.json", "transformer/config.json", "transformer/model.bin"],
        ["checkpoints/Sana_1600M_1024px.pth"],
    ):
        with pytest.raises(WeightsError, match=r"(bin|pth).*never loaded\n.*sanakit convert"):
            select(names, None)
    with pytest.raises(MissingModelError, match="no weights"):
        select(["model_index.json", "transformer/config.json"], None)
    with pytest.raises(WeightsError, match="transformer"):
        select([*SHARDED, "transformer/x.bin"], None, subfolder="transformer")
