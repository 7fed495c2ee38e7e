"""Dual encoders of makes that nobody registered: found by structure, scored, cut and trained like any other."""

import copy
from pathlib import Path
from typing import Any, Literal

import jaxtyping
import pytest
import torch
import torch_pruning as tp
from torch import Tensor

import torch_pruning_mope as mope
from tests.asserts import assert_close, unchanged
from tests.unit import makes
from tests.unit.models import tokens_for
from tests.unit.scoring.oracle import physically_without
from torch_pruning_mope.scoring import Ablator, PlainEngine, PrefixEngine, enumerate_units, single_ablation

TOWERS: tuple[Literal["image", "text"], ...] = ("image", "text")


def _pairs(encoder: mope.DualEncoder, count: int = 3) -> dict[str, Tensor]:
    shape, length = encoder.example_inputs["images"].shape[1:], encoder.example_inputs["tokens"].shape[1]
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randn(count, *shape, generator=generator),
        "text": tokens_for(count, context=length, vocabulary=makes.VOCABULARY),
    }


def _trains(encoder: mope.DualEncoder, pairs: dict[str, Tensor]) -> None:
    loss = torch.zeros(())
    for tower in TOWERS:
        loss = loss + encoder.embed(tower, pairs[tower]).square().sum()
    loss.backward()
    for layer in encoder.layers:
        for units in layer.block.prunables:
            for module in (*units.sources, units.output):
                gradient = module.weight.grad
                assert gradient is not None
                assert gradient.shape == module.weight.shape
                assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("make", makes.MAKES)
def test_found_scored_cut_and_saved(make: str, tmp_path: Path) -> None:
    original = makes.build(make)
    encoder = mope.DualEncoder(makes.build(make))
    pairs = _pairs(encoder)
    before = mope.towers.towers_of(original)
    encoders = {"image": before.encode_image, "text": before.encode_text}
    with torch.no_grad():
        for tower in TOWERS:
            assert_close(encoder.embed(tower, pairs[tower]), encoders[tower](pairs[tower]), 1e-6)
    ablator = Ablator(encoder)
    plain, prefix = PlainEngine(encoder, ablator=ablator), PrefixEngine(encoder, ablator=ablator)
    for tower in TOWERS[:1] if make in makes.SAME_TEXT else TOWERS:
        units = list(enumerate_units(encoder, ("head", "neurons", "block"), {}, 2, (tower,)))
        if not units:
            continue
        chosen, seen = [], set[Any]()
        for unit in units:  # one of each kind of each type of layer
            key = (
                unit.kind,
                type(encoder.towers[tower].blocks[unit.layer].module),
                unit.layer if unit.kind == "block" else 0,
            )
            if key not in seen:
                seen.add(key)
                chosen.append(unit)
        ablations = [single_ablation(unit) for unit in chosen]
        with unchanged(encoder.model):
            dense = plain.embeddings(tower, pairs[tower])
            expected = [plain.embeddings(tower, pairs[tower], [ablation]) for ablation in ablations]
            for places, batch in prefix.ablations(tower, pairs[tower], ablations):
                for place, found in zip(places, batch, strict=True):
                    assert_close(found, expected[place], 1e-5)
        for unit, without in zip(chosen, expected, strict=True):
            assert not torch.allclose(without, dense, rtol=1e-6), f"{unit} has no effect"
        gone = [unit for unit in chosen if unit.kind != "block"]
        without = plain.embeddings(tower, pairs[tower], [single_ablation(unit) for unit in gone])
        with torch.no_grad():
            assert_close(physically_without(encoder, *gone).embed(tower, pairs[tower]), without, 1e-5)
    request: dict[str, Any] = {"ffn_ratio": 0.3}
    heads = [units.num_units for layer in encoder.layers if (units := layer.block.attention)]
    if heads:
        request["head_ratio"] = 0.3
    asked, counts = encoder.request(**request).asked, encoder.counts()
    arguments = encoder.pruner_arguments(**request)
    tp.pruner.MetaPruner(encoder.model, importance=tp.importance.GroupMagnitudeImportance(), **arguments).step()
    after = encoder.counts()
    assert (counts.heads - after.heads, counts.neurons - after.neurons) == (asked.heads, asked.neurons)
    _trains(encoder, pairs)
    twin = copy.deepcopy(encoder)
    for tower in TOWERS:
        assert torch.equal(twin.embed(tower, pairs[tower]), encoder.embed(tower, pairs[tower]))
    encoder.save_pretrained(tmp_path)
    loaded = mope.DualEncoder.from_pretrained(tmp_path, model=makes.build(make))
    for tower in TOWERS:
        assert torch.equal(loaded.embed(tower, pairs[tower]), encoder.embed(tower, pairs[tower]))


def test_exported_after_a_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # exporters cannot follow the checks of types
    encoder = mope.DualEncoder(makes.build("timm ViT + RoBERTa"))  # its code reads the number of heads
    arguments = encoder.pruner_arguments(head_ratio=0.3, ffn_ratio=0.3)
    tp.pruner.MetaPruner(encoder.model, importance=tp.importance.GroupMagnitudeImportance(), **arguments).step()
    mope.export(encoder, tmp_path)
    for tower, inputs in _pairs(encoder).items():
        session = onnxruntime.InferenceSession(tmp_path / f"{tower}.onnx")
        (found,) = session.run(["embeddings"], {"inputs": inputs.numpy()})
        with torch.no_grad():
            assert_close(torch.from_numpy(found), encoder.embed(tower, inputs), 1e-5)  # type: ignore[arg-type]
