"""Zero-shot retrieval: recall at k of images and captions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..data import DescribedBatch, ImagePairs, Pairs, ShardedPairs, check_batch, described_batches
from ..dual_encoder import DualEncoder
from ..metrics import image_to_text_ranks, text_to_image_ranks
from ._open_clip import OpenClipModel

PairsLike = Pairs | ImagePairs | ShardedPairs | Iterable[object]


@dataclass(frozen=True)
class RetrievalResult:
    """Recalls, and the numbers behind them.

    Attributes:
        recalls: ``i2t_r1``, ``t2i_r1`` and so on, in percent: queries whose right answer is among the first k. An image finds
            its answer with any of its captions. A tie counts against the model; other tools let some ties pass.
        images: Number of images.
        captions: Number of captions.
        skipped: Samples that could not be read, and entries without image or caption.
    """

    recalls: Mapping[str, float]
    images: int
    captions: int
    skipped: int = 0

    @property
    def recall_mean(self) -> float:
        """Mean of all recalls, in percent; with R@1, R@5 and R@10, MoPE-CLIP's Recall Mean."""
        return sum(self.recalls.values()) / len(self.recalls)

    def to_dict(self) -> dict[str, float | int]:
        """Returns plain JSON, with the recalls beside the rest."""
        return {
            **self.recalls,
            "recall_mean": self.recall_mean,
            "images": self.images,
            "captions": self.captions,
            "skipped": self.skipped,
        }


def evaluate_retrieval(
    model: DualEncoder | nn.Module,
    pairs: PairsLike,
    *,
    ks: Sequence[int] = (1, 5, 10),
    limit: int | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
) -> RetrievalResult:
    """Measures recall of images and captions among all of each other, with every caption of an image.

    Datasets are read batch by batch, and only embeddings are kept.

    Args:
        model: A wrapped model, or any that open_clip or transformers could run; left as it is.
        pairs: `Pairs`, a dataset of `open_pairs`, or batches ``(images, tokens)``, such as a DataLoader's.
        ks: Cut-offs.
        limit: Number of images; None for all.
        batch_size: Inputs run at once.
        num_workers: Processes that read a dataset; 0 reads in this one.
        progress: Shows a progress bar.

    Returns:
        The recalls and the counts behind them.

    Raises:
        ValueError: If ``ks``, ``limit`` or ``batch_size`` is out of range, or there are fewer than two images.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be cut-offs of at least 1; found {tuple(ks)}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; found {batch_size}.")
    if limit is not None and limit < 2:
        raise ValueError(f"limit must be at least two images, which retrieval needs; found {limit}.")
    encoders = OpenClipModel(model)
    embed = encoders.embed
    if isinstance(pairs, Pairs):
        pairs = pairs if limit is None else pairs.first(limit)
        images, texts = embed("image", pairs.images, batch_size), embed("text", pairs.tokens, batch_size)
        return result_of(images, texts, pairs.image_index.to(images.device), ks=ks)
    parts = [
        (embed("image", batch.images, batch_size), embed("text", batch.tokens, batch_size), batch.counts)
        for batch in read_batches(pairs, limit, batch_size=batch_size, num_workers=num_workers, progress=progress)
    ]
    counts = torch.tensor([count for _, _, each in parts for count in each], dtype=torch.long)
    if len(counts) < 2:
        raise ValueError(f"pairs must hold at least two images; found {len(counts)}. Pass a few hundred.")
    index = torch.arange(len(counts)).repeat_interleave(counts).to(encoders.device)
    return result_of(
        torch.cat([part[0] for part in parts]),
        torch.cat([part[1] for part in parts]),
        index,
        ks=ks,
        skipped=skipped_of(pairs),
    )


def result_of(
    images: Float[Tensor, "I J"],
    texts: Float[Tensor, "N J"],
    image_index: Int[Tensor, "N"],
    *,
    ks: Sequence[int] = (1, 5, 10),
    skipped: int = 0,
) -> RetrievalResult:
    """Returns the recalls of normalised embeddings."""
    recalls: dict[str, float] = {}
    for way, ranks_of in (("i2t", image_to_text_ranks), ("t2i", text_to_image_ranks)):
        ranks = ranks_of(images[None], texts[None], image_index)[0]
        for k in ks:
            recalls[f"{way}_r{k}"] = 100 * int((ranks < k).sum()) / len(ranks)
    return RetrievalResult(recalls, len(images), len(texts), skipped)


def read_batches(
    source: PairsLike, limit: int | None, *, batch_size: int, num_workers: int, progress: bool
) -> Iterator[DescribedBatch]:
    """Yields images with their captions, from a dataset or from batches, up to a number of images."""
    if isinstance(source, ImagePairs | ShardedPairs):
        yield from described_batches(source, limit, batch_size=batch_size, num_workers=num_workers, progress=progress)
        return
    if not isinstance(source, Iterable):
        raise TypeError(
            f"pairs must be Pairs, a dataset of open_pairs, or batches (images, tokens); found {type(source).__name__}."
        )
    seen = 0
    for batch in source:
        images, tokens = check_batch(batch)
        counts = [tokens.shape[1] if tokens.ndim == 3 else 1] * len(images)
        found = DescribedBatch(images, tokens.flatten(0, -2), counts)
        found = found if limit is None else found.first(limit - seen)
        seen += len(found.counts)
        yield found
        if seen == limit:
            return


def skipped_of(source: object) -> int:
    """Returns the number of samples that a dataset left out when it was opened, and in the last pass; 0 of anything else."""
    if not isinstance(source, ImagePairs | ShardedPairs):
        return 0
    return source.dropped.samples + source.skipped.samples
