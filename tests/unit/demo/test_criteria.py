"""The criteria of the demo."""

import pytest

from torch_pruning_mope import DualEncoder, MoPEImportance, Pairs, WeightedImportance, prune
from torch_pruning_mope.demo import CRITERIA, LABELS


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_removes_the_same_counts(name: str, encoder: DualEncoder, pairs: Pairs) -> None:
    importance = CRITERIA[name](encoder, pairs, False)
    assert name in LABELS
    assert isinstance(importance, MoPEImportance if name == "mope" else WeightedImportance)
    removed = prune(encoder, importance, head_ratio=0.3, ffn_ratio=0.5, global_pruning=True)
    assert (removed.heads, removed.neurons) == (6, 138)
