"""Registration by model type, and a user's own dual encoder: registered, scored, pruned."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import open_clip
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

import torch_pruning_mope as mope
from tests.asserts import assert_close, assert_trains, unchanged
from tests.unit.models import shake, tokens_for


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.down(torch.relu(self.up(self.norm_2(x))))
        return out


class _Encoder(nn.Module):
    """Averages its tokens; the same for images (16 patches of 48 numbers) and bags of words."""

    def __init__(self, stem: nn.Module, width: int, heads: int) -> None:
        super().__init__()
        self.stem: Any = stem
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(2))
        self.head = nn.Linear(width, 16, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.stem(inputs)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x.mean(1))
        return out


class _Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(48, width)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.linear(nn.functional.unfold(images, 4, stride=4).mT)
        return out


class OwnModel(nn.Module):
    """A dual encoder that nobody but this file knows."""

    def __init__(self) -> None:
        super().__init__()
        self.see = _Encoder(_Patches(20), 20, 4)
        self.read = _Encoder(nn.Embedding(30, 18), 18, 3)


class OwnTower(mope.Tower):
    """What a user writes: stem, blocks, readout."""

    def __init__(self, encoder: _Encoder) -> None:
        self.encoder = encoder

    def stem(self, inputs: Tensor) -> mope.Stream:
        return mope.Stream(self.encoder.stem(inputs))

    @property
    def blocks(self) -> Sequence[mope.Block]:
        return [
            mope.Block(
                layer,
                mope.AttentionSublayer(layer.norm_1, layer.attention),
                mope.FeedForwardSublayer(layer.norm_2, nn.Sequential(layer.up, nn.ReLU()), layer.down),
            )
            for layer in self.encoder.layers  # type: ignore[union-attr]
        ]

    def readout(self, stream: mope.Stream) -> Tensor:
        out: Tensor = self.encoder.head(stream.x.mean(1))
        return out


@mope.register_towers(OwnModel)
def own_towers(model: OwnModel) -> mope.Towers:
    return mope.Towers(
        image=OwnTower(model.see),
        text=OwnTower(model.read),
        encode_image=model.see,
        encode_text=model.read,
        image_shape=(3, 16, 16),
        context_length=6,
    )


@pytest.fixture
def own() -> mope.DualEncoder:
    model = OwnModel().eval()
    shake(model)
    return mope.DualEncoder(model)


@pytest.fixture
def own_pairs() -> mope.Pairs:
    return mope.Pairs(torch.randn(14, 3, 16, 16), tokens_for(14, context=6, vocabulary=30))


def test_own_model_equals_itself(own_pairs: mope.Pairs) -> None:
    model = OwnModel().eval()
    with torch.no_grad():
        expected = {"image": model.see(own_pairs.images), "text": model.read(own_pairs.tokens)}
        encoder = mope.DualEncoder(model)
        assert_close(encoder.embed("image", own_pairs.images), expected["image"], 1e-6)
        assert_close(encoder.text.embed(own_pairs.tokens), expected["text"], 1e-6)


def test_own_model_scores_alike_by_engine_and_plain_loop(own: mope.DualEncoder, own_pairs: mope.Pairs) -> None:
    with unchanged(own.model):
        tables = [
            mope.score(own, own_pairs, kinds=("head", "neurons", "block"), groups=4, engine=engine, progress=False)
            for engine in ("prefix", "plain")
        ]
    assert len(tables[0].scores) == 2 * (4 + 3) + 4 * 4 + 4
    assert tables[0].scores == tables[1].scores
    assert tables[0].dense == tables[1].dense


def test_own_model_prunes(own: mope.DualEncoder, own_pairs: mope.Pairs) -> None:
    importance = mope.MoPEImportance(
        own, own_pairs, groups=4, progress=False, fallback=tp.importance.GroupMagnitudeImportance()
    )
    arguments = own.pruner_arguments(head_ratio=0.5, ffn_ratio=0.4, width_ratio=0.3)
    tp.pruner.MetaPruner(own.model, importance=importance, **arguments).step()
    assert own.removed == {
        "image.heads": [2, 2],
        "image.neurons": [24, 24],
        "text.heads": [2, 2],
        "text.neurons": [22, 22],
    }
    assert own.widths == {"image": 14, "text": 12}
    assert_trains(own, own_pairs)


def test_own_model_without_a_list_of_blocks_keeps_them(own: mope.DualEncoder) -> None:
    with unchanged(own.model), pytest.raises(NotImplementedError, match="the image tower must define block_list"):
        own.remove_blocks("image", [0])


def test_own_model_has_clips_temperature(own: mope.DualEncoder) -> None:
    assert own.logit_scale == 100.0


def test_duplicate_registration_is_refused() -> None:
    with pytest.raises(ValueError, match=r"registered already: \['OwnModel'\]"):
        mope.register_towers(OwnModel)
    with pytest.raises(ValueError, match=r"registered already: \['CLIP'\]"):
        mope.register_towers(nn.Bilinear, open_clip.CLIP)
    with pytest.raises(mope.UnsupportedModelError):
        mope.DualEncoder(nn.Bilinear(1, 1, 1))


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential()])
def test_unknown_models_are_refused(model: nn.Module) -> None:
    with (
        unchanged(model),
        pytest.raises(
            mope.UnsupportedModelError, match=r"open_clip\.CLIP, open_clip\.CustomTextCLIP.*found (Linear|Sequential)"
        ),
    ):
        mope.DualEncoder(model)


def test_a_subclass_is_another_type() -> None:
    class Derived(OwnModel):
        pass

    model = Derived()
    with unchanged(model), pytest.raises(mope.UnsupportedModelError, match=r"found .*Derived"):
        mope.DualEncoder(model)


def test_a_bare_import_registers_everything() -> None:
    """A forgotten import would be silent here, where other tests have imported all of it already."""
    code = (
        "import torch_pruning_mope, open_clip, torch\n"
        "from torch_pruning_mope.towers import is_known\n"
        "from torch_pruning_mope.surgery._swap import _CONVERTERS\n"
        "def bare(kind):\n"
        "    model = kind.__new__(kind)\n"
        "    torch.nn.Module.__init__(model)\n"
        "    return model\n"
        "assert is_known(bare(open_clip.CLIP)) and is_known(bare(open_clip.CustomTextCLIP))\n"
        "assert not is_known(bare(open_clip.CoCa))\n"
        "assert {kind.__qualname__ for kind in _CONVERTERS} == {'MultiheadAttention', 'Attention'}\n"
    )
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], check=True, timeout=120)
