"""open_clip models: wrapped equals original, the tower's parts equal the model's own encoders, cuts are exact."""

import copy
from typing import Any

import open_clip
import pytest
import torch
import torch_pruning as tp
from open_clip.transformer import Attention as OpenClipAttention
from torch import nn

import torch_pruning_mope as mope
from tests.asserts import assert_close, assert_trains, unchanged
from tests.unit.models import clip, pairs_for
from tests.unit.zoo import build, pairs_of
from torch_pruning_mope import DualEncoder
from torch_pruning_mope.errors import UnsupportedModelError
from torch_pruning_mope.scoring import PrefixEngine
from torch_pruning_mope.surgery import PrunableAttention

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "custom text clip": {"kind": open_clip.CustomTextCLIP},
    "quick gelu": {"quick_gelu": True},
    "layer scale": {"vision": {"ls_init_value": 0.3}, "text": {"ls_init_value": 0.4}},
    "average pool": {"vision": {"pool_type": "avg"}},
    "average pool, norm after it": {"vision": {"pool_type": "avg", "final_ln_after_pool": True}},
    "class token, norm after pool": {"vision": {"final_ln_after_pool": True}},
    "no first norm": {"vision": {"no_ln_pre": True}},
    "eos pool": {"text": {"pool_type": "eos"}},
    "last pool": {"text": {"pool_type": "last"}},
    "first pool": {"text": {"pool_type": "first"}},
    "eos pool, custom text clip": {"kind": open_clip.CustomTextCLIP, "text": {"pool_type": "eos"}},
    "norm after text pool": {"kind": open_clip.CustomTextCLIP, "text": {"final_ln_after_pool": True}},
    "last pool, norm after it": {
        "kind": open_clip.CustomTextCLIP,
        "text": {"pool_type": "last", "final_ln_after_pool": True},
    },
    "no causal mask": {"text": {"no_causal_mask": True}},
    "linear projection with bias": {"kind": open_clip.CustomTextCLIP, "text": {"proj_bias": True}},
    "logit bias": {"init_logit_bias": -10.0},
    "vector logit scale": {"nonscalar_logit_scale": True},
    "custom blocks": {"vision": {"block_type": "custom"}, "text": {"block_type": "custom"}},
    "norm after attention": {"vision": {"scale_attn": True}, "text": {"scale_attn": True}},
    "one layer": {"vision": {"layers": 1}, "text": {"layers": 1}},
    "norms of queries and keys": {"vision": {"qk_norm": True}, "text": {"qk_norm": True}},
    "scaled heads": {"vision": {"scale_heads": True}, "text": {"scale_heads": True}},
    "inner norm of attention": {"vision": {"scale_attn_inner": True}, "text": {"scale_attn_inner": True}},
    "inner norm of the MLP": {"vision": {"scale_fc": True}, "text": {"scale_fc": True}},
    "attentional pool": {"vision": {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 5}},
    "appended class token": {"kind": open_clip.CustomTextCLIP, "text": {"embed_cls": True}},
    "ResNet": {"vision": {"layers": (2, 1, 1, 1), "image_size": 64, "width": 16, "head_width": 64}},
}
OPAQUE: dict[str, set[str]] = {
    "inner norm of attention": {"image", "text"},
    "inner norm of the MLP": {"image", "text"},
    "attentional pool": {"image"},
    "appended class token": {"text"},
    "ResNet": {"image"},
}
"""The towers of the cases that are run by the model's own code, all but the ResNet in parts."""


def _encode(model: Any, pairs: mope.Pairs) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {"image": model.encode_image(pairs.images), "text": model.encode_text(pairs.tokens)}


@pytest.mark.parametrize("case", CASES)
def test_wrapped_equals_original(case: str) -> None:
    model = clip(**CASES[case])
    pairs, original = pairs_for(model, 10), copy.deepcopy(model)
    expected = _encode(original, pairs)
    encoder = DualEncoder(model)
    assert encoder.model is model
    found = _encode(model, pairs)
    assert_close(found["image"], expected["image"], 1e-6)
    # Under a mask nn.MultiheadAttention runs the same kernels as we do, as does open_clip's own attention.
    if "no causal" not in case:
        assert torch.equal(found["text"], expected["text"])
    assert_close(found["text"], expected["text"], 1e-6)
    with torch.no_grad():
        assert torch.equal(encoder.embed("image", pairs.images), found["image"])
        assert torch.equal(encoder.embed("text", pairs.tokens), found["text"])


