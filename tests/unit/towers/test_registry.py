"""Registration by model type, and a user's own dual encoder: registered, scored, pruned."""

import importlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import open_clip
import pytest
import torch
import torch_pruning as tp
from packaging.version import Version
from torch import Tensor, nn

import torch_pruning_mope as mope
from tests.asserts import assert_close, assert_trains, unchanged
from tests.unit.models import shake, tokens_for
from torch_pruning_mope._registry import Registry, full_name
from torch_pruning_mope.surgery._swap import CONVERTERS
from torch_pruning_mope.towers._discover import _UNITS
from torch_pruning_mope.towers._registry import FACTORIES


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


class FirmModel(OwnModel):
    """The same, but its towers do not say in which list their layers stand."""


class OwnTower(mope.towers.Tower):
    """What a user writes: stem, blocks, readout."""

    def __init__(self, encoder: _Encoder, *, lists: bool = True) -> None:
        self.encoder = encoder
        self.lists = lists

    def stem(self, inputs: Tensor) -> mope.towers.Stream:
        return mope.towers.Stream(self.encoder.stem(inputs))

    @property
    def blocks(self) -> Sequence[mope.towers.Block]:
        return [
            mope.towers.Block(
                layer,
                mope.towers.AttentionSublayer(layer.norm_1, layer.attention),
                mope.towers.FeedForwardSublayer(layer.norm_2, nn.Sequential(layer.up, nn.ReLU()), layer.down),
                siblings=self.encoder.layers if self.lists else None,
            )
            for layer in self.encoder.layers  # type: ignore[union-attr]
        ]

    def readout(self, stream: mope.towers.Stream) -> Tensor:
        out: Tensor = self.encoder.head(stream.x.mean(1))
        return out


@mope.register_towers(OwnModel, FirmModel)
def own_towers(model: OwnModel) -> mope.towers.Towers:
    lists = not isinstance(model, FirmModel)
    return mope.towers.Towers(
        image=OwnTower(model.see, lists=lists),
        text=OwnTower(model.read, lists=lists),
        encode_image=model.see,
        encode_text=model.read,
        image_shape=(3, 16, 16),
        context_length=6,
    )


def _wrapped(kind: type[OwnModel]) -> mope.DualEncoder:
    model = kind().eval()
    shake(model)
    return mope.DualEncoder(model)


@pytest.fixture
def own() -> mope.DualEncoder:
    return _wrapped(OwnModel)


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


@pytest.mark.parametrize("kind", [OwnModel, FirmModel])
def test_own_model_scores_alike_by_engine_and_plain_loop(kind: type[OwnModel], own_pairs: mope.Pairs) -> None:
    own = _wrapped(kind)
    with unchanged(own.model):
        tables = [
            mope.score(own, own_pairs, kinds=("head", "neurons", "block"), groups=4, engine=engine, progress=False)
            for engine in ("prefix", "plain")
        ]
    assert len(tables[0].scores) == 2 * (4 + 3) + 4 * 4 + (4 if kind is OwnModel else 0)
    losses = [[score.loss for score in table.scores] for table in tables]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert tables[0].dense == pytest.approx(tables[1].dense, abs=1e-5)


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


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_own_layers_go(own: mope.DualEncoder, own_pairs: mope.Pairs, tower: Any, index: int) -> None:
    """Against a model that skips them, and as their scores have it."""
    encoder = {"image": own.model.see, "text": own.model.read}[tower]
    inputs = {"image": own_pairs.images, "text": own_pairs.tokens}[tower]
    handle = encoder.layers[index].register_forward_hook(lambda _m, args, _o: args[0])
    with torch.no_grad():
        expected = encoder(inputs)
    handle.remove()
    loss: Any = {"metric": "contrastive_loss", "progress": False}
    scored = {s.unit: s for s in mope.score(own, own_pairs, kinds=("block",), **loss).scores}
    block = next(score for unit, score in scored.items() if (unit.tower, unit.layer) == (tower, index))
    dense = mope.score(own, own_pairs, kinds=("head",), **loss).dense
    own.remove_blocks(tower, [index])
    assert len(encoder.layers) == len(own.towers[tower].blocks) == 1
    with torch.no_grad():
        assert_close(own.embed(tower, inputs), expected, 1e-6)
    assert dense - mope.score(own, own_pairs, kinds=("head",), **loss).dense == pytest.approx(block.value, abs=1e-5)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_own_layers_without_a_list_stay(own_pairs: mope.Pairs, tower: Any) -> None:
    firm = _wrapped(FirmModel)
    with unchanged(firm.model), pytest.raises(NotImplementedError, match=r"found \[1\], .* must set siblings"):
        firm.remove_blocks(tower, [1])
    with (
        unchanged(firm.model),
        pytest.raises(ValueError, match=r"the model has no units of these kinds; found none of \['block'\]"),
    ):
        mope.score(firm, own_pairs, kinds=("block",), progress=False)


def test_own_model_has_clips_temperature(own: mope.DualEncoder) -> None:
    assert own.logit_scale == 100.0


