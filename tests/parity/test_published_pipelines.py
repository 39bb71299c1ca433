"""`SanaPipeline` and `SanaPAGPipeline` against those of diffusers: a tiny model, 20 steps, fp32.

Where the reference is wrong a test shows both: what it does, and what is right.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from torch import Tensor
from torch.testing import assert_close

from sanakit import SanaPAGPipeline, SanaPipeline
from sanakit.flow.grids import flow_dpm_sigmas, shift_sigmas
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components import save_components
from sanakit.pipeline.prompts import COMPLEX_HUMAN_INSTRUCTION
from tiny import TRANSFORMER, tiny_components

CALL = {
    "height": 64,
    "width": 64,
    "num_inference_steps": 20,
    "guidance_scale": 4.5,
    "output_type": "latent",
    "use_resolution_binning": False,
}


def write(folder: Path, **shape: Any) -> Path:
    """The tiny model with another transformer; gains of norms are not one."""
    components = tiny_components()
    torch.manual_seed(1)
    transformer = LinearDiT(replace(TRANSFORMER, **shape)).eval().requires_grad_(False)
    torch.nn.init.ones_(transformer.caption_norm.weight)
    for name, value in transformer.named_parameters():
        if "norm_q" in name or "norm_k" in name:
            value.copy_(1 + 0.6 * torch.randn(value.shape))
    save_components(replace(components, transformer=transformer), folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tiny"), num_layers=3)


@pytest.fixture(scope="module")
def pipe(folder: Path) -> SanaPipeline:
    return SanaPipeline.from_pretrained(folder)


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def published(folder: Path) -> diffusers.SanaPipeline:
    return quiet(diffusers.SanaPipeline.from_pretrained(str(folder)))


def published_pag(plain: diffusers.SanaPipeline, layers: Any) -> diffusers.SanaPAGPipeline:
    # The reference exchanges layers of the very network that it is given.
    copied = diffusers.SanaTransformer2DModel(**plain.transformer.config)
    copied.load_state_dict(plain.transformer.state_dict())
    parts = plain.components | {"transformer": copied.eval()}
    return quiet(diffusers.SanaPAGPipeline(**parts, pag_applied_layers=layers))


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LONG = "a long prompt about a small house by the sea, with two cats and a dog"
COMBINATIONS: dict[str, dict[str, Any]] = {
    "plain": {"prompt": "a red apple"},
    "no guidance": {"prompt": "a red apple", "guidance_scale": 1.0},
    "strong guidance and a negative": {
        "prompt": "Two cats, and a dog!",
        "negative_prompt": "blurry, ugly",
        "guidance_scale": 9.0,
    },
    "tall": {"prompt": LONG, "height": 128, "width": 32},
    "wide, four steps": {
        "prompt": "a tree",
        "height": 32,
        "width": 160,
        "num_inference_steps": 4,
    },
    "three pictures": {"prompt": "a tree", "num_images_per_prompt": 3},
    "three pictures, no guidance": {
        "prompt": "a tree",
        "num_images_per_prompt": 3,
        "guidance_scale": 0.0,
    },
    "two prompts, two negatives": {
        "prompt": ["a tree", LONG],
        "negative_prompt": ["a car", "blurry, ugly, a dog"],
    },
    "a list of generators": {"prompt": ["a tree", LONG], "generator": [1, 2]},
    "no instruction, short text": {
        "prompt": LONG,
        "complex_human_instruction": None,
        "max_sequence_length": 6,
    },
    "own instruction": {"prompt": "a tree", "complex_human_instruction": ["Draw well:", "it is "]},
    "own noise": {"prompt": "a tree", "latents": torch.ones(1, 4, 2, 2), "generator": None},
}


def arguments(name: str) -> list[dict[str, Any]]:
    """The same call twice, each with fresh generators."""
    calls = []
    for _ in range(2):
        call = CALL | {"generator": seeded()} | COMBINATIONS[name]
        if isinstance(call["generator"], list):
            call["generator"] = [seeded(seed) for seed in call["generator"]]
        calls.append(call)
    return calls


@pytest.mark.parametrize("name", COMBINATIONS)
@pytest.mark.filterwarnings("ignore::sanakit.pipeline.prompts.PromptCutWarning")
def test_latents_of_sana_are_the_published_ones(
    name: str, pipe: SanaPipeline, published: diffusers.SanaPipeline
) -> None:
    ours, theirs = arguments(name)
    assert_close(pipe(**ours).images, published(**theirs).images, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("layers", "pag"),
    [
        ("transformer_blocks.0", {}),
        (["transformer_blocks.2", "blocks.0"], {"pag_scale": 2.0, "pag_adaptive_scale": 0.004}),
    ],
)
@pytest.mark.parametrize("name", COMBINATIONS)
@pytest.mark.filterwarnings("ignore::sanakit.pipeline.prompts.PromptCutWarning")
def test_latents_of_perturbed_attention_are_the_published_ones(
    name: str,
    layers: str | list[str],
    pag: dict[str, float],
    pipe: SanaPipeline,
    published: diffusers.SanaPipeline,
) -> None:
    ours, theirs = arguments(name)
    found = SanaPAGPipeline.from_pipe(pipe, pag_applied_layers=layers)(**ours, **pag).images
    expected = published_pag(published, layers)(**theirs, **pag).images
    assert_close(found, expected, atol=5e-5, rtol=0)


def test_binned_pictures_are_the_published_ones(tmp_path: Path) -> None:
    # Two layers on a table whose smallest picture is 256 x 1024 px.
    write(tmp_path, sample_size=16, num_layers=1)
    published = quiet(diffusers.SanaPipeline.from_pretrained(str(tmp_path)))
    call = {"prompt": "a tree", "height": 64, "width": 288, "num_inference_steps": 1}
    call |= {"output_type": "np", "guidance_scale": 1.0}
    found = SanaPipeline.from_pretrained(tmp_path)(**call, generator=seeded()).images
    expected = published(**call, generator=seeded()).images
    assert found.shape == (1, 64, 288, 3)
    assert_close(torch.from_numpy(found), torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_encode_prompt_gives_what_the_published_one_gives(
    pipe: SanaPipeline, published: diffusers.SanaPipeline
) -> None:
    call = {
        "prompt": ["a tree", LONG],
        "negative_prompt": "blurry",
        "complex_human_instruction": list(COMPLEX_HUMAN_INSTRUCTION),
    }
    found, expected = pipe.encode_prompt(**call), published.encode_prompt(**call)
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.shape == theirs.shape
        if index % 2:
            assert torch.equal(ours, theirs)  # a mask, 0 and 1
            continue
        real = expected[index + 1].bool()
        assert_close(ours[real], theirs[real], atol=1e-5, rtol=0)
        assert not ours[~real].any()
    plain = pipe.encode_prompt("a tree", do_classifier_free_guidance=False)
    assert plain[0].shape == (1, 300, 8)
    assert plain[2:] == (None, None)
    fed = dict(zip(("prompt_embeds", "prompt_attention_mask"), found[:2], strict=True))
    null = ("negative_prompt_embeds", "negative_prompt_attention_mask")
    fed |= dict(zip(null, found[2:], strict=True))
    by_hand = pipe(**CALL, **fed, generator=seeded()).images
    by_text = pipe(
        **CALL, prompt=call["prompt"], negative_prompt="blurry", generator=seeded()
    ).images
    assert_close(by_hand, by_text, atol=1e-6, rtol=0)


def test_a_published_callback_object_ends_guidance(
    pipe: SanaPipeline, published: diffusers.SanaPipeline
) -> None:
    # Texts of one length: the reference goes on with the mask of both sides.
    call = CALL | {"prompt": "a tree", "negative_prompt": "a car"}
    call |= {"complex_human_instruction": None}
    _, mask, __, null_mask = pipe.encode_prompt("a tree", negative_prompt="a car")
    assert torch.equal(mask, null_mask)

    def alike(_: Any, index: int, __: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        both = tensors["prompt_embeds"]
        return {"prompt_embeds": both[1:].repeat(2, 1, 1)} if index == 3 else {}

    names = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    expected = published(**call, **names, generator=seeded(), callback_on_step_end=alike).images
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=3)
    found = pipe(**call, generator=seeded(), callback_on_step_end=cutoff).images
    assert_close(found, expected, atol=2e-5, rtol=0)
    assert pipe.guidance_scale == 0.0
    assert not pipe.do_classifier_free_guidance
    assert (found - pipe(**call, generator=seeded()).images).abs().max() > 1e-3


def test_prompts_times_pictures_keep_their_masks_where_the_reference_mixes_them(
    pipe: SanaPipeline, published: diffusers.SanaPipeline
) -> None:
    noise = torch.randn(4, 4, 2, 2, generator=seeded())
    prompts, negatives = ["a tree", LONG], ["blurry, ugly, a car, a dog", "ugly"]
    both: dict[str, Any] = {"prompt": prompts, "negative_prompt": negatives}
    both |= {"num_images_per_prompt": 2, "latents": noise}
    right = torch.cat(
        [
            published(
                **CALL,
                prompt=prompts[row],
                negative_prompt=negatives[row],
                num_images_per_prompt=2,
                latents=noise[2 * row : 2 * row + 2],
            ).images
            for row in range(2)
        ]
    )
    assert_close(pipe(**CALL, **both).images, right, atol=2e-5, rtol=0)
    assert (published(**CALL, **both).images - right).abs().max() > 1e-3


def test_own_levels_work_where_the_reference_raises(
    pipe: SanaPipeline, published: diffusers.SanaPipeline
) -> None:
    grid = flow_dpm_sigmas(20, 3.0)
    levels: list[dict[str, Any]] = [
        {"sigmas": shift_sigmas(grid.sigmas[:-1].double(), 1 / 3).tolist()},
        {"timesteps": [999, 700, 300, 37]},
    ]
    for own in levels:
        with pytest.raises((TypeError, ValueError)):
            published(**CALL, **own, prompt="a tree", generator=seeded())
    plain = pipe(**CALL, prompt="a tree", generator=seeded()).images
    same = pipe(**CALL, **levels[0], prompt="a tree", generator=seeded()).images
    assert_close(same, plain, atol=1e-6, rtol=0)
    told: list[float] = []
    pipe(
        **CALL,
        **levels[1],
        prompt="a tree",
        callback_on_step_end=lambda p, i, t, tensors: told.append(float(t)),
    )
    assert told == [999, 700, 300, 37]
    assert pipe.num_timesteps == 4


def test_negative_embeddings_take_the_place_of_the_default_where_the_reference_raises(
    pipe: SanaPipeline, published: diffusers.SanaPipeline
) -> None:
    _, __, null, mask = pipe.encode_prompt("", negative_prompt="blurry")
    own = {"negative_prompt_embeds": null, "negative_prompt_attention_mask": mask}
    with pytest.raises(ValueError, match="negative_prompt_embeds"):
        published(**CALL, **own, prompt="a tree")
    found = pipe(**CALL, **own, prompt="a tree", generator=seeded()).images
    expected = published(
        **CALL, prompt="a tree", negative_prompt="blurry", generator=seeded()
    ).images
    assert_close(found, expected, atol=2e-5, rtol=0)


def test_negative_embeddings_of_a_callback_take_effect_where_the_reference_drops_them(
    pipe: SanaPipeline, published: diffusers.SanaPipeline
) -> None:
    def draw(pipeline: Any, *, replaced: bool) -> Tensor:
        def change(_: Any, __: int, ___: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            null = tensors["negative_prompt_embeds"]
            return {"negative_prompt_embeds": -null if replaced else null}

        names = ["negative_prompt_embeds"]
        return pipeline(
            **CALL,
            prompt="a tree",
            generator=seeded(),
            callback_on_step_end=change,
            callback_on_step_end_tensor_inputs=names,
        ).images

    assert torch.equal(draw(published, replaced=True), draw(published, replaced=False))
    assert (draw(pipe, replaced=True) - draw(pipe, replaced=False)).abs().max() > 1e-3


def test_prompt_embeddings_of_a_callback_take_effect_as_in_the_reference(
    pipe: SanaPipeline, published: diffusers.SanaPipeline
) -> None:
    def change(_: Any, index: int, __: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert tensors["prompt_embeds"].shape == (2, 300, 8)
        return {"prompt_embeds": tensors["prompt_embeds"] * (0.5 if index == 4 else 1)}

    call = CALL | {
        "prompt": LONG,
        "callback_on_step_end": change,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    found = pipe(**call, generator=seeded()).images
    expected = published(**call, generator=seeded()).images
    assert_close(found, expected, atol=2e-5, rtol=0)
    unchanged = pipe(**CALL, prompt=LONG, generator=seeded()).images
    assert (found - unchanged).abs().max() > 1e-3


def test_an_interrupted_run_ends_in_the_state_it_has_there(
    pipe: SanaPipeline, published: diffusers.SanaPipeline
) -> None:
    def draw(pipeline: Any) -> tuple[Tensor, int]:
        seen = []

        def stop(running: Any, index: int, _: Tensor, tensors: dict[str, Tensor]) -> dict[str, Any]:
            seen.append(index)
            running._interrupt = index == 2
            return {}

        call = CALL | {"prompt": "a tree", "generator": seeded(), "callback_on_step_end": stop}
        return pipeline(**call).images, len(seen)

    (found, steps), (expected, _) = draw(pipe), draw(published)
    assert steps == 3
    assert pipe.interrupt
    assert_close(found, expected, atol=2e-5, rtol=0)
    whole = pipe(**CALL, prompt="a tree", generator=seeded()).images  # the next call is not stopped
    assert (found - whole).abs().max() > 1e-3


def test_layer_ids_name_one_block_where_the_reference_takes_its_teens_along(
    tmp_path: Path,
) -> None:
    write(tmp_path, num_layers=12)
    published = quiet(diffusers.SanaPipeline.from_pretrained(str(tmp_path)))
    call = CALL | {"prompt": "a tree", "num_inference_steps": 4}
    ours = SanaPAGPipeline.from_pretrained(tmp_path, pag_applied_layers="transformer_blocks.1")
    found = ours(**call, generator=seeded()).images
    meant = published_pag(published, [r"transformer_blocks\.1\."])
    assert_close(found, meant(**call, generator=seeded()).images, atol=2e-5, rtol=0)
    sloppy = published_pag(published, "transformer_blocks.1")(**call, generator=seeded()).images
    assert (sloppy - found).abs().max() > 1e-4
    ours.set_pag_applied_layers([1, 10, "transformer_blocks.11"])
    assert_close(ours(**call, generator=seeded()).images, sloppy, atol=2e-5, rtol=0)


def test_perturbed_attention_keeps_qk_norm_where_the_reference_drops_it(tmp_path: Path) -> None:
    write(tmp_path, qk_norm="rms_norm_across_heads")
    published = quiet(diffusers.SanaPipeline.from_pretrained(str(tmp_path)))
    call = CALL | {"prompt": "a tree"}
    plain = published(**call, generator=seeded()).images
    # So weak that nothing is left of it but the passes that it makes.
    ours = SanaPAGPipeline.from_pretrained(tmp_path, pag_applied_layers="blocks.(0|1)")
    found = ours(**call, pag_scale=1e-7, generator=seeded()).images
    assert_close(found, plain, atol=2e-5, rtol=0)
    theirs = published_pag(published, "blocks.(0|1)")
    wrong = theirs(**call, pag_scale=1e-7, generator=seeded()).images
    assert (wrong - plain).abs().max() > 1e-3


def test_perturbed_attention_leaves_a_predicted_variance_out_where_the_reference_fails(
    tmp_path: Path,
) -> None:
    write(tmp_path, out_channels=8)
    published = quiet(diffusers.SanaPipeline.from_pretrained(str(tmp_path)))
    call = CALL | {"prompt": "a tree"}
    with pytest.raises(RuntimeError):
        published_pag(published, "blocks.0")(**call)
    ours = SanaPAGPipeline.from_pretrained(tmp_path)
    found = ours(**call, pag_scale=0.0, generator=seeded()).images
    assert_close(found, published(**call, generator=seeded()).images, atol=2e-5, rtol=0)


def test_clean_caption_keeps_chinese_words(pipe: SanaPipeline) -> None:
    call = CALL | {"prompt": "一只 cat"}
    plain = pipe(**call, generator=seeded()).images
    assert torch.equal(pipe(**call, clean_caption=True, generator=seeded()).images, plain)
    dirty = call | {"prompt": "<b>一只 cat</b> https://example.org/cat.jpg"}
    assert torch.equal(pipe(**dirty, clean_caption=True, generator=seeded()).images, plain)
