"""What all text towers ask of their inputs."""

from torch import Tensor


def check_tokens(tokens: Tensor, vocabulary: int, context: int) -> None:
    """Integer token ids in range, no longer than the context.

    Args:
        tokens: What should be ``[N, T]``.
        vocabulary: Number of ids.
        context: Most tokens of a caption.

    Raises:
        ValueError: Otherwise.
    """
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise ValueError(f"tokens must be integer ids [N, T]; found {tokens.dtype} of shape {tuple(tokens.shape)}.")
    if tokens.shape[1] > context or tokens.min() < 0 or tokens.max() >= vocabulary:
        raise ValueError(
            f"tokens must be ids below {vocabulary}, at most {context} a caption; found ids {int(tokens.min())} to "
            f"{int(tokens.max())}, {tokens.shape[1]} a caption. Use the tokenizer of this model."
        )
