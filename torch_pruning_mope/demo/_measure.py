"""How well a model retrieves, as the demo's table has it."""

from typing import NamedTuple

from ..data import Pairs
from ..dual_encoder import DualEncoder
from ..evaluation import evaluate_retrieval


class Recalls(NamedTuple):
    """Recall@1 and @5 both ways, in percent; named as the columns of the table."""

    i2t_r1: float
    i2t_r5: float
    t2i_r1: float
    t2i_r5: float


def recalls(encoder: DualEncoder, pairs: Pairs, *, batch_size: int = 250) -> Recalls:
    """Retrieval recall on pairs that the model was neither trained nor scored on.

    Args:
        encoder: The dual encoder; left as it is.
        pairs: Test pairs.
        batch_size: Sequences run at once.

    Returns:
        The recalls.
    """
    found = evaluate_retrieval(encoder, pairs, ks=(1, 5), batch_size=batch_size).recalls
    return Recalls(**{name: round(value, 4) for name, value in found.items()})
