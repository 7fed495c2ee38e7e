"""Recall as the demo's table has it."""

import pytest
import torch

from torch_pruning_mope import DualEncoder, Pairs
from torch_pruning_mope.demo import recalls

from ..models import clip


def test_recalls_are_percentages_of_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = DualEncoder(clip())
    # Caption 0 finds image 0; captions 1 and 2 both point at image 1, so image 2 and caption 2 miss at 1.
    points = {"image": torch.eye(3), "text": torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0.9, 0.1]])}
    monkeypatch.setattr(encoder, "embed", lambda tower, _: points[tower])
    pairs = Pairs(torch.zeros(3, 3, 24, 24), torch.ones(3, 9, dtype=torch.long))
    found = recalls(encoder, pairs)
    assert found._asdict() == pytest.approx({"i2t_r1": 100.0, "i2t_r5": 100.0, "t2i_r1": 66.6667, "t2i_r5": 100.0})


def test_recalls_of_the_model_are_those_of_its_own_embeddings(encoder: DualEncoder, pairs: Pairs) -> None:
    plain = clip()
    with torch.inference_mode():
        similarity = torch.nn.functional.normalize(plain.encode_image(pairs.images), dim=-1)
        similarity = similarity @ torch.nn.functional.normalize(plain.encode_text(pairs.tokens), dim=-1).T
    hits = (similarity.argmax(1) == torch.arange(len(similarity))).float().mean()
    assert recalls(encoder, pairs, batch_size=5).i2t_r1 == pytest.approx(100 * hits.item(), abs=1e-3)
