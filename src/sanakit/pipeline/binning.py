"""Draw at the nearest size that a model was trained at, then cut to what was asked.

Source: reference 3.12.
"""

from __future__ import annotations

import torch.nn.functional as F

from sanakit.shapes import Image


def cut_to(image: Image, height: int, width: int) -> Image:
    """Scale a picture to cover a size, bilinearly, and cut its centre out."""
    have_height, have_width = image.shape[-2:]
    if (have_height, have_width) == (height, width):
        return image
    ratio = max(height / have_height, width / have_width)
    size = (int(have_height * ratio), int(have_width * ratio))
    scaled = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return scaled[:, :, top : top + height, left : left + width]
