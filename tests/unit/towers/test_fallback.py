"""Encoders of which no layer is known: channels from the dependency graph, by whole passes."""

import pytest
import torch
from torch import Tensor, nn

import torch_pruning_mope as mope
from tests.asserts import assert_close, assert_trains, unchanged
from tests.unit import makes, zoo
from tests.unit.models import shake
from torch_pruning_mope.scoring import PlainEngine, PrefixEngine, enumerate_units, single_ablation


def _stage(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())


class _Chain(nn.Module):
    """Convolutions of which each adds to what all of them share: no layer has channels of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.head = nn.Conv2d(3, 12, 4, 4), nn.Conv2d(12, 10, 2, 2), nn.Linear(10, makes.JOINT)
        self.layers = nn.ModuleList(_stage(width) for width in (12, 10))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = x + self.layers[0](x)
        x = self.down(x)
        x = x + self.layers[1](x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def unknown() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mope.towers.TwoEncoders(_Chain(), makes.TorchTexts(), image_size=16, context_length=makes.CONTEXT)
        shake(model)
    return model.eval()


@pytest.fixture
def encoder() -> mope.DualEncoder:
    with pytest.warns(UserWarning, match="No layer of _Chain is of a known type"):
        return mope.DualEncoder(unknown())


def test_scores_are_those_of_models_without_the_channels(encoder: mope.DualEncoder) -> None:
    pairs = zoo.pairs_of(encoder, 3)
    units = enumerate_units(encoder, ("neurons",), {}, 2, ("image",))
    plain, prefix = PlainEngine(encoder), PrefixEngine(encoder)
    assert any(place[0] == "image" for place in plain._ablator.physical)  # channels of the residual stream
    with unchanged(encoder.model):
        found = prefix.ablations("image", pairs.images, [single_ablation(unit) for unit in units])
        for places, batch in found:
            for place, embeddings in zip(places, batch, strict=True):
                assert_close(embeddings, plain.embeddings("image", pairs.images, [single_ablation(units[place])]), 1e-5)
                with pytest.warns(UserWarning, match="No layer"):
                    smaller = mope.DualEncoder(unknown())
                mope.remove_units(smaller, [units[place]])
                with torch.no_grad():
                    assert_close(smaller.embed("image", pairs.images), embeddings, 1e-5)


def test_it_is_pruned_and_trains(encoder: mope.DualEncoder) -> None:
    pairs = zoo.pairs_of(encoder)
    before = encoder.counts().neurons
    removed = mope.prune(encoder, mope.MoPEImportance(encoder, pairs, groups=2, progress=False), ffn_ratio=0.5)
    assert removed.neurons == before - encoder.counts().neurons == before // 2
    with pytest.raises(NotImplementedError, match="indices must be of layers that stand in a list"):
        encoder.remove_blocks("image", [0])
    encoder.model.eval()
    assert_trains(encoder, pairs)
