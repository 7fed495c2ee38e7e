"""Zero-shot retrieval, as CLIP-like models are compared by it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..data import DescribedBatch, ImagePairs, Pairs, ShardedPairs, check_batch, described_batches
from ..dual_encoder import DualEncoder
from ..metrics import image_to_text_ranks, text_to_image_ranks
from ._embedder import Embedder

PairsLike = Pairs | ImagePairs | ShardedPairs | Iterable[object]


@dataclass(frozen=True)
class RetrievalResult:
    """What was found, and of what.

    Attributes:
        recalls: ``i2t_r1``, ``t2i_r1`` and so on, in percent: the queries whose right answer is among the first k. An image is
            found if any of its captions is.
        lost_to_ties: By the same names, how many queries miss only because a wrong answer is exactly as similar as the right
            one. Such ties count against the model; other tools let some of them pass.
        images: How many images there are.
        captions: How many captions.
        skipped: Samples that could not be read, and entries without image or caption.
    """

    recalls: Mapping[str, float]
    lost_to_ties: Mapping[str, int]
    images: int
    captions: int
    skipped: int = 0

    @property
    def recall_mean(self) -> float:
        """The mean of all recalls, in percent; with R@1, R@5 and R@10 it is what MoPE-CLIP calls Recall Mean."""
        return sum(self.recalls.values()) / len(self.recalls)

    def to_dict(self) -> dict[str, float | int | dict[str, int]]:
        """All of it as JSON has it, the recalls beside the rest."""
        return {
            **self.recalls,
            "recall_mean": self.recall_mean,
            "images": self.images,
            "captions": self.captions,
            "skipped": self.skipped,
            "lost_to_ties": dict(self.lost_to_ties),
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
    """Recall of images and captions among all of each other, with every caption of an image.

    Datasets are read a batch at a time, and only embeddings are kept, so their size is no matter.

    Args:
        model: A wrapped model, or any that open_clip or transformers could run; left as it is.
        pairs: `Pairs`, what `open_pairs` returns, or batches ``(images, tokens)``, such as a DataLoader's.
        ks: Cut-offs.
        limit: How many images; None for all.
        batch_size: Inputs run at once.
        num_workers: Processes that read a dataset; 0 reads in this one.
        progress: Whether to show a progress bar.

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
    embed = Embedder(model)
    if isinstance(pairs, Pairs):
        pairs = pairs if limit is None else pairs.first(limit)
        images, texts = embed("image", pairs.images, batch_size), embed("text", pairs.tokens, batch_size)
        return result_of(images, texts, pairs.image_index.to(images.device), ks=ks)
    counter = SkipCounter(pairs)
    parts = [
        (embed("image", batch.images, batch_size), embed("text", batch.tokens, batch_size), batch.counts)
        for batch in read_batches(pairs, limit, batch_size=batch_size, num_workers=num_workers, progress=progress)
    ]
    counts = torch.tensor([count for _, _, each in parts for count in each], dtype=torch.long)
    if len(counts) < 2:
        raise ValueError(f"pairs must hold at least two images; found {len(counts)}. Pass a few hundred.")
    index = torch.arange(len(counts)).repeat_interleave(counts).to(embed.device)
    return result_of(
        torch.cat([part[0] for part in parts]),
        torch.cat([part[1] for part in parts]),
        index,
        ks=ks,
        skipped=counter.skipped,
    )


def result_of(
    images: Float[Tensor, "I J"],
    texts: Float[Tensor, "N J"],
    image_index: Int[Tensor, "N"],
    *,
    ks: Sequence[int] = (1, 5, 10),
    skipped: int = 0,
) -> RetrievalResult:
    """Recalls of normalised embeddings.

    Args:
        images: Normalised image embeddings.
        texts: Normalised text embeddings.
        image_index: The image that each caption describes.
        ks: Cut-offs.
        skipped: To be noted in the result.

    Returns:
        The result.
    """
    recalls: dict[str, float] = {}
    lost: dict[str, int] = {}
    for way, ranks_of in (("i2t", image_to_text_ranks), ("t2i", text_to_image_ranks)):
        ranks = ranks_of(images[None], texts[None], image_index)[0]
        best = ranks_of(images[None], texts[None], image_index, ties_help=True)[0]
        for k in ks:
            recalls[f"{way}_r{k}"] = 100 * int((ranks < k).sum()) / len(ranks)
            lost[f"{way}_r{k}"] = int(((best < k) & (ranks >= k)).sum())
    return RetrievalResult(recalls, lost, len(images), len(texts), skipped)


def read_batches(
    source: PairsLike, limit: int | None, *, batch_size: int, num_workers: int, progress: bool
) -> Iterator[DescribedBatch]:
    """Reads a dataset, or batches, up to a number of images.

    Args:
        source: What `open_pairs` returns, or batches ``(images, tokens)``.
        limit: How many images; None for all.
        batch_size: How many images a worker reads at a time.
        num_workers: Processes that read.
        progress: Whether to show a progress bar.

    Yields:
        Images with their captions.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(source, ImagePairs | ShardedPairs):
        yield from described_batches(source, limit, batch_size=batch_size, num_workers=num_workers, progress=progress)
        return
    if not isinstance(source, Iterable):
        raise TypeError(
            f"pairs must be Pairs, what open_pairs returns, or batches (images, tokens); found {type(source).__name__}."
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


class SkipCounter:
    """Counts what a dataset skips from now on, besides the entries that it left out when it was opened.

    Args:
        source: A dataset, or anything else, of which nothing is known.
    """

    def __init__(self, source: object) -> None:
        self._source = source
        # Shards count a sample each time that it is met, image files once.
        self._before = source.skipped.samples if isinstance(source, ShardedPairs) else 0

    @property
    def skipped(self) -> int:
        """How many samples."""
        if not isinstance(self._source, ImagePairs | ShardedPairs):
            return 0
        return self._source.dropped.samples + self._source.skipped.samples - self._before
