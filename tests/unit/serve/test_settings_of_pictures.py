"""The settings inside a picture, as a request that draws it again."""

from __future__ import annotations

import hashlib

import numpy as np

from sanakit.pipeline.picture_requests import EditRequest
from sanakit.pipeline.png import encode_png
from sanakit.pipeline.request import GenerateRequest
from sanakit.serve.app import request_in

PIXELS = np.zeros((64, 64, 3), np.uint8)


def test_files_that_the_command_edited_are_named_by_their_digests() -> None:
    image, mask = (hashlib.sha256(name).hexdigest() for name in (b"image", b"mask"))
    edit = EditRequest(
        image="a.png", image_sha256=image, mask="b.png", mask_sha256=mask, strength=0.5
    )
    drawn = GenerateRequest(prompt="a house", seed=3, edit=edit)
    found = request_in(encode_png(PIXELS, drawn.to_json()))
    assert (found.prompt, found.seed) == ("a house", 3)
    assert found.edit is not None
    assert (found.edit.image, found.edit.mask) == (f"sha256:{image}", f"sha256:{mask}")
    assert found.edit.strength == 0.5


def test_a_picture_that_the_server_edited_keeps_its_names() -> None:
    edit = {"image": "sha256:" + "0" * 64, "mask": None, "strength": 1.0, "expand": [0, 0, 0, 0]}
    found = request_in(encode_png(PIXELS, {"prompt": "a house", "seed": 3, "edit": edit}))
    assert found.edit is not None
    assert found.edit.model_dump(mode="json") == edit
