"""Towers of any library taken apart by their own code: compared with the whole, scored, cut, copied."""

import copy
import io
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import torch_pruning_mope as mope
from tests.asserts import assert_close, unchanged
from tests.unit import makes, zoo
from tests.unit.models import shake, tokens_for
from torch_pruning_mope.scoring import PlainEngine, PrefixEngine, enumerate_units, single_ablation
from torch_pruning_mope.towers import ApartTower, OpaqueTower, Tower, _take_apart

TowerName = Literal["image", "text"]
TOWERS: tuple[TowerName, ...] = ("image", "text")
_WIDTH = 24


class _Layer(nn.Module):
    """A residual layer; how its branches are put together is up to its subclasses."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.attention = nn.MultiheadAttention(_WIDTH, 4, batch_first=True)
        self.up, self.down, self.scale = nn.Linear(_WIDTH, 40), nn.Linear(40, _WIDTH), nn.Parameter(torch.rand(_WIDTH))

    def attend(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)
        out: Tensor = self.scale * self.attention(y, y, y, need_weights=False)[0]
        return out

    def neurons(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.up(self.norm_2(x)))


class Parallel(_Layer):
    """Both branches read the layer's input."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.attend(x) + self.down(self.neurons(x))
        return out


class _Noting(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        self.seen = x.mean(-1, keepdim=True)
        out: Tensor = super().forward(x)
        return out


class Noted(_Layer):
    """Reads what its MLP has noted when it ran, which it has not where it is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = _Noting(self.up, nn.GELU(), self.down)
        del self.up, self.down

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        out: Tensor = x + self.mlp(self.norm_2(x) + x) + self.mlp.seen
        return out


class InPlace(_Layer):
    """Adds to what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        x += self.attend(x)
        x += self.down(self.neurons(x))
        return x


class _Images(nn.Module):
    def __init__(self, kind: type[_Layer]) -> None:
        super().__init__()
        self.patches, self.layers = nn.Conv2d(3, _WIDTH, 8, 8), nn.ModuleList(kind() for _ in range(2))
        self.head = nn.Linear(_WIDTH, makes.JOINT)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x.mean(1))
        return out


@cache
def _built(name: str) -> Any:
    kind = {kind.__name__: kind for kind in (Parallel, Noted, InPlace)}.get(name)
    if kind is None:
        return zoo.build(name) if name in zoo.FAMILIES else makes.build(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images, texts = _Images(kind), makes.TorchTexts()
        model = mope.towers.TwoEncoders(images, texts, image_size=makes.SIZE, context_length=makes.CONTEXT)
        shake(model)
    return model.eval()


def _wrapped(name: str) -> mope.DualEncoder:
    return mope.DualEncoder(copy.deepcopy(_built(name)))


def _inputs(encoder: mope.DualEncoder, tower: TowerName, count: int = 4) -> Tensor:
    if tower == "text":
        return tokens_for(count, context=encoder.example_inputs["tokens"].shape[1], vocabulary=zoo.VOCABULARY)
    images = encoder.example_inputs["images"]
    return torch.randn(count, *images.shape[1:], generator=torch.Generator().manual_seed(0)).to(images)


APART: list[tuple[str, TowerName]] = [
    ("transformers CLIP", "image"),
    ("transformers CLIP", "text"),
    ("transformers SigLIP", "image"),  # a pool runs with the readout
    ("RoBERTa", "text"),  # post-norm, a padding mask
    ("EVA02", "image"),  # RoPE, gated MLP
    ("PE-Core", "image"),
    ("DINOv2 + T5", "image"),  # LayerScale
    ("torch, post-norm + torch, post-norm", "text"),
    ("torch, pre-norm + torch, pre-norm, causal", "text"),
    ("timm BEiT v2 + ModernBERT", "image"),  # neurons alone, each token's from all
    ("Parallel", "image"),
]


@pytest.mark.parametrize(("name", "tower"), APART)
def test_parts_make_up_the_whole_and_score_like_the_plain_loop(name: str, tower: TowerName) -> None:
    single = _wrapped(name)
    encoder = mope.DualEncoder(copy.deepcopy(_built(name)).double())
    inputs = _inputs(encoder, tower)
    for each, tolerance in ((single, 1e-6), (encoder, 1e-14)):
        view, given = each.towers[tower], inputs if tower == "text" else inputs.to(next(each.model.parameters()).dtype)
        assert isinstance(view, ApartTower)
        with torch.no_grad():
            assert_close(view.embed(given), each.embed(tower, given), tolerance)
    chosen: dict[Any, Any] = {}
    for unit in enumerate_units(encoder, ("head", "neurons", "block"), {}, 2, (tower,)):
        chosen.setdefault((unit.kind, unit.layer), unit)
    ablations = [single_ablation(unit) for unit in chosen.values()]
    plain, prefix = PlainEngine(encoder), PrefixEngine(encoder, batch_size=8)
    with unchanged(encoder.model):
        dense = plain.embeddings(tower, inputs)
        found = {
            place: embeddings
            for places, batch in prefix.ablations(tower, inputs, ablations)
            for place, embeddings in zip(places, batch, strict=True)
        }
    for place, ablation in enumerate(ablations):
        expected = plain.embeddings(tower, inputs, [ablation])
        assert not torch.allclose(expected, dense, rtol=1e-6)
        assert_close(found[place], expected, 1e-12)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Noted", "the parts of its layers do not make up the whole"),
        ("InPlace", "the layer changes its input in place"),
        ("torch, sequence first + BERT", "inputs do not lie along the first dimension"),
    ],
)
def test_what_does_not_compare_is_run_whole_and_named(name: str, reason: str) -> None:
    encoder = _wrapped(name)
    assert type(encoder.image) is OpaqueTower
    assert isinstance(encoder.text, ApartTower)
    image, text = repr(encoder).splitlines()[1:3]
    assert image.endswith(f"scored layer by layer ({reason})")
    assert text.endswith("layers scored in parts")
    inputs = _inputs(encoder, "image")
    (unit, *_) = enumerate_units(encoder, ("neurons",), {}, 2, ("image",))
    ((_, batch),) = PrefixEngine(encoder).ablations("image", inputs, [single_ablation(unit)])
    assert_close(batch[0], PlainEngine(encoder).embeddings("image", inputs, [single_ablation(unit)]), 1e-5)


