"""The contrastive loss as a smooth metric, and as the training loss that gradients are taken of."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ._metric import Metric


def contrastive_losses(
    images: Float[Tensor, "#K I J"],
    texts: Float[Tensor, "#K N J"],
    image_index: Int[Tensor, "N"],
    logit_scale: float | Tensor,
) -> Float[Tensor, "K I"]:
    """Symmetric InfoNCE of each image with all the others (CLIP, arXiv 2103.00020)."""
    # Where an image has several captions, each is contrasted with the captions of *other* images, and the image's loss
    # is scaled so that the mean over images weighs captions equally.
    logits = logit_scale * (images @ texts.mT)
    own = image_index.view(1, 1, -1).expand(len(logits), 1, -1)
    right = logits.gather(1, own)[:, 0]
    text_to_image = logits.logsumexp(1) - right
    captions = image_index[None, :] == torch.arange(images.shape[1], device=image_index.device)[:, None]
    others = logits.masked_fill(captions, -torch.inf).logsumexp(-1)[:, image_index]
    image_to_text = torch.logaddexp(right, others) - right
    per_image = torch.zeros_like(logits[..., 0]).index_add(1, image_index, (image_to_text + text_to_image) / 2)
    return per_image * (images.shape[1] / texts.shape[1])


class ContrastiveLoss(Metric):
    """Minus the symmetric contrastive loss over all pairs, so that higher is better."""

    name = "contrastive_loss"

    def __init__(self, logit_scale: float = 100.0) -> None:
        self.logit_scale = float(logit_scale)

    def per_image(
        self, images: Float[Tensor, "#K I J"], texts: Float[Tensor, "#K N J"], image_index: Int[Tensor, "N"]
    ) -> Float[Tensor, "K I"]:
        """Minus each image's loss, on the CPU: MPS has no double precision."""
        count = max(len(images), len(texts))
        images, texts = images.expand(count, -1, -1), texts.expand(count, -1, -1)
        return -torch.cat(
            [
                contrastive_losses(images[k : k + 1], texts[k : k + 1], image_index, self.logit_scale).cpu().double()
                for k in range(count)
            ]
        )
