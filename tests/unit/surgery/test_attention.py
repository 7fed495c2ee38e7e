"""PrunableAttention against nn.MultiheadAttention, whole and with heads gone."""

import copy
from typing import Any

import pytest
import torch
import torch_pruning as tp
from open_clip.transformer import Attention as OpenClipAttention
from torch import Tensor, nn

from tests.asserts import assert_close, unchanged
from tests.unit.models import shake
from torch_pruning_mope import register_attention
from torch_pruning_mope.surgery import PrunableAttention, customized_pruners, prunable_attention, swap_attention
from torch_pruning_mope.surgery._attention import tracing

N, TQ, TK, D, H = 3, 5, 7, 24, 4


class _Holder(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention: Any = attention

    def forward(self, *inputs: Tensor, **masks: Tensor) -> Tensor:
        out = self.attention(*inputs, need_weights=False, **masks)[0]
        assert isinstance(out, Tensor)
        return out


class _SelfHolder(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention: Any = attention

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out = self.attention(x, attn_mask=mask)
        assert isinstance(out, Tensor)
        return out


def _swapped(attention: nn.MultiheadAttention) -> tuple[_Holder, _Holder]:
    shake(attention)
    original = _Holder(attention.eval())
    swapped = copy.deepcopy(original)
    assert swap_attention(swapped) == 1
    assert type(swapped.attention) is PrunableAttention
    return original, swapped


def _inputs(queries: int = TQ, keys: int = TK, key_dim: int = D, batch_first: bool = True) -> list[Tensor]:
    shaped = [torch.randn(N, queries, D), torch.randn(N, keys, key_dim), torch.randn(N, keys, key_dim)]
    return shaped if batch_first else [x.transpose(0, 1) for x in shaped]


def _masks() -> dict[str, dict[str, Tensor]]:
    allowed = torch.rand(TQ, TK) > 0.4
    allowed[:, 0] = True  # a query that may attend to nothing is NaN in both
    per_head = torch.rand(N * H, TQ, TK) > 0.4
    per_head[..., 0] = True
    padding = torch.zeros(N, TK, dtype=torch.bool)
    padding[1, 4:] = padding[2, 2:] = True
    return {
        "none": {},
        "additive": {"attn_mask": torch.randn(TQ, TK)},
        "boolean": {"attn_mask": ~allowed},
        "additive per head": {"attn_mask": torch.randn(N * H, TQ, TK)},
        "boolean per head": {"attn_mask": ~per_head},
        "padding": {"key_padding_mask": padding},
        "additive padding": {"key_padding_mask": torch.zeros(N, TK).masked_fill(padding, -torch.inf)},
        "boolean and padding": {"attn_mask": ~allowed, "key_padding_mask": padding},
        "per head and padding": {"attn_mask": ~per_head, "key_padding_mask": padding},
    }


@pytest.mark.parametrize("mask", _masks())
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("key_dim", [D, 18])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_torch(mask: str, batch_first: bool, key_dim: int, bias: bool) -> None:
    kv = key_dim if key_dim != D else None
    module = nn.MultiheadAttention(D, H, batch_first=batch_first, kdim=kv, vdim=kv, bias=bias)
    original, swapped = _swapped(module)
    inputs, masks = _inputs(key_dim=key_dim, batch_first=batch_first), _masks()[mask]
    assert_close(swapped(*inputs, **masks), original(*inputs, **masks), 1e-6)


@pytest.mark.parametrize("mask", [name for name in _masks() if "per head" not in name])
@pytest.mark.parametrize("gone", [[0], [3], [1, 2], [0, 1, 3]])
def test_head_removal_is_masking(mask: str, gone: list[int]) -> None:
    original, swapped = _swapped(nn.MultiheadAttention(D, H, batch_first=True))
    masked = _with_heads_masked(original, gone)
    _remove_heads(swapped, gone)
    inputs, masks = _inputs(), _masks()[mask]
    assert swapped.attention.num_heads == H - len(gone)
    assert_close(swapped(*inputs, **masks), masked(*inputs, **masks), 1e-6)


@pytest.mark.parametrize("kind", ["additive", "boolean"])
def test_a_mask_of_the_original_head_count_serves_pruned_heads_if_heads_agree(kind: str) -> None:
    original, swapped = _swapped(nn.MultiheadAttention(D, H, batch_first=True))
    masked = _with_heads_masked(original, [1])
    _remove_heads(swapped, [1])
    per_sample = torch.rand(N, 1, TQ, TK) > 0.4
    per_sample[..., 0] = False
    mask = per_sample.expand(N, H, TQ, TK).flatten(0, 1)
    if kind == "additive":
        mask = torch.zeros(mask.shape).masked_fill(mask, -torch.inf)
    inputs = _inputs()
    assert_close(swapped(*inputs, attn_mask=mask), masked(*inputs, attn_mask=mask), 1e-6)


def test_a_mask_that_tells_lost_heads_apart_is_refused() -> None:
    _, swapped = _swapped(nn.MultiheadAttention(D, H, batch_first=True))
    _remove_heads(swapped, [1])
    with pytest.raises(ValueError, match=r"one mask per head that is left \(3\)"):
        swapped(*_inputs(), attn_mask=torch.randn(N * H, TQ, TK))


def test_the_softmax_scale_stays_when_heads_go() -> None:
    _, swapped = _swapped(nn.MultiheadAttention(D, H, batch_first=True))
    _remove_heads(swapped, [0, 2])
    assert swapped.attention.scale == pytest.approx((D // H) ** -0.5)
    assert swapped.attention.head_dim == D // H


def test_trap_a_canary_stock_attention_keeps_its_heads() -> None:
    """Canary: what Torch-Pruning does to the module that we replace. If this fails, the swap may be obsolete."""
    holder = _Holder(nn.MultiheadAttention(D, H, batch_first=True))
    inputs = tuple(_inputs(TQ, TQ))
    pruner = tp.pruner.MetaPruner(
        holder,
        inputs,
        importance=tp.importance.RandomImportance(),
        pruning_ratio=0.5,
        num_heads={holder.attention: H},
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=0.5,
        in_channel_groups={},
        out_channel_groups={},
    )
    pruner.step()
    assert holder.attention.num_heads == H


def test_cut_head_dimensions_are_refused() -> None:
    _, swapped = _swapped(nn.MultiheadAttention(D, H, batch_first=True))
    tp.prune_linear_out_channels(swapped.attention.v_proj, [0])
    with pytest.raises(RuntimeError, match="needs whole heads of 6 channels; found q/v widths 24/23"):
        _ = swapped.attention.num_heads


def test_attention_weights_are_refused() -> None:
    _, swapped = _swapped(nn.MultiheadAttention(D, H, batch_first=True))
    with pytest.raises(NotImplementedError, match="need_weights must be False"):
        swapped.attention(*_inputs(), need_weights=True)


@pytest.mark.parametrize("option", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_attention_with_extra_keys_stays(option: dict[str, bool]) -> None:
    model = nn.Sequential(nn.MultiheadAttention(D, H), nn.MultiheadAttention(D, H, **option))
    swapped, problems = prunable_attention(model)
    assert list(swapped) == ["0"]
    assert "add_bias_kv or add_zero_attn cannot be pruned" in problems["1"]
    assert swap_attention(model) == 1
    assert [type(module) for module in model] == [PrunableAttention, nn.MultiheadAttention]


EXTRAS: dict[str, dict[str, Any]] = {
    "none": {},
    "qk_norm": {"qk_norm": True},
    "scale_heads": {"scale_heads": True},
    "inner_norm": {"inner_norm": True},
    "proj_drop": {"proj_drop": 0.3},
    "attn_drop": {"attn_drop": 0.3},
    "all": {"qk_norm": True, "scale_heads": True, "inner_norm": True, "proj_drop": 0.3, "attn_drop": 0.3},
}
COSINE: dict[str, dict[str, Any]] = {
    "scaled_cosine": {"scaled_cosine": True},
    "scaled_cosine, lower ceiling": {"scaled_cosine": True, "logit_scale_max": 2.2},
    "scaled_cosine, scale_heads": {"scaled_cosine": True, "scale_heads": True},
    "scaled_cosine, inner_norm": {"scaled_cosine": True, "inner_norm": True},
}


def _self_attention(option: dict[str, Any], *, bias: bool = True) -> tuple[Any, _SelfHolder]:
    module = OpenClipAttention(D, H, qkv_bias=bias, **option).eval()
    shake(module)
    swapped = copy.deepcopy(_SelfHolder(module))
    assert swap_attention(swapped) == 1
    assert isinstance(swapped.attention, PrunableAttention)
    return module, swapped


def _self_masks() -> dict[str, Tensor | None]:
    allowed = torch.rand(TQ, TQ) > 0.4
    allowed.fill_diagonal_(True)
    return {
        "none": None,
        "additive": torch.randn(TQ, TQ),
        "boolean": ~allowed,
        "per head": torch.randn(N * H, TQ, TQ),
    }


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", _self_masks())
@pytest.mark.parametrize("extra", EXTRAS)
def test_open_clip_attention_is_bit_equal(extra: str, mask: str, bias: bool) -> None:
    module, swapped = _self_attention(EXTRAS[extra], bias=bias)
    x, given = torch.randn(N, TQ, D), _self_masks()[mask]
    assert torch.equal(swapped(x, given), module(x, attn_mask=given))


@pytest.mark.parametrize("extra", ["proj_drop", "attn_drop", "all"])
def test_open_clip_attention_drops_alike_in_training(extra: str) -> None:
    module, swapped = _self_attention(EXTRAS[extra])
    x = torch.randn(N, TQ, D)
    kept = swapped(x)
    outputs = []
    for run in (module.train(), swapped.train()):
        torch.manual_seed(1)
        outputs.append(run(x))
    assert torch.equal(*outputs)
    assert not torch.allclose(outputs[0], kept, atol=1e-3)


@pytest.mark.parametrize("mask", ["none", "additive", "boolean"])
@pytest.mark.parametrize("extra", [*EXTRAS, *COSINE])
def test_open_clip_attention_computes_as_written_out(extra: str, mask: str) -> None:
    """The check of the reference below, and for scaled cosine, which open_clip cannot run, of the attention."""
    module, swapped = _self_attention((EXTRAS | COSINE)[extra])
    x, given = torch.randn(N, TQ, D), _self_masks()[mask]
    assert_close(swapped(x, given), _written_out(module, x, given, list(range(H))), 2e-6)


@pytest.mark.parametrize("extra", COSINE)
def test_scaled_cosine_canary(extra: str) -> None:
    """open_clip multiplies 4-D tensors with torch.bmm. If this fails, its own module is the oracle to compare with."""
    module, _ = _self_attention(COSINE[extra])
    with pytest.raises(RuntimeError, match="must be a 3D tensor"):
        module(torch.randn(N, TQ, D))


def test_the_ceiling_of_scaled_cosine_matters() -> None:
    (module, _), (lower, _) = (_self_attention(COSINE[name]) for name in list(COSINE)[:2])
    lower.load_state_dict(module.state_dict())
    x = torch.randn(N, TQ, D)
    whole, capped = (_written_out(each, x, None, list(range(H))) for each in (module, lower))
    assert not torch.allclose(whole, capped, atol=1e-3)


@pytest.mark.parametrize(
    ("steps", "mask"),
    [([[0]], "none"), ([[1, 2]], "additive"), ([[1], [0, 2]], "boolean"), ([[0], [0], [0]], "none")],
)
@pytest.mark.parametrize("extra", [*EXTRAS, *COSINE])
def test_open_clip_attention_without_heads(extra: str, steps: list[list[int]], mask: str) -> None:
    """Cut by Torch-Pruning, at once or one after another, numbered among those that are left."""
    module, swapped = _self_attention((EXTRAS | COSINE)[extra])
    x, given = torch.randn(N, TQ, D), _self_masks()[mask]
    kept = list(range(H))
    for gone in steps:
        _remove_own_heads(swapped, gone)
        kept = [head for place, head in enumerate(kept) if place not in gone]
    assert swapped.attention.num_heads == len(kept)
    assert_close(swapped(x, given), _written_out(module, x, given, kept), 2e-6)
    if extra in EXTRAS and not EXTRAS[extra].get("inner_norm"):  # which would take the mean over lost heads too
        with torch.no_grad():
            lost = [head for head in range(H) if head not in kept]
            module.out_proj.weight.view(D, H, D // H)[:, lost] = 0
        assert_close(swapped(x, given), module(x, attn_mask=given), 2e-6)


@pytest.mark.parametrize("extra", ["scale_heads", "scaled_cosine"])
def test_copies_know_their_heads(extra: str) -> None:
    module, swapped = _self_attention((EXTRAS | COSINE)[extra])
    _remove_own_heads(swapped, [0, 2])
    twin = copy.deepcopy(swapped)
    _remove_own_heads(twin, [0])
    x = torch.randn(N, TQ, D)
    assert_close(swapped(x), _written_out(module, x, None, [1, 3]), 2e-6)
    assert_close(twin(x), _written_out(module, x, None, [3]), 2e-6)
    assert twin.attention.v_proj.heads.tolist() == [3]


@pytest.mark.parametrize("extra", ["scale_heads", "scaled_cosine"])
def test_parts_of_heads_cannot_go_where_heads_have_numbers_of_their_own(extra: str) -> None:
    _, swapped = _self_attention((EXTRAS | COSINE)[extra])
    with unchanged(swapped), pytest.raises(ValueError, match="channels must be whole heads of 6; found 23 of 4 heads"):
        swapped.attention.v_proj.keep(list(range(1, D)))


@pytest.mark.parametrize("extra", [*EXTRAS, *COSINE])
def test_open_clip_state_dicts_load_strictly(extra: str) -> None:
    module, swapped = _self_attention((EXTRAS | COSINE)[extra])
    _, receiver = _self_attention((EXTRAS | COSINE)[extra])
    x = torch.randn(N, TQ, D)
    assert not torch.allclose(receiver(x), swapped(x))
    receiver.attention.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(receiver(x), swapped(x))
    receiver.load_state_dict(swapped.state_dict(), strict=True)
    assert torch.equal(receiver(x), swapped(x))


def test_swap_twice_swaps_once() -> None:
    _, swapped = _swapped(nn.MultiheadAttention(D, H))
    attention = swapped.attention
    assert swap_attention(swapped) == 0
    assert swapped.attention is attention


def test_swap_keeps_flags_and_dtype() -> None:
    module = nn.MultiheadAttention(D, H, dropout=0.25, dtype=torch.bfloat16)
    module.in_proj_weight.requires_grad_(False)
    holder = _Holder(module)
    swap_attention(holder)
    new = holder.attention
    assert new.training
    assert new.dropout == 0.25
    assert {parameter.dtype for parameter in new.parameters()} == {torch.bfloat16}
    assert not any(getattr(new, f"{name}_proj").weight.requires_grad for name in "qkv")
    assert all(getattr(new, f"{name}_proj").bias.requires_grad for name in "qkv")
    assert new.out_proj is module.out_proj


@pytest.mark.parametrize("key_dim", [None, 18])
@pytest.mark.parametrize("bias", [True, False])
def test_state_dicts_load_strictly(key_dim: int | None, bias: bool) -> None:
    original, swapped = _swapped(nn.MultiheadAttention(D, H, kdim=key_dim, vdim=key_dim, bias=bias, batch_first=True))
    other, receiver = _swapped(nn.MultiheadAttention(D, H, kdim=key_dim, vdim=key_dim, bias=bias, batch_first=True))
    inputs = _inputs(key_dim=key_dim or D)
    receiver.load_state_dict(original.state_dict(), strict=True)
    assert_close(receiver(*inputs), original(*inputs), 1e-6)
    receiver.load_state_dict(swapped.state_dict(), strict=True)
    assert torch.equal(receiver(*inputs), swapped(*inputs))
    assert not torch.allclose(other(*inputs), original(*inputs))


def test_loading_does_not_edit_the_callers_state() -> None:
    original, swapped = _swapped(nn.MultiheadAttention(D, H))
    state = original.state_dict()
    names = sorted(state)
    swapped.load_state_dict(state, strict=True)
    assert sorted(state) == names


def test_a_second_converter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a converter of its attention; registered already: \['MultiheadAttention'\]"):
        register_attention(nn.MultiheadAttention)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="num_heads must divide inner_dim=24; found 5"):
        PrunableAttention(D, D, D, D, 5)


def _with_heads_masked(original: _Holder, gone: list[int]) -> _Holder:
    """Zero columns of the out-projection: the oracle is nn.MultiheadAttention itself."""
    masked = copy.deepcopy(original)
    with torch.no_grad():
        masked.attention.out_proj.weight.view(D, H, D // H)[:, gone] = 0
    return masked


def _remove_heads(swapped: _Holder, gone: list[int]) -> None:
    graph = tp.DependencyGraph().build_dependency(swapped, tuple(_inputs()))
    channels = [channel for head in gone for channel in range(head * D // H, (head + 1) * D // H)]
    group = graph.get_pruning_group(swapped.attention.out_proj, tp.prune_linear_in_channels, channels)
    linears = {dep.target.module for dep, _ in group if isinstance(dep.target.module, nn.Linear)}
    assert linears == {getattr(swapped.attention, f"{name}_proj") for name in ("q", "k", "v", "out")}
    group.prune()


def _written_out(module: Any, x: Tensor, mask: Tensor | None, kept: list[int]) -> Tensor:
    """open_clip's attention in plain tensor code, head by head, without those that are not kept."""
    size = D // H
    weights = module.in_proj_weight.chunk(3)
    biases = [0.0] * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    heads, channels = [], []
    for head in kept:
        rows = slice(head * size, (head + 1) * size)
        q, k, v = (
            x @ weight[rows].T + (bias[rows] if isinstance(bias, Tensor) else bias)
            for weight, bias in zip(weights, biases, strict=True)
        )
        if module.logit_scale is not None:
            q, k = (y / y.square().sum(-1, keepdim=True).sqrt() for y in (q, k))
            scores = q @ k.mT * module.logit_scale[head].clamp(max=module.logit_scale_max).exp()
        else:
            scores = module.ln_q(q) @ module.ln_k(k).mT / size**0.5
        if mask is not None:
            scores = scores.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        out = scores.softmax(-1) @ v
        heads.append(out if module.head_scale is None else out * module.head_scale[head])
        channels += range(D)[rows]
    hidden = torch.cat(heads, -1)
    if isinstance(module.ln_inner, nn.LayerNorm):
        norm = module.ln_inner
        hidden = nn.functional.layer_norm(
            hidden, hidden.shape[-1:], norm.weight[channels], norm.bias[channels], norm.eps
        )
    out = hidden @ module.out_proj.weight[:, channels].T + module.out_proj.bias
    assert isinstance(out, Tensor)
    return out


def _remove_own_heads(swapped: _SelfHolder, gone: list[int]) -> None:
    """As :func:`_remove_heads`, where some parameters are per head, or over all heads."""
    attention = swapped.attention

    def forward(model: nn.Module, x: Tensor) -> Any:
        with tracing(model):
            return model(x)

    graph = tp.DependencyGraph().build_dependency(
        swapped,
        torch.randn(N, TQ, D),
        forward_fn=forward,
        unwrapped_parameters=[(parameter, 0) for parameter in attention.left_alone()],
        customized_pruners=customized_pruners(swapped),
    )
    channels = [channel for head in gone for channel in range(head * D // H, (head + 1) * D // H)]
    group = graph.get_pruning_group(attention.out_proj, tp.prune_linear_in_channels, channels)
    assert all(dep.target.module not in set(attention.left_alone()) for dep, _ in group)
    group.prune()
