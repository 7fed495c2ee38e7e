"""What a model costs, against the sums by hand."""

import time

import pytest
import torch
import torch_pruning as tp

from torch_pruning_mope import DualEncoder, load_tiny_clip, prune
from torch_pruning_mope.data import tiny_clip_config
from torch_pruning_mope.evaluation import latency, multiply_adds, parameters

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


def test_a_model_costs_the_same_before_it_is_wrapped() -> None:
    model = clip()
    encoder = DualEncoder(clip())
    examples = encoder.example_inputs
    inputs = examples["images"], examples["tokens"]
    assert multiply_adds(model, inputs) == multiply_adds(encoder) == multiply_adds(encoder.model, inputs)
    assert torch.backends.mha.get_fastpath_enabled()
    assert parameters(model) == parameters(encoder)
    with pytest.raises(ValueError, match="inputs must be one image and one caption unless the model is wrapped"):
        multiply_adds(model)


def test_latency_is_the_median_of_both_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = DualEncoder(clip())
    seen: list[tuple[str, int]] = []
    clock = 0.0

    def embed(tower: str, inputs: torch.Tensor) -> torch.Tensor:
        nonlocal clock
        seen.append((tower, len(inputs)))
        clock += 1.0 if len(seen) % 4 else 100.0  # every other run of both is slow
        return torch.ones(len(inputs), 4)

    monkeypatch.setattr(encoder, "embed", embed)
    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    assert latency(encoder, batch_size=3, repeats=3) == 2.0
    assert seen == [("image", 3), ("text", 3)] * 5
    with pytest.raises(ValueError, match="batch_size and repeats must be at least 1; found 1 and 0"):
        latency(encoder, repeats=0)
