"""Captions in words, from what a model sees of them."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor


def caption_of(tokens: Int[Tensor, "T"], tokenizer: object | None = None) -> str:
    """One caption in words, as far as a tokenizer can tell.

    Args:
        tokens: Its ids.
        tokenizer: open_clip's, transformers', or any with a method ``decode`` of ids.

    Returns:
        The words; without a tokenizer that decodes, the ids before the padding.
    """
    ids = [int(token) for token in tokens.tolist()]
    own = getattr(tokenizer, "tokenizer", tokenizer)  # open_clip wraps those of transformers
    decode = getattr(own, "decode", None)
    if decode is None:
        return "tokens " + " ".join(map(str, _before_padding(ids)))
    if not hasattr(own, "eot_token_id") and hasattr(own, "all_special_ids"):
        return str(decode(ids, skip_special_tokens=True)).strip()
    return str(decode(_between(ids, own))).strip()


def _before_padding(ids: Sequence[int]) -> Sequence[int]:
    """The ids without a last one that is 0 or repeated."""
    length = len(ids)
    if length > 1 and (ids[-1] == 0 or ids[-1] == ids[-2]):
        while length > 1 and ids[length - 1] == ids[-1]:
            length -= 1
    return ids[:length]


def _between(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """The ids after the start and before the end of the text, where a tokenizer of open_clip has such."""
    start, end = (getattr(tokenizer, f"{name}_token_id", None) for name in ("sot", "eot"))
    words = ids[: ids.index(end)] if end in ids else ids
    return [token for token in words if token != start]
