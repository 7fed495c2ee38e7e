"""One line of the demo's table."""

from dataclasses import dataclass
from typing import Literal

Stage = Literal["dense", "pruned", "fine-tuned"]


@dataclass(frozen=True)
class Row:
    """What one model is and does, on the test split.

    Attributes:
        criterion: What chose the units to remove; ``dense`` where none were.
        stage: ``dense`` (the shipped model), ``pruned``, or ``fine-tuned`` (the model of the row above, trained on).
        params: Parameters, token embeddings included.
        macs: Multiply-adds per pair of an image and a caption.
        i2t_r1: Recall@1 from image to text, in percent, as for the following.
        i2t_r5: Recall@5 from image to text.
        t2i_r1: Recall@1 from text to image.
        t2i_r5: Recall@5 from text to image.
        seconds: What this stage took: scoring and pruning, or fine-tuning; not the evaluation.
    """

    criterion: str
    stage: Stage
    params: int
    macs: int
    i2t_r1: float
    i2t_r5: float
    t2i_r1: float
    t2i_r5: float
    seconds: float
