"""The dependency graph, and a canary for each trap of Torch-Pruning 1.6.1 that it goes round.

A canary asserts that stock Torch-Pruning is still wrong. When one fails, the correction beside it may be dropped.
"""

from functools import partial
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import nn

import torch_pruning_mope as mope
from tests.asserts import assert_close, unchanged
from tests.unit.models import clip, pairs_for
from torch_pruning_mope import DualEncoder
from torch_pruning_mope.errors import UngroupedParametersError
from torch_pruning_mope.surgery import customized_pruners

ROOTS = [nn.Conv2d, nn.Linear, nn.Embedding]


def _stock_graph(encoder: DualEncoder, **changes: Any) -> tp.DependencyGraph:
    arguments = encoder.graph_arguments() | {"customized_pruners": customized_pruners(encoder.model)} | changes
    return tp.DependencyGraph().build_dependency(encoder.model, **arguments)


# Trap C: cuts of more channels than the joint embedding has.


def _wide_cuts_allowed(graph: tp.DependencyGraph, encoder: DualEncoder) -> list[bool]:
    joint = 28
    roots = [layer.block.module.mlp.c_proj for layer in encoder.layers if layer.index == 0]
    assert all(root.out_features > joint for root in roots)
    groups = [graph.get_pruning_group(root, tp.prune_linear_out_channels, list(range(joint + 1))) for root in roots]
    return [graph.check_pruning_group(group) for group in groups]


def test_more_channels_than_the_embedding_has_may_go(encoder: DualEncoder) -> None:
    assert _wide_cuts_allowed(encoder.dependency_graph(), encoder) == [True, True]


def test_trap_c_canary(encoder: DualEncoder) -> None:
    without = {kind: p for kind, p in customized_pruners(encoder.model).items() if kind is not tp.ops._OutputOp}
    assert _wide_cuts_allowed(_stock_graph(encoder, customized_pruners=without), encoder) == [False, False]


# Trap G: order of LayerNorm weights.


def _norm(width: int, **options: Any) -> nn.LayerNorm:
    norm = nn.LayerNorm(width, **options)
    if norm.elementwise_affine:
        norm.weight.data = torch.arange(float(width))
        if norm.bias is not None:
            norm.bias.data = -torch.arange(float(width))
    return norm


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("width", [36, 192, 771])
def test_layer_norm_channels_stay_in_order(width: int, ratio: float) -> None:
    kept = sorted(torch.randperm(width)[: width - int(width * ratio)].tolist())
    norm = _norm(width)
    pruner = customized_pruners(norm)[nn.LayerNorm]
    pruner.prune_out_channels(norm, sorted(set(range(width)) - set(kept)))
    assert norm.weight.tolist() == kept
    assert norm.bias.tolist() == [-index for index in kept]
    assert norm.normalized_shape == (len(kept),)
    x = torch.randn(2, len(kept))
    assert_close(
        norm(x), nn.functional.layer_norm(x, (len(kept),), torch.tensor(kept).float(), -torch.tensor(kept).float()), 0
    )


@pytest.mark.parametrize("options", [{"bias": False}, {"elementwise_affine": False}])
def test_layer_norm_without_some_parameters(options: dict[str, bool]) -> None:
    norm = _norm(6, **options)
    customized_pruners(norm)[nn.LayerNorm].prune_in_channels(norm, [4, 0])
    assert norm.bias is None
    assert norm.weight is None or norm.weight.tolist() == [1, 2, 3, 5]
    assert norm(torch.randn(2, 4)).shape == (2, 4)


def test_layer_norm_keeps_its_gradient() -> None:
    norm = _norm(6)
    norm.weight.grad = 10 * torch.arange(6.0)
    customized_pruners(norm)[nn.LayerNorm].prune_out_channels(norm, [4, 0])
    assert norm.weight.grad is not None
    assert norm.weight.grad.tolist() == [10, 20, 30, 50]


def test_trap_g_canary() -> None:
    width = 771
    permuted = False
    for seed in range(5):
        gone = torch.randperm(width, generator=torch.Generator().manual_seed(seed))[: int(0.8 * width)].tolist()
        norm = _norm(width)
        tp.prune_layernorm_out_channels(norm, gone)
        permuted |= norm.weight.tolist() != sorted(norm.weight.tolist())
    assert permuted


def test_layer_norm_subclasses_are_covered(encoder: DualEncoder) -> None:
    """Torch-Pruning looks pruners up by exact class (trap N), and open_clip's norms are of classes of their own."""
    kinds = {type(module) for module in encoder.model.modules() if isinstance(module, nn.LayerNorm)}
    assert nn.LayerNorm not in kinds
    assert kinds <= customized_pruners(encoder.model).keys()


# Trap J: the projections into the joint embedding.


def _cut_width(graph: tp.DependencyGraph, encoder: DualEncoder) -> None:
    for layer in encoder.layers:
        if layer.index == 0:
            graph.get_pruning_group(layer.block.module.mlp.c_proj, tp.prune_linear_out_channels, [0, 5, 7]).prune()


def test_the_joint_embedding_keeps_its_size(encoder: DualEncoder) -> None:
    _cut_width(encoder.dependency_graph(), encoder)
    assert encoder.model.visual.proj.shape == (37, 28)
    assert encoder.model.text_projection.shape == (33, 28)


@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
def test_trap_j_canary(encoder: DualEncoder) -> None:
    _cut_width(_stock_graph(encoder, unwrapped_parameters=None), encoder)
    assert encoder.model.visual.proj.shape[1] != 28


# Trap L: coupled towers.


def _spans(graph: tp.DependencyGraph, encoder: DualEncoder) -> bool:
    image = {id(p) for p in encoder.model.visual.parameters()}
    return any(
        len({id(p) in image for dep, _ in group for p in _parameters(dep.target.module)}) > 1
        for group in graph.get_all_groups(root_module_types=ROOTS)
    )


