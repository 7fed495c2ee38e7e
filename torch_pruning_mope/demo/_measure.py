"""What a model costs and how well it retrieves."""

from typing import NamedTuple

import torch

from .._flops import count_multiply_adds
from .._state import evaluation_mode
from ..data import Pairs
from ..encoder import DualEncoder
from ..metrics import Recall
from ..scoring import PlainEngine


class Recalls(NamedTuple):
    """Recall@1 and @5 both ways, in percent; named as the columns of the table."""

    i2t_r1: float
    i2t_r5: float
    t2i_r1: float
    t2i_r5: float


def parameters(encoder: DualEncoder) -> int:
    """All parameters, token embeddings included."""
    return sum(parameter.numel() for parameter in encoder.model.parameters())


@torch.no_grad()
def multiply_adds(encoder: DualEncoder) -> int:
    """Multiply-adds of every convolution and matrix product for one image and one caption of full length.

    Torch-Pruning's ``count_ops_and_params`` (1.6.1) looks modules up by their exact class, and so misses both products
    inside attention, projections that are bare parameters, and out-projections, which PyTorch's attention makes of a
    subclass of ``nn.Linear``: a tenth of the tiny CLIP. Norms, activations and the softmax are not counted here.

    Args:
        encoder: The dual encoder; left as it is.

    Returns:
        The count.
    """
    inputs = encoder.example_inputs
    with evaluation_mode(encoder.model):
        images = count_multiply_adds(lambda: encoder.embed("image", inputs["images"]))
        return images + count_multiply_adds(lambda: encoder.embed("text", inputs["tokens"]))


def recalls(encoder: DualEncoder, pairs: Pairs, *, batch_size: int = 250) -> Recalls:
    """Retrieval recall on pairs that the model was neither trained nor scored on.

    Args:
        encoder: The dual encoder; left as it is.
        pairs: Test pairs.
        batch_size: Sequences run at once.

    Returns:
        The recalls.
    """
    run = PlainEngine(encoder, batch_size=batch_size)
    images = run.embeddings("image", pairs.images)
    texts = run.embeddings("text", pairs.tokens)
    index = pairs.image_index.to(images.device)
    return Recalls(
        *(round(100 * Recall((k,), (way,))(images, texts, index), 4) for way in ("i2t", "t2i") for k in (1, 5))
    )
