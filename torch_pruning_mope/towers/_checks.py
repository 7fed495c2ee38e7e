"""Checks of inputs that all towers share."""

from torch import Tensor


def check_tokens(tokens: Tensor, vocabulary: int | None, context: int) -> None:
    """Raises unless ``tokens`` are integer ids ``[N, T]`` below ``vocabulary`` (None: unknown), with ``T <= context``."""
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise ValueError(f"tokens must be integer ids [N, T]; found {tokens.dtype} of shape {tuple(tokens.shape)}.")
    most = int(tokens.max())
    if tokens.shape[1] > context or tokens.min() < 0 or (vocabulary is not None and most >= vocabulary):
        raise ValueError(
            f"tokens must be ids below {vocabulary}, at most {context} a caption; found ids {int(tokens.min())} to {most}, "
            f"{tokens.shape[1]} a caption. Use the tokenizer of this model."
        )


def check_images(images: Tensor, shape: tuple[int, ...]) -> None:
    """Raises unless each image has this shape."""
    if tuple(images.shape[1:]) != shape:
        raise ValueError(
            f"images must be {list(shape)} each; found {list(images.shape[1:])}. Models that take images of several sizes "
            "are scored and pruned at one: resize them."
        )