def test_duplicate_registration_is_refused() -> None:
    with pytest.raises(ValueError, match=r"without a factory of their towers; registered already: \['OwnModel'\]"):
        mope.register_towers(OwnModel)
    with pytest.raises(ValueError, match=r"registered already: \['CLIP'\]"):
        mope.register_towers(nn.Bilinear, open_clip.CLIP)
    with pytest.raises(mope.errors.UnsupportedModelError):
        mope.DualEncoder(nn.Bilinear(1, 1, 1))


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential()])
def test_unknown_models_are_refused(model: nn.Module) -> None:
    with (
        unchanged(model),
        pytest.raises(
            mope.errors.UnsupportedModelError,
            match=r"open_clip\.CLIP, open_clip\.CoCa, open_clip\.CustomTextCLIP, .*\), or have .*; found (Linear|Sequential)",
        ),
    ):
        mope.DualEncoder(model)


def test_a_subclass_is_another_type() -> None:
    class Derived(OwnModel):
        pass

    model = Derived()
    with unchanged(model), pytest.raises(mope.errors.UnsupportedModelError, match=r"found .*Derived"):
        mope.DualEncoder(model)


def test_a_bare_import_registers_everything() -> None:
    """A forgotten import would be silent here, where other tests have imported all of it already."""
    code = (
        "import sys\n"
        "import torch_pruning_mope.towers\n"
        "from torch_pruning_mope.towers._registry import FACTORIES\n"
        "from torch_pruning_mope.towers._discover import _UNITS\n"
        "from torch_pruning_mope.surgery._swap import CONVERTERS\n"
        "for registry in (FACTORIES, _UNITS, CONVERTERS):\n"
        "    print(*registry)\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*(loaded & {'open_clip', 'transformers', 'matplotlib', 'pandas'}))\n"
    )
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    output = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True).stdout
    factories, units, converters, loaded = (set(line.split()) for line in output.split("\n")[:4])
    assert factories == {
        *(f"open_clip.{name}" for name in ("model.CLIP", "model.CustomTextCLIP", "coca_model.CoCa")),
        "transformers.models.siglip2.modeling_siglip2.Siglip2Model",
    }
    assert {
        "open_clip.transformer.ResidualAttentionBlock",
        "open_clip.transformer.CustomResidualAttentionBlock",
        "open_clip.modified_resnet.Bottleneck",
        "timm.layers.mlp.Mlp",
        "timm.layers.mlp.SwiGLU",
        "timm.models.vitamin.GeGluMlp",
        "transformers.models.clip.modeling_clip.CLIPMLP",
        "transformers.models.clip.modeling_clip.CLIPAttention",
        "transformers.models.roberta.modeling_roberta.RobertaLayer",
        "transformers.models.mt5.modeling_mt5.MT5Block",
        "transformers.models.m2m_100.modeling_m2m_100.M2M100Attention",
    } <= units
    assert {
        "torch.nn.modules.activation.MultiheadAttention",
        "torch.nn.modules.transformer.TransformerEncoder",
        "open_clip.transformer.Attention",
        "open_clip.modified_resnet.AttentionPool2d",
        "timm.layers.attention.Attention",
        "timm.layers.attention.AttentionRope",
        "timm.layers.attention_pool.AttentionPoolLatent",
        "timm.models.eva.EvaAttention",
        "timm.models.fastvit.Attention",
        "timm.models.swin_transformer.WindowAttention",
        "timm.models.vision_transformer_relpos.RelPosAttention",
        "transformers.models.mt5.modeling_mt5.MT5Attention",
    } <= converters
    assert loaded == set()


NAMED_AFTER = {"torch": "2.6", "open_clip": "4.2.0.dev0", "timm": "1.0.31", "transformers": "5.23.0"}
"""Versions that have all types; older ones may lack some."""


@pytest.mark.parametrize("registry", [FACTORIES, _UNITS, CONVERTERS])
def test_names_that_are_registered_are_those_of_types(registry: Registry[Any]) -> None:
    """A name by which no type goes would never be found."""
    names = [name for name in registry if name.partition(".")[0] in NAMED_AFTER]
    assert len(names) >= 4
    for name in names:
        module, _, kind = name.rpartition(".")
        library = name.partition(".")[0]
        try:
            found = getattr(importlib.import_module(module), kind)
        except (ImportError, AttributeError):
            assert Version(importlib.import_module(library).__version__) < Version(NAMED_AFTER[library]), name
        else:
            assert full_name(found) == name


def test_names_and_types_are_the_same_key() -> None:
    registry: Registry[str] = Registry("a word")
    registry.register("torch.nn.modules.linear.Bilinear", nn.Identity)("word")
    assert (registry.get(nn.Bilinear), registry.get(nn.Identity), registry.get(nn.Linear)) == ("word", "word", None)
    with pytest.raises(ValueError, match=r"kinds must be types without a word; registered already: \['Bilinear'\]"):
        registry.register(nn.Bilinear)
    with pytest.raises(ValueError, match=r"registered already: \['Identity'\]"):
        registry.register(nn.Linear, "torch.nn.modules.linear.Identity")
    assert registry.get(nn.Linear) is None
