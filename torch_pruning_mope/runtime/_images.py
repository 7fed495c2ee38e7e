"""Pictures to the inputs of an image encoder, with Pillow and NumPy."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .._io import typed
from ..errors import ModelLoadError

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_MOST = 2**13


@dataclass(frozen=True)
class Described:
    """The object ``preprocessing`` of ``deployment.json``."""

    resize: Literal["fit", "shortest", "squash"]
    resize_to: int
    size: tuple[int, ...]
    interpolation: Literal["bicubic", "bilinear"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes, lengths = (*self.size, self.resize_to), (len(self.size), len(self.mean), len(self.std))
        if lengths != (2, 3, 3) or not all(0 < size <= _MOST for size in sizes) or not all(self.std):
            raise TypeError(
                f"sizes must be 1 to {_MOST}, and deviations not 0, for three channels; found {self!r:.200}"
            )


class Preprocess:
    """Turns a picture into ``float32 [3, H, W]``, as ``deployment.json`` describes it.

    ``fit`` cuts the middle of the picture to the target's aspect and resizes that; ``shortest`` resizes the short side to
    ``resize_to`` and cuts the middle; ``squash`` resizes both sides. Then ``(value / 255 - mean) / std`` per channel.
    """

    def __init__(self, described: Any) -> None:
        try:
            self.described: Described = typed(Described, described, "preprocessing")
        except TypeError as error:
            raise ModelLoadError(
                f"preprocessing must be as FORMAT.md of the package describes it; found: {error}."
            ) from error
        self._height, self._width = self.described.size
        self._resample = RESAMPLING[self.described.interpolation]
        self._mean, self._std = (
            np.array(part, np.float32)[:, None, None] for part in (described["mean"], described["std"])
        )

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Returns the picture ``[3, H, W]``."""
        pixels = np.asarray(self._resized(image.convert("RGB")), np.float32).transpose(2, 0, 1) / np.float32(255)
        return np.ascontiguousarray((pixels - self._mean) / self._std)

    def _resized(self, image: Image.Image) -> Image.Image:
        size = self._width, self._height
        if self.described.resize == "fit":
            return ImageOps.fit(image, size, self._resample)
        if self.described.resize == "squash":
            return image.resize(size, self._resample)
        short = self.described.resize_to
        width, height = image.size
        if width <= height:
            resized = image.resize((short, int(short * height / width)), self._resample)
        else:
            resized = image.resize((int(short * width / height), short), self._resample)
        left = round((resized.width - self._width) / 2)
        top = round((resized.height - self._height) / 2)
        return resized.crop((left, top, left + self._width, top + self._height))
