"""Zero-shot accuracy: each image goes to the class whose prompts it is nearest to."""

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ._metric import Metric, tiles


def class_ranks(
    images: Float[Tensor, "#K I J"], classes: Float[Tensor, "#K C J"], labels: Int[Tensor, "I"]
) -> Int[Tensor, "K I"]:
    """For each image, the number of wrong classes that come before its own; 0 is best."""
    # A tie goes to the class that comes first, as `argmax` has it. A model that has collapsed then has the accuracy of
    # chance, and classes of one name, of which ImageNet has two pairs, count as they do elsewhere.
    ranks = []
    earlier = torch.arange(classes.shape[1], device=labels.device)
    for rows in tiles(images.shape[1], classes.shape[1], max(len(images), len(classes))):
        similarity = images[:, rows] @ classes.mT
        label = labels[rows].view(1, -1, 1)
        own = similarity.gather(-1, label.expand(len(similarity), -1, 1))
        ranks.append(((similarity > own) | ((similarity == own) & (earlier < label))).sum(-1))
    return torch.cat(ranks, dim=-1)


class ZeroShotAccuracy(Metric):
    """Zero-shot accuracy as the metric Z, a share in [0, 1] (MoPE-CLIP, arXiv 2403.07839, for classification).

    The captions of the pairs are prompts of the class of their image, such as "a photo of a dog". A class is the normalised
    mean of its prompts' normalised embeddings (CLIP, arXiv 2103.00020), so an image may have one prompt or one per template.
    """

    def __init__(self, labels: Sequence[int] | Int[Tensor, "I"], *, top: int = 1) -> None:
        found = torch.as_tensor(labels).cpu().long()
        if top < 1:
            raise ValueError(f"top must be at least 1; found {top}.")
        classes, self._labels = found.unique(return_inverse=True)
        if found.ndim != 1 or len(classes) < 2:
            raise ValueError(
                f"labels must be one integer per image, of at least two classes; found shape {list(found.shape)} with "
                f"{len(classes)} classes. Take images of more classes."
            )
        self.top = top
        self.name = "accuracy" if top == 1 else f"accuracy@{top}"
        self.labels = hashlib.sha256(str(found.tolist()).encode()).hexdigest()
        """SHA-256 of the labels."""

    def per_image(
        self, images: Float[Tensor, "#K I J"], texts: Float[Tensor, "#K N J"], image_index: Int[Tensor, "N"]
    ) -> Float[Tensor, "K I"]:
        """Each image's hit, 0 or 1, on the CPU: MPS has no double precision."""
        if len(self._labels) != images.shape[1]:
            raise ValueError(
                f"labels must be one integer per image; found {len(self._labels)} for {images.shape[1]} images. Give those of "
                "these images, in their order."
            )
        labels = self._labels.to(images.device)
        prompts = texts.new_zeros(len(texts), int(labels.max()) + 1, texts.shape[-1])
        classes = F.normalize(prompts.index_add(1, labels[image_index], texts), dim=-1)
        return (class_ranks(images, classes, labels).cpu() < self.top).double()
