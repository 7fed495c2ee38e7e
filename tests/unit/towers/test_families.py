"""What every family of CLIP-like models must do, on one small random model of each.

What is expected comes from models that were never wrapped, run by their own public functions, or from physical removal.
"""

import copy
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import jaxtyping
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

import torch_pruning_mope as mope
from tests.asserts import assert_close, assert_finite, assert_trains, unchanged
from tests.unit import zoo
from tests.unit.emulate import cuts_of, emulated
from tests.unit.scoring.oracle import physically_without, refitted_without
from torch_pruning_mope import Counts, DualEncoder, Pairs
from torch_pruning_mope.deploy._programs import without_checks
from torch_pruning_mope.scoring import Ablator, PlainEngine, PrefixEngine, enumerate_units, single_ablation
from torch_pruning_mope.towers import reaching_rows

each_family = pytest.mark.parametrize("family", zoo.FAMILIES)
TowerName = Literal["image", "text"]
TOWERS: tuple[TowerName, ...] = ("image", "text")
_SAME_TEXT = {  # the text tower of "ViT of timm", which is tested there
    "SigLIP", "EVA02", "EVA01", "EVA02-E", "PE-Core", "ConvNeXt", "ConvNeXt, MLP head", "MobileCLIP-S", "MobileCLIP-B",
    "ViTamin", "Swin", "ViT, relative positions", "open_clip ViT, attentional pool", "open_clip ResNet",
}  # fmt: skip
_SAME_IMAGE = {"RoBERTa", "XLM-RoBERTa", "mT5", "NLLB"}  # that of "open_clip ViT"
_EACH_TOWER: list[tuple[str, TowerName]] = [
    (family, tower)
    for family in zoo.FAMILIES
    for tower in TOWERS
    if family not in (_SAME_IMAGE if tower == "image" else _SAME_TEXT)
]
each_tower = pytest.mark.parametrize(("family", "tower"), _EACH_TOWER)
FIRM: list[tuple[str, TowerName, list[int]]] = [
    ("open_clip ViT, attentional pool", "image", [3]),
    ("open_clip ResNet", "image", [0, 1, 4, 5, 6, 7, 8, 9, 10]),
    ("CoCa, attentional pool", "image", [3]),
    ("SigLIP", "image", [2]),
    ("PE-Core", "image", [2]),
    ("ViTamin", "image", [0, 2]),
    ("mT5", "text", [0]),
    ("transformers SigLIP", "image", [2]),
    ("transformers SigLIP 2", "image", [2]),
]
"""Blocks that cannot be removed: pools, the first ones of stages, and one that makes what others read."""
FIXED_WIDTH = {"MobileCLIP-S", "Swin"}
"""Channels fold into others there, or pass grouped convolutions that change their number: the image tower keeps its width."""


def _inputs(pairs: Pairs) -> dict[TowerName, Tensor]:
    return {"image": pairs.images, "text": pairs.tokens}


