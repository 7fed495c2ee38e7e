"""What Torch-Pruning cannot follow stays: single channels, or an encoder; the rest is pruned."""

import copy
import pickle
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

import torch_pruning_mope as mope
from tests.unit.makes import CONTEXT, JOINT, SIZE, VOCABULARY, TorchTexts
from tests.unit.models import tokens_for


class Frozen(nn.Module):
    """Code that does not run on one image while autograd records it, as Torch-Pruning has it do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, JOINT)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2))

    def between(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and len(x) == 1:
            raise NotImplementedError
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.first(x).mean((2, 3)))
        for layer in self.layers:
            x = x + layer(x)
        out: Tensor = self.head(x)
        return out


class Relative(Frozen):
    """Attention over a map with relative positions, in whose groups Torch-Pruning counts channels again and again."""

    def __init__(self) -> None:
        from timm.layers.bottleneck_attn import BottleneckAttn

        super().__init__()
        self.attention = BottleneckAttn(8, feat_size=(4, 4), stride=1, num_heads=2)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = (x + self.attention(x)).mean((2, 3))
        for layer in self.layers:
            x = x + layer(x)
        out: Tensor = self.head(x)
        return out


def test_the_other_encoder_is_pruned(tmp_path: Path) -> None:
    encoder = mope.DualEncoder.of(Frozen().eval(), TorchTexts().eval(), image_size=SIZE, context_length=CONTEXT)
    assert "NotImplementedError" in encoder.unprunable["image_encoder"]
    assert "stays: image_encoder: Torch-Pruning cannot follow its channels" in repr(encoder)
    x, tokens = torch.randn(2, 3, SIZE, SIZE), tokens_for(2, context=CONTEXT, vocabulary=VOCABULARY)

    def embedded(same: mope.DualEncoder, tower: Literal["image", "text"]) -> Tensor:
        with torch.no_grad():
            return same.embed(tower, x if tower == "image" else tokens)

    before = embedded(encoder, "image")
    for same in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert not same.image.blocks
        assert torch.equal(embedded(same, "image"), before)
    removed = mope.prune(encoder, mope.MoPEImportance(encoder, mope.Pairs(x, tokens), progress=False), ffn_ratio=0.5)
    assert removed.neurons == encoder.counts().neurons
    assert torch.equal(embedded(encoder, "image"), before)
    encoder.save_pretrained(tmp_path)
    whole = mope.towers.TwoEncoders(
        copy.deepcopy(encoder.model.image_encoder), TorchTexts(), image_size=SIZE, context_length=CONTEXT
    )
    again = mope.DualEncoder.from_pretrained(tmp_path, model=whole.eval())
    assert torch.equal(embedded(again, "text"), embedded(encoder, "text"))


def test_neurons_beside_channels_that_are_not_followed_are_pruned() -> None:
    encoder = mope.DualEncoder.of(Relative().eval(), TorchTexts().eval(), image_size=SIZE, context_length=CONTEXT)
    assert [block.feed_forward.num_units for block in encoder.image.blocks] == [16, 16]  # type: ignore[union-attr]
    assert "image_encoder.attention.pos_embed" in encoder.unprunable
    images = encoder.model.image_encoder
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        for layer in images.layers:
            layer[0].weight[:8] = layer[0].bias[:8] = 0
            layer[2].weight[:, :8] = 0
        before = encoder.embed("image", x)
    with pytest.raises(ValueError, match="width_ratio must be 0 for towers whose residual width cannot be cut"):
        encoder.pruner_arguments(width_ratio=0.3, towers=("image",))
    removed = mope.prune(encoder, tp.importance.GroupMagnitudeImportance(p=1), ffn_ratio=0.5, towers=("image",))
    assert removed.neurons == 16
    with torch.no_grad():
        torch.testing.assert_close(encoder.embed("image", x), before)


def test_a_layer_that_holds_other_layers_is_none_to_remove() -> None:
    """Removing it would remove them; a stage of EfficientViM, whose first output is not the state besides."""

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp, self.blocks = mlp(), nn.ModuleList([mlp(), mlp()])

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + block(x)
            out: Tensor = x + self.mlp(x)
            return out

    def mlp() -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    images = Frozen()
    images.between = lambda x: x  # type: ignore[method-assign]
    images.layers = nn.ModuleList([Stage(), Stage()])
    encoder = mope.DualEncoder.of(images.eval(), TorchTexts().eval(), image_size=SIZE, context_length=CONTEXT)
    blocks = encoder.image.blocks
    assert [(type(block.module), block.siblings is None) for block in blocks] == [
        (nn.Sequential, False),
        (nn.Sequential, False),
        (Stage, True),
    ] * 2
    with pytest.raises(NotImplementedError, match="indices must be of layers that stand in a list"):
        encoder.remove_blocks("image", [2])


def test_a_trace_leaves_no_tables_behind() -> None:
    """Some of timm's attention keeps a table of its positions, with autograd's graph, which could not be copied."""

    class Tabled(Frozen):
        def __init__(self) -> None:
            super().__init__()
            self.positions, self.table = nn.Parameter(torch.randn(8)), None

        def train(self, mode: bool = True) -> "Tabled":
            self.table = None if mode else self.table
            return super().train(mode)

        def between(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = self.positions * 1
            return x + self.table

    encoder = mope.DualEncoder.of(Tabled().eval(), TorchTexts(), image_size=SIZE, context_length=CONTEXT)
    encoder.dependency_graph()
    copy.deepcopy(encoder)


def test_an_encoder_that_does_not_run_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="to have 3 channels, but got 1"):
        mope.DualEncoder(
            mope.towers.TwoEncoders(Frozen(), TorchTexts(), image_size=SIZE, context_length=CONTEXT, channels=1)
        )


class StarReLU(nn.Module):
    """Two numbers for all channels, as in timm's MetaFormers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.full((1,), 0.9)), nn.Parameter(torch.full((1,), -0.4))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.relu(x) ** 2 + self.bias


def test_numbers_that_all_channels_share_are_not_cut() -> None:
    images = Frozen()
    images.between = lambda x: x  # type: ignore[method-assign]
    for layer in images.layers:
        layer[1] = StarReLU()  # type: ignore[index]
    encoder = mope.DualEncoder.of(images.eval(), TorchTexts(), image_size=SIZE, context_length=CONTEXT)
    x = torch.randn(2, 3, SIZE, SIZE)
    first = tp.importance.GroupMagnitudeImportance(p=1)
    with torch.no_grad():
        for layer in images.layers:  # the first neurons go
            layer[0].weight[:8] = layer[0].bias[:8] = 0  # type: ignore[index]
            layer[2].weight[:, :8] = 0  # type: ignore[index]
        before = encoder.embed("image", x)
    removed = mope.prune(encoder, first, ffn_ratio=0.5, towers=("image",))
    assert removed.neurons == 16
    with torch.no_grad():
        torch.testing.assert_close(encoder.embed("image", x), before)
