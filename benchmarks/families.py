"""What works for each family of models, with the measured differences: the table of README and of ``mope models``.

    python benchmarks/families.py

One small random model of every family (``tests/unit/zoo.py``): largest relative differences of embeddings, of both towers; and
mean cosines of what exported int8 files embed (image / text) to float files.
Writes ``torch_pruning_mope/data/assets/families.json``; tests assert the bounds, this says how far below them things are.
"""

import copy
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch_pruning_mope as mope  # noqa: E402
from tests.unit import zoo  # noqa: E402
from tests.unit.emulate import cuts_of, emulated  # noqa: E402
from tests.unit.models import tokens_for  # noqa: E402
from tests.unit.scoring.oracle import physically_without  # noqa: E402
from torch_pruning_mope.scoring import PlainEngine, PrefixEngine, enumerate_units, single_ablation  # noqa: E402
from torch_pruning_mope.towers import towers_of  # noqa: E402

TOWERS: Any = ("image", "text")


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest, relative to the largest."""
    return float((found - expected).abs().max() / expected.abs().max())


def swapped(family: str) -> float:
    """Wrapped against original."""
    original, pairs = zoo.build(family), zoo.pairs_of(mope.DualEncoder(zoo.build(family)))
    encoder, own = mope.DualEncoder(copy.deepcopy(original)), towers_of(original)
    images = difference(encoder.embed("image", pairs.images), own.encode_image(pairs.images))
    return max(images, difference(encoder.embed("text", pairs.tokens), own.encode_text(pairs.tokens)))


def ablated(family: str) -> tuple[float, float]:
    """The engine against the plain loop, and the plain loop against a model from which the unit was removed."""
    encoder = mope.DualEncoder(zoo.build(family))
    pairs = zoo.pairs_of(encoder)
    plain, prefix = PlainEngine(encoder), PrefixEngine(encoder)
    engine = removal = 0.0
    for tower, inputs in zip(TOWERS, (pairs.images, pairs.tokens), strict=True):
        units = enumerate_units(encoder, ("head", "neurons", "block"), {}, 2, (tower,))
        for places, batch in prefix.ablations(tower, inputs, [single_ablation(unit) for unit in units]):
            for place, embeddings in zip(places, batch, strict=True):
                expected = plain.embeddings(tower, inputs, [single_ablation(units[place])])
                engine = max(engine, difference(embeddings, expected))
                gone = physically_without(encoder, units[place])
                removal = max(removal, difference(expected, gone.embed(tower, inputs)))
    return engine, removal


def pruned(family: str, ratio: float) -> tuple[float, list[str]]:
    """Heads, neurons and width in one step against an emulation on the whole model; towers whose width cannot be cut."""
    encoder = mope.DualEncoder(zoo.build(family))
    pairs, twin = zoo.pairs_of(encoder), mope.DualEncoder(copy.deepcopy(encoder.model))
    magnitude = tp.importance.GroupMagnitudeImportance()
    heads = [layer.block.attention.num_units for layer in encoder.layers if layer.block.attention is not None]
    head_ratio = min(ratio, (min(heads) - 1) / min(heads)) if heads else 0.0
    asked: dict[str, Any] = {"head_ratio": head_ratio, "ffn_ratio": ratio, "width_ratio": ratio}
    firm = []
    for tower in TOWERS:
        try:
            encoder.pruner_arguments(width_ratio=ratio, towers=(tower,))
        except ValueError:
            firm.append(tower)
    if firm:
        asked["width_ratio"] = 0.0
    importance = mope.WeightedImportance(encoder, [(magnitude, 1.0)], fallback=magnitude)
    pruner = tp.pruner.MetaPruner(encoder.model, importance=importance, **encoder.pruner_arguments(**asked))
    names = {parameter: name for name, parameter in encoder.model.named_parameters()}
    dims = {names[p]: dim for tower in encoder.towers.values() for p, dim in tower.joint_parameters}
    groups = list(pruner.step(interactive=True))
    cut = cuts_of(encoder.model, pruner.DG, groups)
    for group in groups:
        group.prune()
    with emulated(twin.model, cut, dims):
        expected = [twin.embed("image", pairs.images), twin.embed("text", pairs.tokens)]
    found = [encoder.embed("image", pairs.images), encoder.embed("text", pairs.tokens)]
    return max(difference(a, b) for a, b in zip(found, expected, strict=True)), firm


def quantized(family: str) -> str:
    """Mean cosines of the embeddings of int8 files to those of float files, on inputs that are not calibrated on."""
    encoder = mope.DualEncoder(zoo.build(family))
    images = zoo.pairs_of(encoder, 96).images
    context = encoder.example_inputs["tokens"].shape[1]  # RoBERTa's is longer than the zoo's captions
    pairs = mope.Pairs(images, tokens_for(96, context=context, vocabulary=zoo.VOCABULARY))
    parts = [mope.Pairs(pairs.images[part], pairs.tokens[part]) for part in (slice(64), slice(64, None))]
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"quantize": "int8", "pairs": parts[0], "test_pairs": parts[1], "max_drop": 100.0}
        mope.export(encoder, Path(folder) / "int8", **options)
        about = json.loads((Path(folder) / "int8" / "deployment.json").read_text())["quantization"]
    return " / ".join(f"{about['measured']['cosine'][tower]:.3f}" for tower in TOWERS)


def row(family: str) -> dict[str, Any]:
    """All of it."""
    encoder = mope.DualEncoder(zoo.build(family))
    engine, removal = ablated(family)
    (low, firm), (high, _) = pruned(family, 0.3), pruned(family, 0.7)
    walk = PrefixEngine(encoder)
    ways = {type(walk.walk(tower)).__name__ for tower in TOWERS}
    kinds = [
        name
        for name, present in (
            ("heads", any(layer.block.attention for layer in encoder.layers)),
            ("neurons", any(layer.block.feed_forward for layer in encoder.layers)),
            ("layers", any(layer.block.siblings is not None for layer in encoder.layers)),
            ("width" if not firm else f"width ({', '.join(t for t in TOWERS if t not in firm)} only)", True),
        )
        if present
    ]
    return {
        "family": family,
        "prunes": ", ".join(kinds),
        "scoring": {frozenset({"StreamWalk"}): "in parts", frozenset({"LayerWalk"}): "by layer"}.get(
            frozenset(ways), "in parts / by layer"
        ),
        "swapped = original": swapped(family),
        "engine = plain loop": engine,
        "scored = removed": removal,
        "pruned 0.3 = emulated": low,
        "pruned 0.7 = emulated": high,
        "int8 ~ float": quantized(family),
    }


@torch.no_grad()
def main() -> None:
    """Measures and writes."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for family in zoo.FAMILIES:
        with torch.enable_grad():
            rows.append(row(family))
        print(rows[-1])
    target = ROOT / "torch_pruning_mope/data/assets/families.json"
    target.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
