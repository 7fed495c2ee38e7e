"""Folded models embed as the models that they were made from."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import jaxtyping
import open_clip
import pytest
import torch
from torch import Tensor, nn

import torch_pruning_mope as mope
from tests.asserts import assert_close, unchanged
from tests.unit import zoo
from tests.unit.models import clip
from torch_pruning_mope import DualEncoder, Pairs
from torch_pruning_mope.deploy import fold
from torch_pruning_mope.deploy._blocks import Shift
from torch_pruning_mope.towers import Unit

each_family = pytest.mark.parametrize("family", zoo.FAMILIES)


def pruned(model: Any, *, empty: bool = True) -> DualEncoder:
    """Every third head and neuron gone, and all of some sub-layers that stand in a row of layers."""
    encoder = DualEncoder(model)
    units = []
    for layer in encoder.layers:
        parts = (("head", layer.block.attention), ("neurons", layer.block.feed_forward))
        for place, (kind, part) in enumerate(parts):
            if part is None:
                continue
            size = part.unit_size
            step = max(2, min(3, part.num_units))
            gone = list(range(0, part.num_units, step))
            if empty and part.can_be_empty and layer.block.siblings is not None and (layer.index + place) % 2 == 0:
                gone = list(range(part.num_units))
            gone = gone[: part.num_units - (0 if part.can_be_empty else 1)]
            channels = tuple(unit * size + channel for unit in gone for channel in range(size))
            if channels:
                units.append(Unit(kind, layer.tower, layer.index, 0, channels))  # type: ignore[arg-type]
    mope.remove_units(encoder, units)
    return encoder


@torch.no_grad()
def embeddings(model: Any, pairs: Pairs) -> Mapping[str, Tensor]:
    """By the model's own functions."""
    from tests.unit.towers.test_families import _embeddings

    return _embeddings(model, pairs)  # type: ignore[return-value]


def deviation(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    ("family", "empty"),
    [
        *((family, True) for family in zoo.FAMILIES),
        *((family, False) for family in ("open_clip ViT", "SigLIP", "CoCa")),
    ],
)
def test_embeddings_stay(family: str, empty: bool) -> None:
    encoder = pruned(zoo.build(family), empty=empty)
    pairs = zoo.pairs_of(encoder)
    exact = Pairs(pairs.images.double(), pairs.tokens)
    with unchanged(encoder.model):
        folded = fold(encoder)
    own, found = embeddings(encoder.model, pairs), embeddings(folded, pairs)
    expected = embeddings(encoder.model.double(), exact)
    found_exact = embeddings(fold(encoder.model), exact)
    for tower in expected:
        assert_close(found_exact[tower], expected[tower], 1e-13)
        # Some of these models magnify rounding, their own as well.
        assert deviation(found[tower], expected[tower]) <= max(3e-6, 3 * deviation(own[tower], expected[tower]))


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def test_no_projection_is_left_alone() -> None:
    for family in ("open_clip ViT", "SigLIP", "CoCa", "transformers CLIP", "transformers SigLIP", "RoBERTa"):
        folded = fold(zoo.build(family))
        names = {name.rpartition(".")[2] for name, module in folded.named_modules() if isinstance(module, nn.Linear)}
        assert names & {"qkv_proj"}
        assert not names & {"q_proj", "k_proj", "v_proj", "query", "key", "value"}, family


def test_what_is_empty_is_gone() -> None:
    encoder = pruned(clip(vision={"ls_init_value": 0.3}))
    kept = sum(part.num_units > 0 for block in encoder.image.blocks for part in block.prunables)
    folded = fold(encoder)
    sublayers = [part for part in folded.visual.transformer.resblocks if not isinstance(part, Shift)]
    assert len(sublayers) == kept < 2 * len(encoder.image.blocks)
    assert all(0 not in parameter.shape for parameter in folded.parameters())
    assert not [module for module in folded.modules() if type(module).__name__ == "LayerScale"]


def test_a_tower_without_any_unit() -> None:
    encoder = DualEncoder(clip())
    units = [
        Unit(kind, "text", layer.index, 0, tuple(range(part.channels)))  # type: ignore[arg-type]
        for layer in encoder.layers
        for kind, part in (("head", layer.block.attention), ("neurons", layer.block.feed_forward))
        if layer.tower == "text" and part is not None
    ]
    mope.remove_units(encoder, units)
    pairs = zoo.pairs_of(encoder)
    assert_close(embeddings(fold(encoder), pairs)["text"], embeddings(encoder.model, pairs)["text"], 1e-6)


def test_embeddings_of_one_token_ask_for_that_token_alone() -> None:
    """The last attention's queries, and all that follows, see one token of each sequence."""
    folded = fold(clip())
    seen: dict[str, list[int]] = {}
    for tower, blocks in (("image", folded.visual.transformer.resblocks), ("text", folded.transformer.resblocks)):
        for block in blocks:
            block.register_forward_hook(
                lambda _m, _a, out, tower=tower: seen.setdefault(tower, []).append(out.shape[1])
            )
    folded.encode_image(images())
    folded.encode_text(zoo.tokens(3))
    assert seen == {"image": [10] * 4 + [1] * 2, "text": [9] * 2 + [1] * 2}


def test_it_is_a_model_of_its_own() -> None:
    model = clip()
    with unchanged(model):
        folded = fold(model)
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    expected = folded.encode_image(images(), normalize=True)
    assert_close(expected.norm(dim=-1), torch.ones(3), 1e-6)
    twin = copy.deepcopy(folded)
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.zero_()
    assert torch.equal(twin.encode_image(images(), normalize=True), expected)
    folded.load_state_dict(twin.state_dict())
    assert torch.equal(folded.encode_image(images(), normalize=True), expected)
    with pytest.raises(mope.errors.UnsupportedModelError, match="found FoldedClip"):
        DualEncoder(folded)
    with pytest.raises(ValueError, match="must have its weights"):
        fold(model.to("meta"))


def test_shorter_captions_embed_as_they_would_in_full() -> None:
    for kind in (open_clip.CLIP, open_clip.CustomTextCLIP):
        folded = fold(clip(kind))
        tokens = zoo.tokens(2)  # of 3 and 4 ids
        assert_close(folded.encode_text(tokens[:, :4]), folded.encode_text(tokens), 1e-6)


@pytest.mark.parametrize("family", ["open_clip ViT", "transformers SigLIP"])
def test_it_compiles_in_one_graph(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # torch.compile cannot follow the checks of types
    encoder = pruned(zoo.build(family))
    pairs = zoo.pairs_of(encoder, 3)
    folded = fold(encoder)
    for tower, inputs in (("image", pairs.images), ("text", pairs.tokens)):
        if hasattr(folded, "encode_image"):
            function = partial(getattr(folded, f"encode_{tower}"), normalize=False)
        else:
            function = getattr(folded, f"get_{tower}_features")
        torch._dynamo.reset()
        with torch.no_grad():
            found = torch.compile(function, fullgraph=True, backend="aot_eager")(inputs)
            found = found if isinstance(found, Tensor) else found.pooler_output
            assert_close(found, encoder.embed(tower, inputs), 1e-5)  # type: ignore[arg-type]
