"""Tensors become the pictures that they were made of."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from torch_pruning_mope import emoji_pairs, emoji_scenes
from torch_pruning_mope.report._changed import picture_levels, thumbnail, to_picture

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def test_emoji_scenes_come_back() -> None:
    images, scenes = emoji_pairs("test", 60).images, emoji_scenes("test", 60)
    levels = picture_levels(images)
    assert levels is not None
    for image, (pixels, _) in zip(images, scenes, strict=True):
        assert np.abs(np.asarray(to_picture(image, levels)).astype(int) - pixels).max() <= 3


def test_any_normalisation_is_undone() -> None:
    pixels = torch.randint(0, 256, (4, 3, 6, 5), generator=torch.Generator().manual_seed(0))
    pixels[0, :, 0, 0], pixels[0, :, 0, 1] = 0, 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    normalised = (pixels / 255 - mean) / std
    levels = picture_levels(normalised)
    assert levels is not None
    picture = to_picture(normalised[1], levels)
    assert torch.equal(torch.from_numpy(np.array(picture)).permute(2, 0, 1).long(), pixels[1])


def test_one_channel_is_grey_and_a_flat_image_is_a_picture() -> None:
    images = torch.zeros(2, 1, 4, 4)
    levels = picture_levels(images)
    assert levels is not None
    assert to_picture(images[0], levels).mode == "L"


@pytest.mark.parametrize("shape", [(2, 196, 768), (2, 4, 8, 8)])
def test_what_is_no_image_has_no_levels(shape: tuple[int, ...]) -> None:
    assert picture_levels(torch.zeros(shape)) is None


def test_thumbnails_are_small_and_never_larger_than_the_image() -> None:
    images = torch.rand(2, 3, 40, 80)
    levels = picture_levels(images)
    assert levels is not None
    sizes = [Image.open(io.BytesIO(base64.b64decode(thumbnail(images[0], levels, most)))).size for most in (20, 500)]
    assert sizes == [(20, 10), (80, 40)]
