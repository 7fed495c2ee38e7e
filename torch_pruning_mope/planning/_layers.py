"""Layers of a plan: what is kept of each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..encoder import EncoderCore, TowerName
from ..scoring import Score


@dataclass(frozen=True)
class LayerPlan:
    """One layer before and after.

    Attributes:
        tower: Its tower.
        layer: Its position in the model that the plan is for.
        heads: Heads before.
        heads_kept: Heads after; 0 for an attention that goes whole, or a layer.
        neurons: Neurons before.
        neurons_kept: Neurons after.
        removed: True if the layer goes whole.
        loss: Sum of the scores of what goes.
    """

    tower: TowerName
    layer: int
    heads: int
    heads_kept: int
    neurons: int
    neurons_kept: int
    removed: bool
    loss: float


def layer_plans(encoder: EncoderCore, scores: Sequence[Score]) -> tuple[LayerPlan, ...]:
    """A row per layer of both towers once the scored units have gone, the image tower's first."""
    gone: dict[tuple[str, int, str], set[int]] = {}
    lost: dict[tuple[str, int], float] = {}
    for score in scores:
        unit = score.unit
        gone.setdefault((unit.tower, unit.layer, unit.part), set()).update(unit.channels)
        lost[unit.tower, unit.layer] = lost.get((unit.tower, unit.layer), 0.0) + score.value
    rows = []
    for layer in encoder.layers:
        key = layer.tower, layer.index
        attention, mlp = layer.block.attention, layer.block.feed_forward
        heads, neurons = (0 if units is None else units.num_units for units in (attention, mlp))
        size = 1 if attention is None else attention.unit_size
        row = LayerPlan(
            *key,
            heads,
            heads - len(gone.get((*key, "head"), ())) // size,
            neurons,
            neurons - len(gone.get((*key, "neurons"), ())) // (1 if mlp is None else mlp.unit_size),
            (*key, "block") in gone,
            lost.get(key, 0.0),
        )
        rows.append(replace(row, heads_kept=0, neurons_kept=0) if row.removed else row)
    return tuple(rows)