@pytest.mark.parametrize("case", CASES)
def test_towers_parts_and_cuts_equal_the_models_own_encoders(case: str) -> None:
    """Through stem, blocks and readout, if taken apart; and through the engine, which narrows to the pooled token."""
    model = clip(**CASES[case])
    encoder, pairs = DualEncoder(model), pairs_for(model, 10)
    expected = _encode(model, pairs)
    for name, tower in encoder.towers.items():
        inputs = pairs.images if name == "image" else pairs.tokens
        assert isinstance(tower, mope.towers.OpaqueTower) == (name in OPAQUE.get(case, set()))
        assert isinstance(tower, mope.towers.Tower) == ((case, name) != ("ResNet", "image"))
        if isinstance(tower, mope.towers.Tower):
            with torch.no_grad():
                assert_close(tower.embed(inputs), expected[name], 1e-6)
        for batch_size in (1, 3, 64):
            assert_close(PrefixEngine(encoder, batch_size=batch_size).embeddings(name, inputs), expected[name], 2e-6)


@pytest.mark.parametrize("case", CASES)
def test_state_dicts_load_strictly(case: str) -> None:
    original, wrapped = clip(**CASES[case], seed=1), clip(**CASES[case], seed=2)
    pairs = pairs_for(original, 4)
    assert not torch.allclose(_encode(original, pairs)["text"], _encode(wrapped, pairs)["text"])
    DualEncoder(wrapped)
    wrapped.load_state_dict(original.state_dict(), strict=True)
    for name, value in _encode(wrapped, pairs).items():
        assert_close(value, _encode(original, pairs)[name], 1e-6)
    again = clip(**CASES[case], seed=3)
    DualEncoder(again)
    again.load_state_dict(wrapped.state_dict(), strict=True)
    for name, value in _encode(again, pairs).items():
        assert torch.equal(value, _encode(wrapped, pairs)[name])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", CASES)
def test_every_parameter_is_grouped(case: str) -> None:
    """`dependency_graph` raises otherwise, and Torch-Pruning warns of bare parameters that it was not told of."""
    encoder = DualEncoder(clip(**CASES[case]))
    graph = encoder.dependency_graph()
    joint = [parameter for tower in encoder.towers.values() for parameter, _ in tower.joint_parameters]
    assert {name for name, p in encoder.model.named_parameters() if any(p is each for each in joint)} == _bare(encoder)
    groups = [*graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear, nn.Embedding])]
    # What no layer makes, such as a pool's learnt queries, has groups of its own.
    groups += [graph.get_pruning_group(parameter, tp.prune_parameter_out_channels, [0]) for parameter in joint]
    grouped: set[Any] = set()
    for group in groups:
        for dep, _ in group:
            target = dep.target.module
            grouped.update([target] if isinstance(target, nn.Parameter) else target.parameters())
    left = {name.rpartition(".")[2] for name, p in encoder.model.named_parameters() if p not in grouped}
    alone = {"norms of queries and keys": {"weight", "bias"}, "scaled heads": {"head_scale"}}
    assert left == {"logit_scale"} | alone.get(case, set()) | ({"logit_bias"} if case == "logit bias" else set())


