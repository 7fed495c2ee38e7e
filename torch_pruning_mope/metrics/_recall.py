"""Retrieval recall, with several captions per image, where ties never help.

A pair's rank counts the wrong candidates whose similarity is *at or above* that of the right one. Embeddings that have
collapsed to one point therefore find nothing, instead of everything.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ._metric import Metric, tiles


def image_to_text_ranks(
    images: Float[Tensor, "#K I J"], texts: Float[Tensor, "#K N J"], image_index: Int[Tensor, "N"]
) -> Int[Tensor, "K I"]:
    """For each image, the number of wrong captions that come no later than its best caption; 0 is best."""
    ranks = []
    for rows in tiles(images.shape[1], texts.shape[1], max(len(images), len(texts))):
        similarity = images[:, rows] @ texts.mT
        right = image_index[None, :] == torch.arange(rows.start, rows.stop, device=image_index.device)[:, None]
        best = similarity.masked_fill(~right, -torch.inf).amax(-1, keepdim=True)
        ranks.append(((similarity >= best) & ~right).sum(-1))
    return torch.cat(ranks, dim=-1)


def text_to_image_ranks(
    images: Float[Tensor, "#K I J"], texts: Float[Tensor, "#K N J"], image_index: Int[Tensor, "N"]
) -> Int[Tensor, "K N"]:
    """For each caption, the number of wrong images that come no later than its own; see :func:`image_to_text_ranks`."""
    ranks = []
    for rows in tiles(texts.shape[1], images.shape[1], max(len(images), len(texts))):
        similarity = texts[:, rows] @ images.mT
        own = similarity.gather(-1, image_index[rows].view(1, -1, 1).expand(len(similarity), -1, 1))
        ranks.append((similarity >= own).sum(-1) - 1)
    return torch.cat(ranks, dim=-1)


class Recall(Metric):
    """Retrieval recall, averaged over cut-offs and directions, as a share in [0, 1].

    ``Recall()`` is Recall Mean, the metric Z of MoPE-CLIP (arXiv 2403.07839): R@1, R@5 and R@10 of both directions.
    """

    def __init__(self, ks: Sequence[int] = (1, 5, 10), directions: Sequence[str] = ("i2t", "t2i")) -> None:
        if not ks or min(ks) < 1:
            raise ValueError(f"ks must be cut-offs of at least 1; found {tuple(ks)}.")
        if not directions or set(directions) - {"i2t", "t2i"}:
            raise ValueError(f"directions must be 'i2t', 't2i' or both; found {tuple(directions)!r}.")
        self.ks = tuple(ks)
        self.directions = tuple(directions)
        both = "" if len(self.directions) == 2 else f":{self.directions[0]}"
        self.name = "recall_mean" if (self.ks, both) == ((1, 5, 10), "") else f"recall@{','.join(map(str, ks))}{both}"

    def per_image(
        self, images: Float[Tensor, "#K I J"], texts: Float[Tensor, "#K N J"], image_index: Int[Tensor, "N"]
    ) -> Float[Tensor, "K I"]:
        """Each image's hits and its captions', scaled so that the mean over images is that over captions; on the CPU."""
        shares = []
        if "i2t" in self.directions:
            shares.append(self._hits(image_to_text_ranks(images, texts, image_index)))
        if "t2i" in self.directions:
            hits = self._hits(text_to_image_ranks(images, texts, image_index))
            per_image = hits.new_zeros(len(hits), images.shape[1]).index_add_(1, image_index.cpu(), hits)
            shares.append(per_image * (images.shape[1] / texts.shape[1]))
        return torch.stack(shares).mean(0)

    def _hits(self, ranks: Int[Tensor, "K Q"]) -> Float[Tensor, "K Q"]:
        # On the CPU, because MPS has no double precision.
        return (ranks.cpu()[..., None] < torch.tensor(self.ks)).double().mean(-1)
