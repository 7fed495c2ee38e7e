"""Pictures for people from the tensors that a model takes."""

import base64
import io

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

Levels = tuple[Float[Tensor, "C"], Float[Tensor, "C"]]
"""The values of black and of white in each channel."""


def picture_levels(images: Shaped[Tensor, "I ..."]) -> Levels | None:
    """Black and white of normalised images ``[I, C, H, W]``, as their extreme values; None unless of 1 or 3 channels."""
    if images.ndim != 4 or images.shape[1] not in {1, 3}:
        return None
    flat = images.detach().float().cpu().transpose(0, 1).flatten(1)
    return flat.amin(1), flat.amax(1)


def to_picture(image: Shaped[Tensor, "C H W"], levels: Levels) -> Image.Image:
    """An 8-bit picture of one image, grey if it has one channel."""
    low, high = (level[:, None, None] for level in levels)
    shares = (image.detach().float().cpu() - low) / (high - low).clamp_min(1e-12)
    pixels = (255 * shares.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def thumbnail(image: Shaped[Tensor, "C H W"], levels: Levels, most: int) -> str:
    """A PNG of at most ``most`` pixels on a side, in base64."""
    picture = to_picture(image, levels)
    picture.thumbnail((most, most))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
