"""Images and the captions that describe them, on which metrics are computed."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False, init=False)
class Pairs:
    """Images `[I, ...]`, tokens `[N, context]` of their captions, and the image `image_index[j]` of each caption j.

    Without an index, caption j describes image j.

    Raises:
        TypeError: Images, tokens or the index are not tensors.
        ValueError: There are fewer than two images or captions, the index does not fit, or an image has no caption.
    """

    images: Tensor
    tokens: Tensor
    image_index: Tensor

    def __init__(self, images: Tensor, tokens: Tensor, image_index: Tensor | None = None) -> None:
        _check_tensor("images", images)
        _check_tensor("tokens", tokens)
        if tokens.ndim != 2 or not _holds_integers(tokens):
            raise ValueError(f"tokens must be integers [captions, context]; found {_describe(tokens)}.")
        if image_index is None:
            if len(images) != len(tokens):
                raise ValueError(
                    f"image_index must be given when images and captions differ in number; found {len(images)} images and "
                    f"{len(tokens)} captions. Pass the image of each caption."
                )
            image_index = torch.arange(len(tokens), device=tokens.device)
        for name, value in (("images", images), ("tokens", tokens), ("image_index", image_index)):
            _check_tensor(name, value)
            if len(value) < 2 and name != "image_index":
                found = "no calibration pairs" if len(value) == 0 else "one pair"
                raise ValueError(
                    f"{name} must be at least two; found {found}. Pass a few hundred images with captions."
                )
            object.__setattr__(self, name, value)  # a frozen dataclass is set up this way
        self._check_index()

    def _check_index(self) -> None:
        index = self.image_index
        if index.shape != self.tokens.shape[:1] or not _holds_integers(index):
            raise ValueError(
                f"image_index must hold one integer per caption; found {_describe(index)} for {len(self.tokens)} captions."
            )
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= len(self.images):
            raise ValueError(f"image_index must lie in 0..{len(self.images) - 1}; found {low}..{high}.")
        missing = int((torch.bincount(index.long(), minlength=len(self.images)) == 0).sum())
        if missing:
            raise ValueError(
                f"image_index must have a caption for every image; found {missing} of {len(self.images)} without. Drop these."
            )

    @property
    def num_images(self) -> int:
        """Number of images, I."""
        return len(self.images)

    @property
    def num_captions(self) -> int:
        """Number of captions, N."""
        return len(self.tokens)

    @classmethod
    def coerce(cls, pairs: "Pairs | Iterable[object]") -> "Pairs":
        """Returns pairs unchanged, and collects anything else with `from_batches`, whose errors it raises."""
        return pairs if isinstance(pairs, Pairs) else cls.from_batches(pairs)

    @classmethod
    def from_batches(cls, batches: Iterable[object]) -> "Pairs":
        """Returns all batches `(images [B, ...], tokens [B, context])`, as open_clip's loaders yield them, as one.

        Tokens `[B, C, context]` stand for C captions of each image.

        Raises:
            TypeError: `batches` cannot be iterated, or yields something other than two tensors.
            ValueError: `batches` yields fewer than two pairs, or a batch with unequal numbers of images and captions.
        """
        if not isinstance(batches, Iterable):
            raise TypeError(
                f"pairs must be Pairs or an iterable of batches (images, tokens); found {type(batches).__name__}."
            )
        images, tokens, owners, seen = [], [], [], 0
        for batch in batches:
            batch_images, batch_tokens = check_batch(batch)
            captions_each = batch_tokens.shape[1] if batch_tokens.ndim == 3 else 1
            images.append(batch_images)
            tokens.append(batch_tokens.flatten(0, -2))
            owners.append(torch.arange(seen, seen + len(batch_images)).repeat_interleave(captions_each))
            seen += len(batch_images)
        if seen == 0:
            raise ValueError("pairs must be at least two; found no calibration pairs. Pass a few hundred.")
        _check_same_shapes("images", images)
        _check_same_shapes("tokens", tokens)
        return cls(torch.cat(images), torch.cat(tokens), torch.cat(owners).to(tokens[0].device))

    def first(self, num_images: int) -> "Pairs":
        """Returns the first images with all their captions; all if there are no more."""
        captions = self.image_index < num_images
        return Pairs(self.images[:num_images], self.tokens[captions.to(self.tokens.device)], self.image_index[captions])

    def to(self, device: torch.device | str) -> "Pairs":
        """Returns a copy on another device; it shares memory if it is there already."""
        return Pairs(self.images.to(device), self.tokens.to(device), self.image_index.to(device))

    def batches(self, batch_size: int) -> Iterator[tuple[Float[Tensor, "B ..."], Int[Tensor, "B context"]]]:
        """Iterates over images with the first caption of each, for contrastive training.

        Yields:
            Up to `batch_size` images and as many rows of tokens, in the order of the images.

        Raises:
            ValueError: The batch size is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; found {batch_size}.")
        positions = torch.arange(self.num_captions, device=self.image_index.device)
        first = torch.full((self.num_images,), self.num_captions, device=positions.device)
        first.scatter_reduce_(0, self.image_index.long(), positions, reduce="amin")
        first = first.to(self.tokens.device)
        for start in range(0, self.num_images, batch_size):
            yield self.images[start : start + batch_size], self.tokens[first[start : start + batch_size]]

    def fingerprint(self) -> str:
        """Returns the SHA-256 over shapes, types and bytes, in hexadecimal; the same on every device."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.tokens, self.image_index):
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _holds_integers(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor; found {type(value).__name__}.")
    if value.ndim == 0:
        raise ValueError(f"{name} must have a first axis of pairs; found a scalar.")


def check_batch(batch: object) -> tuple[Tensor, Tensor]:
    """Returns images and tokens of a batch; raises TypeError or ValueError if it is none."""
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        parts = [type(part).__name__ for part in batch] if isinstance(batch, tuple | list) else type(batch).__name__
        raise TypeError(f"pairs must be batches (images, tokens) of tensors; found {parts}.")
    images, tokens = batch
    if tokens.ndim not in {2, 3} or images.ndim == 0 or len(images) != len(tokens):
        raise ValueError(
            f"pairs must be batches with tokens [B, context] or [B, C, context] for B images; found images "
            f"{list(images.shape)} and tokens {list(tokens.shape)}."
        )
    return images, tokens


def _check_same_shapes(name: str, parts: list[Tensor]) -> None:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"{name} must have the same shape after the first axis in all batches; found {sorted(shapes)}. Resize or pad them."
        )
