"""Towers resumed at a layer, whose layers are no plain chain."""

import copy

import pytest
import torch
from torch import Tensor, nn

import torch_pruning_mope as mope
from tests.asserts import assert_close
from tests.unit.makes import CONTEXT, JOINT, SIZE, VOCABULARY, TorchTexts
from tests.unit.models import tokens_for
from tests.unit.reconstruction.oracle import cut, reconstruct_slowly
from torch_pruning_mope.scoring import PlainEngine, PrefixEngine, enumerate_units, single_ablation
from torch_pruning_mope.scoring._replay import LayerWalk


class Layer(nn.Module):
    def __init__(self, width: int, *, in_place: bool = False) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 24), nn.Linear(24, width)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(torch.relu(self.up(self.norm(x))))
        return x.add_(out) if self.in_place else x + out


class Stage(nn.Module):
    """Layers with one before them that stands in no list."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.layers = Layer(width), nn.ModuleList(Layer(width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        for layer in self.layers:
            x = layer(x)
        return x


class Images(nn.Module):
    """Four layers: one after another, with a way around two of them, in two branches, or within a fifth that begins first."""

    def __init__(self, kind: str, width: int = 16) -> None:
        super().__init__()
        self.kind, self.patches, self.head = kind, nn.Conv2d(3, width, 8, 8), nn.Linear(width, JOINT)
        self.layers = nn.ModuleList(Layer(width, in_place=kind == "in place") for _ in range(4))
        if kind == "within":
            self.layers, self.stages = nn.ModuleList(), nn.ModuleList([Stage(width)])

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT
        first, second, third, fourth = self.layers or self.stages[0].layers
        if self.kind == "in place":
            x = fourth(third(second(first(x))))
        elif self.kind == "around":
            early = first(x)
            x = fourth(third(second(early).flip(1)) + early)
        elif self.kind == "within":
            x = self.stages[0](x)
        else:
            one, other = first(x), second(x.flip(1))
            x = third(one + 1) + fourth(other * 2)
        out: Tensor = self.head(x.mean(1))
        return out


@pytest.mark.parametrize("kind", ["in place", "around", "branches", "within"])
def test_scores_of_layers_that_are_no_chain(kind: str) -> None:
    encoder = mope.DualEncoder.of(Images(kind), TorchTexts(), image_size=SIZE, context_length=CONTEXT)
    assert "layer by layer" in repr(encoder).splitlines()[1]
    images = torch.randn(5, 3, SIZE, SIZE)
    ablations = [single_ablation(unit) for unit in enumerate_units(encoder, ("neurons",), {}, 2, ("image",))]
    plain, prefix = PlainEngine(encoder), PrefixEngine(encoder)
    expected = [plain.embeddings("image", images, [ablation]) for ablation in ablations]
    for places, batch in prefix.ablations("image", images, ablations):
        for place, found in zip(places, batch, strict=True):
            assert_close(found, expected[place], 1e-6)


@pytest.mark.parametrize("kind", ["around", "branches", "within"])
def test_they_are_refitted_as_by_whole_passes(kind: str) -> None:
    dense = mope.DualEncoder.of(Images(kind).double(), TorchTexts().double(), image_size=SIZE, context_length=CONTEXT)
    student = mope.DualEncoder(copy.deepcopy(dense.model))
    cut(student)
    slow = mope.DualEncoder(copy.deepcopy(student.model))
    tokens = tokens_for(12, context=CONTEXT, vocabulary=VOCABULARY)
    pairs = mope.Pairs(torch.randn(12, 3, SIZE, SIZE, dtype=torch.double), tokens)
    report = mope.reconstruct(
        student, dense, pairs, ridge=1e-2, inputs=False, projection=False, batch_size=5, progress=False
    )
    reconstruct_slowly(slow, dense, pairs, 1e-2)
    assert any(layer.refitted for layer in report.layers if layer.tower == "image")
    for key, value in slow.model.state_dict().items():
        torch.testing.assert_close(student.model.state_dict()[key], value, rtol=1e-8, atol=1e-8, msg=key)


def test_states_hold_no_graph() -> None:
    encoder = mope.DualEncoder.of(Images("around"), TorchTexts(), image_size=SIZE, context_length=CONTEXT)
    walk = LayerWalk(encoder, "image")
    with torch.no_grad():
        state = walk.step(1, walk.step(0, walk.stem(torch.randn(2, 3, SIZE, SIZE))))
    held = walk.kept(state)
    assert len(held) == 2
    assert not any(tensor.requires_grad for tensor in held)
