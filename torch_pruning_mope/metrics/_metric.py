"""Metrics Z: embeddings in, one number out, higher is better.

Axes: ``K`` ablations run together, ``I`` images, ``N`` captions, ``J`` joint embedding.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from numbers import Real

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import MetricError, NonFiniteError

_TILE = 1 << 24
"""Similarities held at once."""

MetricFunction = Callable[[Tensor, Tensor], float]


class Metric(ABC):
    """A zero-shot metric on the embeddings of images and captions.

    Kept results are known again by its type and attributes, or by a ``key`` attribute if it has one.
    """

    name: str

    @abstractmethod
    def per_image(
        self, images: Float[Tensor, "#K I J"], texts: Float[Tensor, "#K N J"], image_index: Int[Tensor, "N"]
    ) -> Float[Tensor, "K I"] | None:
        """Each image's share of the metric: the metric is the mean over images. None if it has none; then override ``values``.

        Args:
            images: Image embeddings of each ablation, normalised; 1 instead of ``K`` if they are common to all.
            texts: Text embeddings likewise.
            image_index: The image that each caption describes.
        """

    def values(
        self, images: Float[Tensor, "#K I J"], texts: Float[Tensor, "#K N J"], image_index: Int[Tensor, "N"]
    ) -> list[float]:
        """Returns the metric of each ablation; arguments as in :meth:`per_image`, whose means these are by default."""
        shares = self.per_image(images, texts, image_index)
        return [] if shares is None else [float(value) for value in shares.double().mean(-1)]

    def __call__(
        self,
        image_embeddings: Float[Tensor, "I J"],
        text_embeddings: Float[Tensor, "N J"],
        image_index: Int[Tensor, "N"] | None = None,
    ) -> float:
        """Returns the metric of one model.

        Args:
            image_embeddings: Image embeddings, normalised or not.
            text_embeddings: Text embeddings, normalised or not.
            image_index: The image that each caption describes; by default caption j describes image j.

        Returns:
            The metric.

        Raises:
            NonFiniteError: If an embedding is NaN or infinite.
            ValueError: If ``image_index`` is missing and the numbers of images and captions differ.
        """
        if image_index is None:
            if len(image_embeddings) != len(text_embeddings):
                raise ValueError(
                    f"image_index is required when images ({len(image_embeddings)}) and captions "
                    f"({len(text_embeddings)}) differ in number: give the image that each caption describes."
                )
            image_index = torch.arange(len(text_embeddings), device=text_embeddings.device)
        images, texts = normalised(image_embeddings, "image"), normalised(text_embeddings, "text")
        return self.values(images[None], texts[None], image_index)[0]


class FunctionMetric(Metric):
    """Any callable on (image embeddings ``[I, J]``, text embeddings ``[N, J]``), both normalised, that returns a float."""

    def __init__(self, function: MetricFunction) -> None:
        self.function = function
        module = getattr(function, "__module__", None) or "?"
        self.name = f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"

    @property
    def key(self) -> str | None:
        """The callable's own ``key``, by which kept results are known again."""
        key: str | None = getattr(self.function, "key", None)
        return key

    def per_image(self, images: Tensor, texts: Tensor, image_index: Tensor) -> None:
        """None: shares are unknown, so that scores have no standard error."""

    def values(
        self,
        images: Float[Tensor, "#K I J"],
        texts: Float[Tensor, "#K N J"],
        image_index: Int[Tensor, "N"],  # noqa: ARG002
    ) -> list[float]:
        """Returns the callable's results, one ablation at a time."""
        count = max(len(images), len(texts))
        return [
            self._checked(self.function(image, text))
            for image, text in zip(
                images.expand(count, *images.shape[1:]), texts.expand(count, *texts.shape[1:]), strict=True
            )
        ]

    def _checked(self, value: object) -> float:
        if isinstance(value, Tensor):
            raise MetricError(
                f"metric {self.name} must return a float; found a tensor of shape {tuple(value.shape)}. Return .item()."
            )
        if isinstance(value, bool) or not isinstance(value, Real):
            raise MetricError(f"metric {self.name} must return a float; found {type(value).__name__}.")
        number = float(value)
        if not math.isfinite(number):
            raise MetricError(f"metric {self.name} must return a finite number; found {number}.")
        return number


def normalised(embeddings: Float[Tensor, "*K N J"], which: str) -> Float[Tensor, "*K N J"]:
    """Embeddings of unit length, in float32 at least; ``which`` of ``image`` and ``text`` is for the message."""
    if not torch.isfinite(embeddings).all():
        rows = (~torch.isfinite(embeddings)).any(-1).sum()
        raise NonFiniteError(
            f"{which} embeddings must be finite; found NaN or infinity in {int(rows)} of {embeddings.shape[:-1].numel()}. "
            "Check the weights, the images, and the precision of the model."
        )
    dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    return F.normalize(embeddings.to(dtype), dim=-1)


def tiles(rows: int, columns: int, count: int) -> Iterator[slice]:
    """Slices over ``rows`` such that ``count`` blocks of similarities to ``columns`` fit in memory together."""
    step = max(1, _TILE // max(1, columns * count))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))
