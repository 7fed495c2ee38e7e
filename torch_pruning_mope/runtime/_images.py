"""Pictures to the inputs of an image encoder, with Pillow and NumPy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..errors import ModelLoadError

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZES = ("fit", "shortest", "squash")
_MOST = 2**13


class Preprocess:
    """Turns a picture into ``float32 [3, H, W]``, as ``deployment.json`` describes it.

    ``fit`` cuts the middle of the picture to the target's aspect and resizes that; ``shortest`` resizes the short side to
    ``resize_to`` and cuts the middle; ``squash`` resizes both sides. Then ``(value / 255 - mean) / std`` per channel.
    """

    def __init__(self, described: Any) -> None:
        if not _is_sound(described):
            raise ModelLoadError(
                f"preprocessing must be as FORMAT.md of the package describes it; found {described!r:.200}."
            )
        self.described: Mapping[str, Any] = described
        self._height, self._width = described["size"]
        self._resample = RESAMPLING[described["interpolation"]]
        self._mean, self._std = (np.array(described[key], np.float32)[:, None, None] for key in ("mean", "std"))

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Returns the picture ``[3, H, W]``."""
        pixels = np.asarray(self._resized(image.convert("RGB")), np.float32).transpose(2, 0, 1) / np.float32(255)
        return np.ascontiguousarray((pixels - self._mean) / self._std)

    def _resized(self, image: Image.Image) -> Image.Image:
        size = self._width, self._height
        if self.described["resize"] == "fit":
            return ImageOps.fit(image, size, self._resample)
        if self.described["resize"] == "squash":
            return image.resize(size, self._resample)
        short = self.described["resize_to"]
        width, height = image.size
        if width <= height:
            resized = image.resize((short, int(short * height / width)), self._resample)
        else:
            resized = image.resize((int(short * width / height), short), self._resample)
        left = round((resized.width - self._width) / 2)
        top = round((resized.height - self._height) / 2)
        return resized.crop((left, top, left + self._width, top + self._height))


def _is_sound(described: Any) -> bool:
    if not isinstance(described, dict):
        return False
    size, numbers = described.get("size"), (described.get("mean"), described.get("std"))
    return (
        described.get("resize") in RESIZES
        and described.get("interpolation") in RESAMPLING
        and isinstance(size, list)
        and len(size) == 2
        and all(_is_size(side) for side in (*size, described.get("resize_to")))
        and all(
            isinstance(values, list) and len(values) == 3 and all(isinstance(value, int | float) for value in values)
            for values in numbers
        )
        and all(described["std"])
    )


def _is_size(side: Any) -> bool:
    return type(side) is int and 0 < side <= _MOST
