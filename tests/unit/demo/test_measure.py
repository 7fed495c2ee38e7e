"""What a model costs, against the sums by hand."""

import open_clip
import pytest
import torch
import torch_pruning as tp

from torch_pruning_mope import DualEncoder, Pairs, load_tiny_clip, prune
from torch_pruning_mope.data import tiny_clip_config
from torch_pruning_mope.demo import multiply_adds, parameters, recalls
from torch_pruning_mope.scoring import PlainEngine

from ..models import TEXT, VISION, clip


def by_hand(encoder: DualEncoder, tokens: dict[str, int], patches: int, patch_inputs: int, joint: int) -> int:
    """Patch embedding, four projections, two attention products, two MLP layers, the joint projection."""
    total = patches * patch_inputs * encoder.widths["image"]
    for name, tower in encoder.towers.items():
        length, width = tokens[name], encoder.widths[name]
        for block in tower.blocks:
            inner = block.attention.output.in_features
            total += 4 * length * width * inner + 2 * length**2 * inner
            total += 2 * length * width * block.feed_forward.num_units
        total += width * joint
    return total


def small(encoder: DualEncoder) -> int:
    patches = (VISION["image_size"] // VISION["patch_size"]) ** 2
    tokens = {"image": patches + 1, "text": TEXT["context_length"]}
    return by_hand(encoder, tokens, patches, 3 * VISION["patch_size"] ** 2, 28)


def test_multiply_adds_of_the_tiny_clip_are_the_sum_by_hand() -> None:
    encoder = DualEncoder(load_tiny_clip())
    assert multiply_adds(encoder) == by_hand(encoder, {"image": 17, "text": 24}, 16, 3 * 16 * 16, 128) == 67_651_840
    assert tiny_clip_config()["text_cfg"]["context_length"] == 24


def test_multiply_adds_of_a_pruned_model_follow_its_counts() -> None:
    encoder = DualEncoder(clip())
    dense = multiply_adds(encoder)
    prune(encoder, tp.importance.RandomImportance(), head_ratio=0.3, ffn_ratio=0.5)
    assert multiply_adds(encoder) == small(encoder) < dense


def test_counting_leaves_the_model_alone() -> None:
    encoder = DualEncoder(clip().train())
    multiply_adds(encoder)
    assert encoder.model.training
    assert all(parameter.grad is None for parameter in encoder.model.parameters())


def test_parameters_are_all_of_them() -> None:
    model = clip()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert parameters(DualEncoder(model)) == count


def test_recalls_are_percentages_of_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = DualEncoder(clip())
    # Caption 0 finds image 0; captions 1 and 2 both point at image 1, so image 2 and caption 2 miss at 1.
    points = {"image": torch.eye(3), "text": torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0.9, 0.1]])}
    monkeypatch.setattr(PlainEngine, "embeddings", lambda _, tower, __: points[tower])
    pairs = Pairs(torch.zeros(3, 3, 24, 24), torch.ones(3, 9, dtype=torch.long))
    found = recalls(encoder, pairs)
    assert found._asdict() == pytest.approx({"i2t_r1": 100.0, "i2t_r5": 100.0, "t2i_r1": 66.6667, "t2i_r5": 100.0})


def test_recalls_of_the_model_are_those_of_its_own_embeddings(encoder: DualEncoder, pairs: Pairs) -> None:
    plain = clip()
    assert type(plain) is open_clip.CLIP
    with torch.inference_mode():
        similarity = torch.nn.functional.normalize(plain.encode_image(pairs.images), dim=-1)
        similarity = similarity @ torch.nn.functional.normalize(plain.encode_text(pairs.tokens), dim=-1).T
    hits = (similarity.argmax(1) == torch.arange(len(similarity))).float().mean()
    assert recalls(encoder, pairs, batch_size=5).i2t_r1 == pytest.approx(100 * hits.item(), abs=1e-3)