def test_captions_end_with_the_pooled_token_under_a_causal_mask_alone() -> None:
    encoder = _wrapped("transformers CLIP")
    tokens = _inputs(encoder, "text", 6)
    lengths = encoder.text.lengths(tokens)
    assert lengths is not None
    assert lengths.tolist() == [row.tolist().index(zoo.VOCABULARY - 1) + 1 for row in tokens]
    with torch.no_grad():
        for row, length in zip(tokens, lengths.tolist(), strict=True):
            assert_close(encoder.embed("text", row[None, :length]), encoder.embed("text", row[None]), 2e-6)
    both = _wrapped("RoBERTa")
    assert both.text.lengths(_inputs(both, "text")) is None


def test_wrapping_and_scoring_draw_no_random_numbers() -> None:
    model = copy.deepcopy(_built("transformers CLIP"))
    before = torch.random.get_rng_state()
    encoder = mope.DualEncoder(model)
    encoder.image.lengths(_inputs(encoder, "image"))
    PrefixEngine(encoder).embeddings("image", _inputs(encoder, "image"))
    assert torch.equal(torch.random.get_rng_state(), before)


def _assert_in_parts(encoder: mope.DualEncoder) -> None:
    for tower in TOWERS:
        view, inputs = encoder.towers[tower], _inputs(encoder, tower)
        assert isinstance(view, Tower)
        with torch.no_grad():
            assert_close(view.embed(inputs), encoder.embed(tower, inputs), 1e-6)


def test_copies_of_what_was_compared_are_in_parts_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    encoder = _wrapped("transformers CLIP")
    before, file = encoder.counts(), io.BytesIO()
    torch.save(encoder, file)
    file.seek(0)
    with monkeypatch.context() as patch:
        patch.setattr(_take_apart, "_found", None)  # would fail, and a tower that fails is run whole
        for twin in (copy.deepcopy(encoder), torch.load(file, weights_only=False), mope.DualEncoder(encoder.model)):
            mope.remove_units(twin, enumerate_units(twin, ("head", "neurons"), {}, 3, TOWERS)[::3])
            twin.remove_blocks("image", [0])
            assert twin.counts() != before
            _assert_in_parts(twin)
    twin.save_pretrained(tmp_path)
    again = mope.DualEncoder.from_pretrained(tmp_path)
    _assert_in_parts(again)
    for tower in TOWERS:
        inputs = _inputs(again, tower)
        with torch.no_grad():
            assert torch.equal(again.embed(tower, inputs), twin.embed(tower, inputs))


def test_without_weights_nothing_is_compared_until_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(_built("transformers CLIP"))
    state = model.state_dict()
    model.load_state_dict({name: tensor.to("meta") for name, tensor in state.items()}, assign=True)
    with monkeypatch.context() as patch:
        patch.setattr(_take_apart, "_found", None)
        encoder = mope.DualEncoder(model)
        assert type(encoder.image) is OpaqueTower
        assert encoder.counts().heads == 2 * 4 + 2 * 3
        encoder.model.load_state_dict(state, assign=True)
    _assert_in_parts(encoder)
