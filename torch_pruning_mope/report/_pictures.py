"""From the tensors that a model sees back to pictures that people see."""

import io
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

Levels = tuple[Float[Tensor, "C"], Float[Tensor, "C"]]
"""What stands for black and for white in each channel."""


def picture_levels(
    images: Shaped[Tensor, "I ..."], mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Levels | None:
    """What stands for black and for white in each channel of normalised images.

    Args:
        images: Images, ``[I, C, height, width]``.
        mean: What was subtracted from each channel, which went from 0 to 1.
        std: What it was divided by then. Without both, the lowest and highest value of a channel over all images, which undoes
            any normalisation if somewhere black and white occur.

    Returns:
        Both levels; None if the images are not of one or three channels, as patches are not.

    Raises:
        ValueError: If one of ``mean`` and ``std`` is given without the other, or not as one number per channel.
    """
    channels = images.shape[1] if images.ndim == 4 else 0
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std must be given both or neither; found {mean} and {std}.")
    if channels not in {1, 3}:
        return None
    if mean is None or std is None:
        flat = images.detach().float().cpu().transpose(0, 1).flatten(1)
        return flat.amin(1), flat.amax(1)
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ValueError(
            f"mean and std must hold one number per channel, {channels}, and std none below or at 0; found {list(mean)} and "
            f"{list(std)}."
        )
    middle, spread = torch.tensor(mean), torch.tensor(std)
    return -middle / spread, (1 - middle) / spread


def to_picture(image: Shaped[Tensor, "C H W"], levels: Levels) -> Image.Image:
    """A picture of one image.

    Args:
        image: The image as the model takes it.
        levels: From :func:`picture_levels`.

    Returns:
        An 8-bit picture, in grey for one channel.
    """
    low, high = (level[:, None, None] for level in levels)
    shares = (image.detach().float().cpu() - low) / (high - low).clamp_min(1e-12)
    pixels = (255 * shares.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def thumbnail(image: Shaped[Tensor, "C H W"], levels: Levels, most: int) -> bytes:
    """A small picture of one image, as PNG.

    Args:
        image: The image as the model takes it.
        levels: From :func:`picture_levels`.
        most: Pixels of the longer side; smaller images stay as they are.

    Returns:
        The file's bytes.
    """
    picture = to_picture(image, levels)
    picture.thumbnail((most, most))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