def _bare(encoder: DualEncoder) -> set[str]:
    """All parameters of no layer by name, but for those that pruning leaves alone."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in encoder.model.named_modules()
        if not isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding | nn.LayerNorm | nn.BatchNorm2d)
        for name, _ in module.named_parameters(recurse=False)
        if name not in {"logit_scale", "logit_bias", "head_scale"}
    }


def test_captions_are_cut_exactly() -> None:
    """Nothing behind the end of text reaches the embedding, and the tower says so."""
    encoder = DualEncoder(clip())
    tokens = pairs_for(encoder.model, 10).tokens
    lengths = encoder.text.lengths(tokens)
    assert lengths is not None
    assert lengths.tolist() == [row.tolist().index(49) + 1 for row in tokens]
    with torch.no_grad():
        for row, length in zip(tokens, lengths.tolist(), strict=True):
            assert_close(encoder.text.embed(row[None, :length]), encoder.embed("text", row[None]), 2e-6)


def test_captions_are_not_cut_without_a_causal_mask() -> None:
    encoder = DualEncoder(clip(text={"no_causal_mask": True}))
    assert encoder.text.lengths(pairs_for(encoder.model, 4).tokens) is None


@pytest.mark.parametrize("pretrained", [True, False], ids=["tiny CLIP", "two layers of ViT-B-32"])
def test_real_models_stay_themselves(pretrained: bool) -> None:
    if pretrained:
        model: Any = mope.load_tiny_clip()
        pairs = mope.emoji_pairs("calibration", 16)
    else:
        config = open_clip.get_model_config("ViT-B-32")
        assert config is not None
        model = open_clip.CLIP(
            embed_dim=config["embed_dim"],
            vision_cfg={**config["vision_cfg"], "layers": 2, "image_size": 64},
            text_cfg={**config["text_cfg"], "layers": 2, "vocab_size": 100},
        ).eval()
        pairs = pairs_for(model, 4)
    original = copy.deepcopy(model)
    expected = _encode(original, pairs)
    DualEncoder(model)
    for name, value in _encode(model, pairs).items():
        assert_close(value, expected[name], 1e-6)
    assert torch.equal(_encode(model, pairs)["text"], expected["text"])
    model.load_state_dict(original.state_dict(), strict=True)
    assert torch.equal(_encode(model, pairs)["text"], expected["text"])


def test_training_forward_and_gradients_equal_the_originals() -> None:
    model = clip()
    pairs, original = pairs_for(model, 6), copy.deepcopy(model)
    DualEncoder(model)
    for each in (original, model):
        each.train()
        (each.encode_image(pairs.images).square().sum() + each.encode_text(pairs.tokens).square().sum()).backward()
    mine, theirs = dict(model.named_parameters()), dict(original.named_parameters())
    for name in mine.keys() & theirs.keys() - {"logit_scale"}:
        assert_close(mine[name].grad, theirs[name].grad, 1e-5)
    fused = theirs["visual.transformer.resblocks.0.attn.in_proj_weight"].grad
    assert fused is not None
    split = [mine[f"visual.transformer.resblocks.0.attn.{n}_proj.weight"].grad for n in "qkv"]
    assert_close(torch.cat(split), fused, 1e-5)  # type: ignore[arg-type]


def test_wrapping_twice_is_harmless() -> None:
    encoder = DualEncoder(clip())
    with unchanged(encoder.model):
        again = DualEncoder(encoder.model)
    assert again.counts() == encoder.counts()


@pytest.mark.parametrize("custom", [False, True])
def test_all_attention_is_swapped(custom: bool) -> None:
    block = {"block_type": "custom"} if custom else {}
    model = clip(vision=block, text=block)
    kinds = (nn.MultiheadAttention, OpenClipAttention)
    assert sum(isinstance(module, kinds) for module in model.modules()) == 5
    DualEncoder(model)
    assert not any(isinstance(module, kinds) for module in model.modules())
    assert sum(isinstance(module, PrunableAttention) for module in model.modules()) == 5


@pytest.mark.parametrize(
    ("case", "match"),
    [
        ({"vision": {"pool_type": "none"}}, r"one embedding for each input.*found shape \[1, 10, 28\]"),
        ({"text": {"pool_type": "none"}}, r"found shape \[1, 9, 28\]"),
        ({"kind": open_clip.CustomTextCLIP, "text": {"pool_type": "none"}}, r"found shape \[1, 9, 28\]"),
        ({"vision": {"output_tokens": True}}, "found a tuple"),
        ({"kind": open_clip.CustomTextCLIP, "text": {"output_tokens": True}}, "found a tuple"),
    ],
)
def test_encoders_without_one_embedding_are_refused_and_the_model_is_untouched(
    case: dict[str, Any], match: str
) -> None:
    model = clip(**case)
    with unchanged(model), pytest.raises(UnsupportedModelError, match=match):
        DualEncoder(model)


def test_a_model_that_cannot_run_is_untouched() -> None:
    """open_clip builds such pools of attention, but cannot run them."""
    model = clip(vision={"attentional_pool": "parallel", "attn_pooler_heads": 4})
    with unchanged(model), pytest.raises(RuntimeError, match="normalized_shape"):
        DualEncoder(model)


@pytest.mark.parametrize("family", ["CoCa", "CoCa, attentional pool"])
def test_a_decoder_need_not_embed(family: str) -> None:
    model = build(family)
    original = copy.deepcopy(model)
    encoder = DualEncoder(model)
    assert list(encoder.towers) == ["image", "text", "decoder"]
    pairs = pairs_of(encoder)
    with torch.no_grad():
        found, expected = (each(pairs.images, pairs.tokens) for each in (model, original))
    for name in ("image_features", "text_features", "logits"):
        assert_close(found[name], expected[name], 2e-6)


def test_attention_that_cannot_be_swapped_is_left_alone_and_named() -> None:
    model = clip()
    model.transformer.resblocks[1].attn = nn.MultiheadAttention(36, 3, add_zero_attn=True, batch_first=True)
    pairs, before = pairs_for(model, 4), copy.deepcopy(model)
    encoder = DualEncoder(model)
    assert list(encoder.unprunable) == ["transformer.resblocks.1.attn"]
    assert "stays: transformer.resblocks.*.attn: nn.MultiheadAttention with add_bias_kv or add_zero_attn" in str(
        encoder
    )
    assert_close(_encode(model, pairs)["text"], _encode(before, pairs)["text"], 1e-6)
    removed = mope.prune(encoder, tp.importance.GroupMagnitudeImportance(), head_ratio=0.5, ffn_ratio=0.5)
    assert removed == mope.Counts(heads=3 * 2 + 2, neurons=3 * 28 + 2 * 27)
    encoder.pruner_arguments(width_ratio=0.5, towers=("image",))
    assert_trains(encoder, pairs)


def test_a_width_beside_attention_that_stays_is_refused() -> None:
    model = clip()
    model.transformer.resblocks[1].attn = nn.MultiheadAttention(36, 3, add_zero_attn=True, batch_first=True)
    encoder = DualEncoder(model)
    with pytest.raises(ValueError, match="towers whose residual width cannot be cut"):
        encoder.pruner_arguments(width_ratio=0.5, towers=("text",))


@pytest.mark.parametrize("case", [case for case in CASES if case in OPAQUE or "norms of" in case or "scaled" in case])
def test_what_is_asked_for_goes(case: str) -> None:
    model = clip(**CASES[case])
    encoder, pairs = DualEncoder(model), pairs_for(model, 6)
    asked = encoder.request(head_ratio=0.5, ffn_ratio=0.4).asked
    removed = mope.prune(encoder, tp.importance.GroupMagnitudeImportance(), head_ratio=0.5, ffn_ratio=0.4)
    assert removed == asked
    assert min(asked.heads, asked.neurons) > 0
    assert_trains(encoder, pairs)


@pytest.mark.parametrize("case", ["plain", "custom text clip", "eos pool", "inner norm of the MLP"])
def test_captions_without_end_of_text_are_refused(case: str) -> None:
    encoder = DualEncoder(clip(**CASES[case]))
    tokens = pairs_for(encoder.model, 5).tokens
    encoder.text.check_inputs(tokens)
    tokens[3][tokens[3] == 49] = 7
    with pytest.raises(ValueError, match=r"every caption must hold an end-of-text token.*1 of 5.*caption 3"):
        encoder.text.check_inputs(tokens)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda tokens: tokens.float(), "integer ids"),
        (lambda tokens: tokens[0], "integer ids"),
        (lambda tokens: tokens + 1, "ids below 50"),
        (lambda tokens: tokens - 1, "found ids -1"),
        (lambda tokens: torch.cat([tokens, tokens], 1), "at most 9 a caption"),
    ],
)
def test_tokens_of_another_tokenizer_are_refused(change: Any, match: str) -> None:
    encoder = DualEncoder(clip())
    with pytest.raises(ValueError, match=match):
        encoder.text.check_inputs(change(pairs_for(encoder.model, 5).tokens))
