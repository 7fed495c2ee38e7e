"""L_itc, the losses that need no teacher: CLIP's and SigLIP's."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ._checks import check_embeddings, logits, owners, scalar
from ._gather import BatchLoss, Rows, gathered, summed


class InfoNCELoss(BatchLoss):
    """L_itc: the symmetric contrastive loss of CLIP (arXiv 2103.00020), over the batches of all ranks.

    Where an image has several captions, each is contrasted with the captions of *other* images, and the loss is the mean
    over captions: the loss of :class:`torch_pruning_mope.metrics.ContrastiveLoss`. An image without a caption is contrasted
    with.
    """

    def forward(
        self,
        images: Float[Tensor, "I J"],
        texts: Float[Tensor, "N J"],
        logit_scale: float | Float[Tensor, "..."],
        image_index: Int[Tensor, "N"] | None = None,
    ) -> Float[Tensor, ""]:
        """Returns the loss of the whole batch, in nats."""
        check_embeddings(images, texts)
        owner, scale = owners(image_index, images, texts), scalar(logit_scale, "logit_scale", images)
        share = info_nce(gathered(images, "images", self.group), gathered(texts, "texts", self.group), owner, scale)
        return summed(share, self.group)


class SigmoidLoss(BatchLoss):
    """L_itc of SigLIP (arXiv 2303.15343): logistic loss of every image with every caption, of all ranks.

    An image and each of its captions are a pair. The sum is divided by the number of captions.
    """

    def forward(
        self,
        images: Float[Tensor, "I J"],
        texts: Float[Tensor, "N J"],
        logit_scale: float | Float[Tensor, "..."],
        logit_bias: float | Float[Tensor, "..."],
        image_index: Int[Tensor, "N"] | None = None,
    ) -> Float[Tensor, ""]:
        """Returns the loss of the whole batch, in nats."""
        check_embeddings(images, texts)
        owner, scale = owners(image_index, images, texts), scalar(logit_scale, "logit_scale", images)
        bias = scalar(logit_bias, "logit_bias", images, positive=False)
        rows = gathered(images, "images", self.group), gathered(texts, "texts", self.group)
        return summed(sigmoid(*rows, owner, scale, bias), self.group)


def _captions(texts: Rows) -> Tensor:
    """Positions of this rank's captions among all."""
    return torch.arange(texts.start, texts.start + len(texts.own), device=texts.own.device)


def info_nce(images: Rows, texts: Rows, owner: Tensor, scale: Tensor) -> Tensor:
    """This rank's share of L_itc: its captions' terms, over the number of all captions."""
    right = images.start + owner
    text_to_image = F.cross_entropy(logits(texts.own, images.all, scale), right, reduction="sum")
    similarities = logits(images.own, texts.all, scale)
    own = owner, _captions(texts)
    mask = torch.zeros_like(similarities, dtype=torch.bool)
    mask[own] = True
    others = similarities.masked_fill(mask, -torch.inf).logsumexp(-1)[owner]
    image_to_text = -F.logsigmoid(similarities[own] - others).sum()
    return (image_to_text + text_to_image) / (2 * len(texts.all))


def sigmoid(images: Rows, texts: Rows, owner: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """This rank's share of SigLIP's loss: its images' terms, over the number of all captions."""
    similarities = logits(images.own, texts.all, scale) + bias
    sign = -torch.ones_like(similarities)
    sign[owner, _captions(texts)] = 1
    return -F.logsigmoid(sign * similarities).sum() / len(texts.all)