def _encode(model: Any, tower: TowerName, inputs: Tensor) -> Tensor:
    """Embeddings, by the model's own public function and with inputs as its own preprocessing makes them."""
    if not type(model).__module__.startswith("transformers."):
        embeddings = model.encode_image if tower == "image" else model.encode_text
        return embeddings(inputs, normalize=False)  # type: ignore[no-any-return]
    kind = model.config.model_type
    if tower == "text":
        padded = kind in {"chinese_clip", "altclip"}
        mask = {"attention_mask": inputs.ne(model.config.text_config.pad_token_id).long()} if padded else {}
        found = model.get_text_features(input_ids=inputs, **mask)
    elif kind == "siglip2":
        from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

        size = model.config.vision_config.patch_size
        patches = torch.stack([convert_image_to_patches(image, size) for image in inputs])
        found = model.get_image_features(
            pixel_values=patches,
            pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.int32),
            spatial_shapes=torch.tensor([[inputs.shape[2] // size, inputs.shape[3] // size]] * len(inputs)),
        )
    else:
        found = model.get_image_features(pixel_values=inputs)
    return found if isinstance(found, Tensor) else found.pooler_output


@torch.no_grad()
def _embeddings(model: Any, pairs: Pairs) -> dict[TowerName, Tensor]:
    return {tower: _encode(model, tower, inputs) for tower, inputs in _inputs(pairs).items()}


def _assert_same(found: Mapping[Any, Tensor], expected: Mapping[Any, Tensor], tolerance: float) -> None:
    for tower in expected:
        assert_close(found[tower], expected[tower], tolerance)


@cache
def _wrapped_once(family: str) -> DualEncoder:
    return DualEncoder(zoo.build(family))


def _wrapped(family: str, count: int = 6) -> tuple[DualEncoder, Pairs]:
    """A copy; that copies compute with weights of their own has a test below."""
    encoder = copy.deepcopy(_wrapped_once(family))
    return encoder, zoo.pairs_of(encoder, count)


def _shaken(model: Any) -> Any:
    """A copy with other weights, running statistics included."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.rand_like(tensor)
    return twin


@each_family
def test_wrapped_equals_original(family: str) -> None:
    original = zoo.build(family)
    encoder = DualEncoder(zoo.build(family))
    pairs = zoo.pairs_of(encoder)
    # With gradients: without, nn.MultiheadAttention has kernels of its own for some cases, which round otherwise.
    expected = {tower: _encode(original, tower, inputs) for tower, inputs in _inputs(pairs).items()}
    found = {tower: _encode(encoder.model, tower, inputs) for tower, inputs in _inputs(pairs).items()}
    _assert_same(found, expected, 1e-6)
    with torch.no_grad():
        _assert_same({tower: encoder.embed(tower, inputs) for tower, inputs in _inputs(pairs).items()}, found, 1e-6)
    with unchanged(encoder.model):
        again = DualEncoder(encoder.model)
    assert again.counts() == encoder.counts()
    exact = Pairs(pairs.images.double(), pairs.tokens)
    _assert_same(_embeddings(encoder.model.double(), exact), _embeddings(original.double(), exact), 1e-12)


@each_family
def test_copies_and_pickles_compute_with_their_own_weights(family: str) -> None:
    encoder, pairs = _wrapped(family)
    expected = {tower: encoder.embed(tower, inputs).detach() for tower, inputs in _inputs(pairs).items()}
    file = io.BytesIO()
    torch.save(encoder, file)
    file.seek(0)
    for twin in (copy.deepcopy(encoder), torch.load(file, weights_only=False)):
        _assert_same({tower: twin.embed(tower, inputs) for tower, inputs in _inputs(pairs).items()}, expected, 0)
        assert (twin.counts(), twin.removed) == (encoder.counts(), encoder.removed)
        with torch.no_grad():
            for parameter in encoder.model.parameters():
                parameter.zero_()
        for tower, inputs in _inputs(pairs).items():
            assert_close(twin.embed(tower, inputs), expected[tower], 0)
        encoder = twin


@each_family
def test_original_checkpoints_load(family: str) -> None:
    original = zoo.build(family)
    encoder = DualEncoder(_shaken(original))
    pairs = zoo.pairs_of(encoder)
    expected = _embeddings(original, pairs)
    for tower, before in _embeddings(encoder.model, pairs).items():
        assert not torch.allclose(before, expected[tower], rtol=1e-2)
    encoder.model.load_state_dict(original.state_dict(), strict=True)
    straight = _embeddings(_wrapped(family)[0].model, pairs)
    for tower, embeddings in _embeddings(encoder.model, pairs).items():
        assert torch.equal(embeddings, straight[tower])


@each_tower
def test_engine_equals_plain_loop_equals_removal(family: str, tower: TowerName) -> None:
    encoder, pairs = _wrapped(family, 3)
    inputs = _inputs(pairs)[tower]
    ablator = Ablator(encoder)
    plain, prefix = PlainEngine(encoder, ablator=ablator), PrefixEngine(encoder, ablator=ablator)
    units = list(enumerate_units(encoder, ("head", "neurons", "block"), {}, 2, (tower,)))
    ablations = [single_ablation(unit) for unit in units]
    with unchanged(encoder.model):
        dense = plain.embeddings(tower, inputs)
        found = {
            place: embeddings
            for places, batch in prefix.ablations(tower, inputs, ablations)
            for place, embeddings in zip(places, batch, strict=True)
        }
        assert found.keys() == set(range(len(units)))
        expected = [plain.embeddings(tower, inputs, [ablation]) for ablation in ablations]
    blocks, gone = encoder.towers[tower].blocks, dict[Any, Any]()
    for place, unit in enumerate(units):
        assert not torch.allclose(expected[place], dense, rtol=1e-6), f"{unit} has no effect"
        assert_close(found[place], expected[place], 1e-5)
        gone.setdefault(
            (unit.kind, type(blocks[unit.layer].module)), (place, unit)
        )  # one of each kind of each type of layer
    of_blocks = [gone.pop(key) for key in list(gone) if key[0] == "block"]
    smaller = [unit for _, unit in gone.values()]
    without = plain.embeddings(tower, inputs, [single_ablation(unit) for unit in smaller])
    with torch.no_grad():
        for place, unit in of_blocks:
            assert_close(expected[place], physically_without(encoder, unit).embed(tower, inputs), 1e-5)
        assert_close(without, physically_without(encoder, *smaller).embed(tower, inputs), 1e-5)


@pytest.mark.parametrize("family", zoo.DISTINCT)
def test_scores_with_reconstruction_equal_removal_and_least_squares(family: str) -> None:
    """By both engines; one unit of each kind of layer is removed."""
    encoder = DualEncoder(zoo.build(family).double())
    pairs = zoo.pairs_of(encoder, 3)
    pairs = Pairs(pairs.images.double(), pairs.tokens)
    options: dict[str, Any] = {"groups": 2, "interaction": "single", "rewire": "none", "reconstruct": True}
    with unchanged(encoder.model):
        fast, slow = (
            mope.score(encoder, pairs, engine=engine, progress=False, **options)  # type: ignore[arg-type]
            for engine in ("prefix", "plain")
        )
    assert {(score.unit.tower, score.unit.kind) for score in fast.scores} >= {(tower, "neurons") for tower in TOWERS}
    metric, done = mope.metrics.ContrastiveLoss(float(torch.as_tensor(encoder.logit_scale).detach())), set[Any]()
    for mine, theirs in zip(fast.scores, slow.scores, strict=True):
        assert mine.value == pytest.approx(theirs.value, abs=1e-8 * abs(slow.dense)), str(mine.unit)
        unit = mine.unit
        like = (unit.tower, unit.kind, type(encoder.towers[unit.tower].blocks[unit.layer].module))
        if like not in done:
            done.add(like)
            smaller = refitted_without(encoder, single_ablation(unit), partial(_reaching, encoder, pairs, unit.tower))
            with torch.no_grad():
                value = metric(smaller.embed("image", pairs.images), smaller.embed("text", pairs.tokens))
            assert mine.value == pytest.approx(slow.dense - value, abs=1e-8 * abs(slow.dense)), str(unit)


def _reaching(dense: DualEncoder, pairs: Pairs, tower: TowerName, encoder: DualEncoder, layer: nn.Module) -> Tensor:
    """Rows of a layer's input that can reach the embedding in the model before."""
    names = {module: name for name, module in encoder.model.named_modules()}
    inputs, original = _inputs(pairs)[tower], dense.model.get_submodule(names[layer])
    with torch.no_grad():
        mask = reaching_rows(partial(dense.embed, tower), [original], inputs)[original].mask
        return reaching_rows(partial(encoder.embed, tower), [layer], inputs)[layer].inputs[mask]


def _ratios(encoder: DualEncoder, ratio: float) -> dict[str, float]:
    """``ratio`` of everything; of heads no more than leaves each layer one."""
    heads = [layer.block.attention.num_units for layer in encoder.layers if layer.block.attention is not None]
    return {"head_ratio": min(ratio, 1 - 1 / min(heads)), "ffn_ratio": ratio, "width_ratio": ratio}


def _dimensions(encoder: DualEncoder) -> dict[str, int]:
    names = {parameter: name for name, parameter in encoder.model.named_parameters()}
    return {names[parameter]: dim for tower in encoder.towers.values() for parameter, dim in tower.joint_parameters}


def _prune(encoder: DualEncoder, importance: Any, **ratios: Any) -> dict[tuple[str, bool], set[int]]:
    """One step of Torch-Pruning's own pruner.

    Returns:
        The channels that went.
    """
    pruner = tp.pruner.MetaPruner(encoder.model, importance=importance, **encoder.pruner_arguments(**ratios))
    groups = list(pruner.step(interactive=True))
    cut = cuts_of(encoder.model, pruner.DG, groups)
    for group in groups:
        group.prune()
    return cut


def _magnitude(encoder: DualEncoder) -> Any:
    """Magnitude, in exact counts."""
    stock = tp.importance.GroupMagnitudeImportance
    return mope.WeightedImportance(encoder, [(stock(), 1.0)], fallback=stock())


def _prepare_training(encoder: DualEncoder, pairs: Pairs) -> None:
    """Freezes what no embedding uses (CoCa's decoder, a bias of the logits), and stops what blurs whether a loss falls."""
    for module in encoder.model.modules():
        own: dict[str, Any] = vars(module)
        for name, value in list(own.items()):
            if isinstance(value, float) and ("drop" in name or (name == "p" and isinstance(module, nn.Dropout))):
                setattr(module, name, 0.0)
    named = dict(encoder.model.named_parameters())
    loss = sum(encoder.embed(tower, inputs).sum() for tower, inputs in _inputs(pairs).items())
    gradients: Any = torch.autograd.grad(loss, list(named.values()), allow_unused=True)  # type: ignore[arg-type]
    for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
        if gradient is None and name != "logit_scale":
            parameter.requires_grad_(False)


def _in_turn(*options: Any) -> Any:
    """Each family with one of the options."""
    return [(family, options[place % len(options)]) for place, family in enumerate(zoo.FAMILIES)]


@pytest.mark.parametrize(("family", "ratio"), _in_turn(0.3, 0.7))
def test_everything_pruned_in_one_step(family: str, ratio: float) -> None:
    encoder, pairs = _wrapped(family)
    whole, dimensions = DualEncoder(copy.deepcopy(encoder.model)), _dimensions(encoder)
    ratios: dict[str, Any] = _ratios(encoder, ratio)
    width = encoder.text.width
    if family in FIXED_WIDTH:
        with unchanged(encoder.model), pytest.raises(ValueError, match="towers whose residual width cannot be cut"):
            encoder.pruner_arguments(**ratios)
        gone = -int(-ratio * width // 1)
        ratios |= {"width_ratio": 0.0, "pruning_ratio_dict": {encoder.text.streams[0]: (gone - 1e-3) / width}}
    asked, before = encoder.request(**ratios).asked, encoder.counts()
    cut = _prune(encoder, _magnitude(encoder), **ratios)
    after = encoder.counts()
    if family in FIXED_WIDTH:
        assert encoder.text.width == width - gone
        asked = Counts(asked.heads, asked.neurons, gone)
    assert min(asked.heads, asked.neurons, asked.width) > 0
    assert (before.heads - after.heads, before.neurons - after.neurons, before.width - after.width) == (
        asked.heads,
        asked.neurons,
        asked.width,
    )
    found = _embeddings(encoder.model, pairs)
    with emulated(whole.model, cut, dimensions):
        _assert_same(found, _embeddings(whole.model, pairs), 1e-5)

    twin = _shaken(encoder.model)
    twin.load_state_dict(encoder.model.state_dict(), strict=True)
    for tower, embeddings in _embeddings(twin, pairs).items():
        assert torch.equal(embeddings, found[tower])

    _prepare_training(encoder, pairs)
    assert_trains(encoder, pairs)


@contextmanager
def _skipped(model: nn.Module, modules: Sequence[str]) -> Iterator[None]:
    """The model with some layers passing on what they get, the first of what they return."""

    def skip(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        before = args[0] if args else kwargs["hidden_states"]
        return (before, *output[1:]) if isinstance(output, tuple) else before

    handles = [model.get_submodule(name).register_forward_hook(skip, with_kwargs=True) for name in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _name(model: Any, wanted: nn.Module) -> str:
    return next(str(name) for name, module in model.named_modules() if module is wanted)


@each_tower
def test_any_removable_block_is_removed(family: str, tower: TowerName) -> None:
    original = zoo.build(family)
    encoder, pairs = _wrapped(family)
    blocks = encoder.towers[tower].blocks
    removable = [index for index, block in enumerate(blocks) if block.siblings is not None]
    firm = next((places for name, side, places in FIRM if (name, side) == (family, tower)), [])
    assert sorted([*removable, *firm]) == list(range(len(blocks)))
    for index in removable:
        smaller = DualEncoder(copy.deepcopy(encoder.model))
        smaller.remove_blocks(tower, [index])
        with _skipped(original, [_name(encoder.model, blocks[index].module)]):
            expected = _embeddings(original, pairs)
        _assert_same(_embeddings(smaller.model, pairs), expected, 1e-5)
        smaller.dependency_graph()
        # One module can hold several pairs of heads and neurons.
        gone = [block for block in blocks if block.module is blocks[index].module]
        assert len(smaller.towers[tower].blocks) == len(blocks) - len(gone)
        for kind in ("heads", "neurons"):
            units = [block.attention if kind == "heads" else block.feed_forward for block in gone]
            counts = [0 if each is None else each.num_units for each in units]
            assert smaller.removed[f"{tower}.{kind}"] == [0] * (len(blocks) - len(gone)) + counts


@pytest.mark.parametrize(("family", "tower", "firm"), FIRM)
def test_other_blocks_stay(family: str, tower: TowerName, firm: list[int]) -> None:
    encoder, _ = _wrapped(family)
    for index in firm:
        with unchanged(encoder.model), pytest.raises(NotImplementedError, match="that stand in a list and keep"):
            encoder.remove_blocks(tower, [index])


_GRADIENTS = {"Taylor": False, "Hessian": True}
"""Whether the criteria that read gradients want them squared."""
CRITERIA: dict[str, Any] = {
    "L1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
    "L2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "Taylor": tp.importance.GroupTaylorImportance,
    "Hessian": tp.importance.GroupHessianImportance,
    "random": tp.importance.RandomImportance,
    "LAMP": tp.importance.LAMPImportance,
}


def _assert_prunes_by(family: str, name: str, *, global_pruning: bool) -> None:
    """A criterion of Torch-Pruning removes what is asked for, of both towers, and the model still runs."""
    encoder, pairs = _wrapped(family)
    if name in _GRADIENTS:
        encoder.accumulate_gradients(pairs, squared=_GRADIENTS[name])
    ratios: dict[str, Any] = {"head_ratio": 0.3, "ffn_ratio": 0.3, "global_pruning": global_pruning}
    asked, before = encoder.request(**ratios).asked, encoder.counts()
    arguments = encoder.pruner_arguments(**ratios)
    tp.pruner.MetaPruner(encoder.model, importance=CRITERIA[name](), **arguments).step()
    after, removed = encoder.counts(), encoder.removed
    if not global_pruning:  # globally, ties and emptied layers are Torch-Pruning's
        assert (before.heads - after.heads, before.neurons - after.neurons) == (asked.heads, asked.neurons)
    if name != "LAMP" or not global_pruning:  # its scores are no measure across layers
        for tower in TOWERS:
            assert sum(removed[f"{tower}.heads"] + removed[f"{tower}.neurons"]) > 0
    for embeddings in _embeddings(encoder.model, pairs).values():
        assert_finite(embeddings)


@pytest.mark.parametrize(("family", "criterion"), _in_turn("Taylor", "Hessian"))
def test_torch_prunings_gradient_criteria(family: str, criterion: str) -> None:
    _assert_prunes_by(family, criterion, global_pruning=False)


@pytest.mark.parametrize("family", zoo.DISTINCT)
@pytest.mark.parametrize("global_pruning", [False, True], ids=["local", "global"])
def test_torch_prunings_own_criteria(family: str, global_pruning: bool) -> None:
    for criterion in CRITERIA if global_pruning else CRITERIA.keys() - _GRADIENTS.keys():  # those: above
        _assert_prunes_by(family, criterion, global_pruning=global_pruning)


@pytest.mark.parametrize("global_pruning", [False, True], ids=["local", "global"])
def test_batch_norm_scales_prune_a_resnet(global_pruning: bool) -> None:
    """Torch-Pruning's criterion skips what no batch normalisation follows."""
    encoder, pairs = _wrapped("open_clip ResNet")
    arguments = encoder.pruner_arguments(head_ratio=0.3, ffn_ratio=0.3, global_pruning=global_pruning)
    tp.pruner.MetaPruner(encoder.model, importance=tp.importance.BNScaleImportance(), **arguments).step()
    assert sum(encoder.removed["image.neurons"]) > 0
    for embeddings in _embeddings(encoder.model, pairs).values():
        assert_finite(embeddings)


COCAS = ["CoCa", "CoCa, attentional pool"]


@torch.no_grad()
def _captioned(model: Any, pairs: Pairs) -> dict[str, Tensor]:
    return {"logits": model(pairs.images, pairs.tokens)["logits"]}


@pytest.mark.parametrize(("family", "ratio"), list(zip(COCAS, (0.3, 0.6), strict=True)))
def test_cocas_decoder_is_pruned(family: str, ratio: float) -> None:
    encoder, pairs = _wrapped(family)
    whole, dimensions = DualEncoder(copy.deepcopy(encoder.model)), _dimensions(encoder)
    criterion = tp.importance.GroupMagnitudeImportance()
    ratios: dict[str, Any] = {**_ratios(encoder, ratio), "towers": ("image", "text", "decoder")}
    asked, before = encoder.request(**ratios).asked, encoder.counts()
    cut = _prune(encoder, criterion, **ratios)
    after = encoder.counts()
    assert before.heads - after.heads == asked.heads
    assert before.neurons - after.neurons == asked.neurons
    assert before.width - after.width == asked.width
    removed = encoder.removed
    assert min(removed["decoder.heads"]) > 0
    with emulated(whole.model, cut, dimensions):
        _assert_same(_captioned(encoder.model, pairs), _captioned(whole.model, pairs), 1e-5)
        _assert_same(_embeddings(encoder.model, pairs), _embeddings(whole.model, pairs), 1e-5)


@pytest.mark.parametrize("family", COCAS)
def test_cocas_decoder_layers_are_removed_in_pairs(family: str) -> None:
    original = zoo.build(family)
    encoder, pairs = _wrapped(family)
    before, blocks = _captioned(original, pairs), encoder.towers["decoder"].blocks
    decoder = original.text_decoder
    assert len(blocks) == len(decoder.resblocks) + len(decoder.cross_attn)
    for index, block in enumerate(blocks):
        smaller = DualEncoder(copy.deepcopy(encoder.model))
        smaller.remove_blocks("decoder", [index])
        place = next(
            place
            for place, pair in enumerate(
                zip(encoder.model.text_decoder.resblocks, encoder.model.text_decoder.cross_attn, strict=True)
            )
            if block.module in pair
        )
        left = smaller.model.text_decoder
        assert len(left.resblocks) == len(left.cross_attn) == len(decoder.resblocks) - 1
        pair = [f"text_decoder.{part}.{place}" for part in ("resblocks", "cross_attn")]
        with _skipped(original, pair):
            expected = _captioned(original, pairs)
        assert not torch.allclose(expected["logits"], before["logits"], rtol=1e-3)
        _assert_same(_captioned(smaller.model, pairs), expected, 1e-5)
        smaller.dependency_graph()
        assert len(smaller.towers["decoder"].blocks) == len(blocks) - 2


class _Encoder(nn.Module):
    """One encode function of a model, as an exporter wants it."""

    def __init__(self, model: nn.Module, tower: TowerName) -> None:
        super().__init__()
        self.model = model
        self.tower: TowerName = tower

    def forward(self, inputs: Tensor) -> Tensor:
        return _encode(self.model, self.tower, inputs)


_EXPORTED: list[tuple[str, TowerName]] = [
    ("open_clip ViT", "image"), ("open_clip ViT", "text"), ("open_clip ResNet", "image"), ("CoCa, attentional pool", "image"),
    ("EVA02", "image"), ("MobileCLIP-S", "image"), ("Swin", "image"), ("RoBERTa", "text"), ("mT5", "text"),
    ("transformers SigLIP", "image"),
]  # fmt: skip
"""Each library's own code around attention and MLPs of each type."""


@pytest.mark.parametrize(("family", "tower"), _EXPORTED)
def test_pruned_models_compile_and_export(
    family: str, tower: TowerName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # torch.compile cannot follow the checks of types
    encoder, pairs = _wrapped(family)
    _prune(encoder, tp.importance.GroupMagnitudeImportance(), head_ratio=0.3, ffn_ratio=0.3)
    module, inputs = _Encoder(encoder.model, tower).eval(), _inputs(pairs)[tower]
    with torch.no_grad():
        expected = module(inputs)
        torch._dynamo.reset()
        assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(inputs), expected, 1e-6)
        exported = without_checks(torch.export.export(module, (inputs,)))
    program = torch.onnx.export(exported, dynamo=True, verbose=False, optimize=False)
    assert program is not None
    program.save(tmp_path / "tower.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "tower.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    assert_close(torch.from_numpy(found), expected, 1e-4)