def test_no_group_spans_both_towers(encoder: DualEncoder) -> None:
    assert not _spans(encoder.dependency_graph(), encoder)


def test_trap_l_canary(encoder: DualEncoder) -> None:
    """Traced through its logits, one group runs through both towers."""

    def forward(model: Any, inputs: dict[str, torch.Tensor]) -> Any:
        return model.get_logits(inputs["images"], inputs["tokens"])[0]

    assert _spans(_stock_graph(encoder, forward_fn=forward), encoder)


# Trap M: frozen towers; trap V: training mode.


@pytest.mark.parametrize("frozen", ["image", "text", "both"])
def test_frozen_towers_are_in_the_graph(encoder: DualEncoder, frozen: str) -> None:
    expected = _group_sizes(encoder.dependency_graph())
    _freeze(encoder, frozen)
    with unchanged(encoder.model):
        assert _group_sizes(encoder.dependency_graph()) == expected


def test_trap_m_canary(encoder: DualEncoder) -> None:
    expected = _group_sizes(encoder.dependency_graph())
    _freeze(encoder, "image")

    def forward(_: nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return [encoder.model.encode_image(inputs["images"]), encoder.model.encode_text(inputs["tokens"])]

    assert len(_group_sizes(_stock_graph(encoder, forward_fn=forward))) < len(expected)


def test_training_modes_are_kept(encoder: DualEncoder) -> None:
    encoder.model.train()
    encoder.model.visual.transformer.resblocks[1].eval()
    with unchanged(encoder.model):
        encoder.dependency_graph()


def test_trap_v_canary(encoder: DualEncoder) -> None:
    encoder.model.train()

    def forward(_: nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return [encoder.model.encode_image(inputs["images"]), encoder.model.encode_text(inputs["tokens"])]

    _stock_graph(encoder, forward_fn=forward)
    assert not encoder.model.training


# The check of every parameter.


def _with_strays(*, used: bool) -> Any:
    """A CLIP with a bare parameter and a layer that the towers know nothing of; their numbers may be part of the output."""
    model = clip()
    model.visual.extra = nn.Parameter(torch.zeros(3))
    model.stray = nn.Linear(2, 2)
    encode = model.encode_image
    if used:
        model.encode_image = lambda images: (
            encode(images)
            + sum(parameter.sum() for parameter in (model.visual.extra, model.stray.weight, model.stray.bias))
        )
    return model


@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
def test_all_ungrouped_parameters_are_named_together() -> None:
    model = _with_strays(used=True)
    encoder = DualEncoder(model)
    with unchanged(model), pytest.raises(UngroupedParametersError, match="joint_parameters") as caught:
        encoder.dependency_graph()
    assert all(name in str(caught.value) for name in ("visual.extra", "stray.weight", "stray.bias"))
    assert "logit_scale" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
def test_parameters_that_nothing_depends_on_are_left_alone() -> None:
    model = _with_strays(used=False)
    encoder = DualEncoder(model)
    with unchanged(model):
        encoder.dependency_graph()
    strays = (model.visual.extra, model.stray.weight, model.stray.bias)
    before = [parameter.detach().clone() for parameter in strays]
    removed = mope.prune(encoder, tp.importance.GroupMagnitudeImportance(), head_ratio=0.5, width_ratio=0.5)
    assert removed == mope.Counts(heads=3 * 2 + 2 * 2, width=20 + 18)
    assert all(torch.equal(stray, old) for stray, old in zip(strays, before, strict=True))


def test_a_graph_leaves_the_model_as_it_was(encoder: DualEncoder) -> None:
    with unchanged(encoder.model), torch.no_grad():
        encoder.dependency_graph()


@pytest.mark.parametrize("own", [True, False])
def test_a_model_that_fails_while_traced_keeps_no_hooks(encoder: DualEncoder, own: bool) -> None:
    """Torch-Pruning takes its hooks off only where the trace succeeds."""

    def fails(*_: Any) -> None:
        raise ArithmeticError("half way")

    encoder.model.train()
    arguments = encoder.pruner_arguments(head_ratio=0.5)
    encoder.model.transformer.resblocks[1].ln_2.register_forward_hook(fails)
    build = (
        encoder.dependency_graph
        if own
        else partial(tp.pruner.MetaPruner, encoder.model, importance=tp.importance.RandomImportance(), **arguments)
    )
    with unchanged(encoder.model), pytest.raises(ArithmeticError, match="half way"):
        build()


def test_traps_b_and_d_width_cuts_leave_heads_whole(encoder: DualEncoder) -> None:
    """Stock attention derives head_dim from the width; ours must compute with the same heads after the width is cut."""
    pairs = pairs_for(encoder.model, 3)
    attention = encoder.layers[0].block.module.attn
    _cut_width(encoder.dependency_graph(), encoder)
    assert (attention.num_heads, attention.head_dim, attention.q_proj.in_features) == (4, 10, 37)
    assert encoder.embed("image", pairs.images).shape == (3, 28)


def _parameters(target: Any) -> list[nn.Parameter]:
    return [target] if isinstance(target, nn.Parameter) else list(target.parameters())


def _freeze(encoder: DualEncoder, which: str) -> None:
    visual = {id(p) for p in encoder.model.visual.parameters()}
    for parameter in encoder.model.parameters():
        side = "image" if id(parameter) in visual else "text"
        parameter.requires_grad_(which not in {side, "both"})


def _group_sizes(graph: tp.DependencyGraph) -> list[tuple[int, int]]:
    return sorted((len(group), len(group[0].idxs)) for group in graph.get_all_groups(root_module_types=ROOTS))
