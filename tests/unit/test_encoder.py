"""DualEncoder: what it reports, what it removes, what it refuses."""

import copy
import io
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

import torch_pruning_mope as mope
from tests.asserts import assert_close, assert_trains, unchanged, unchecked
from tests.unit.models import clip, pairs_for
from torch_pruning_mope import Counts, DualEncoder
from torch_pruning_mope.errors import NonFiniteError, UnsupportedModelError


def test_counts_and_widths(encoder: DualEncoder) -> None:
    assert encoder.counts() == Counts(heads=3 * 4 + 2 * 3, neurons=3 * 56 + 2 * 54, width=40 + 36)
    assert encoder.widths == {"image": 40, "text": 36}
    assert [(layer.tower, layer.index) for layer in encoder.layers] == [
        ("image", 0),
        ("image", 1),
        ("image", 2),
        ("text", 0),
        ("text", 1),
    ]
    assert encoder.removed == {
        "image.heads": [0] * 3,
        "image.neurons": [0] * 3,
        "text.heads": [0] * 2,
        "text.neurons": [0] * 2,
    }


def test_example_inputs_fit(encoder: DualEncoder) -> None:
    inputs = encoder.example_inputs
    assert (inputs["images"].shape, inputs["tokens"].shape) == ((1, 3, 24, 24), (1, 9))
    assert encoder.embed("image", inputs["images"]).shape == encoder.embed("text", inputs["tokens"]).shape == (1, 28)


def test_logit_scale(encoder: DualEncoder) -> None:
    assert float(torch.as_tensor(encoder.logit_scale).detach()) == pytest.approx(1 / 0.07, rel=1e-5)
    vector = DualEncoder(clip(nonscalar_logit_scale=True))
    assert torch.as_tensor(vector.logit_scale).shape == ()


@pytest.mark.parametrize("indices", [[0], [2], [0, 1], [2, 0]])
def test_blocks_go(encoder: DualEncoder, pairs: mope.Pairs, indices: list[int]) -> None:
    """Against a model that skips them."""
    twin = copy.deepcopy(encoder.model)
    for index in indices:
        twin.visual.transformer.resblocks[index].register_forward_hook(lambda _m, args, _o: args[0])
    encoder.remove_blocks("image", indices)
    assert len(encoder.image.blocks) == 3 - len(indices)
    with torch.no_grad():
        assert_close(encoder.embed("image", pairs.images), twin.encode_image(pairs.images), 1e-6)
    assert encoder.removed["image.heads"] == [0] * (3 - len(indices)) + [4] * len(indices)
    assert encoder.removed["image.neurons"] == [0] * (3 - len(indices)) + [56] * len(indices)
    encoder.remove_blocks("text", [1])
    assert_trains(encoder, pairs)


def test_blocks_and_units_go_together(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    encoder.remove_blocks("image", [1])
    importance = mope.MoPEImportance(
        encoder, pairs, groups=3, progress=False, fallback=tp.importance.GroupMagnitudeImportance()
    )
    removed = mope.prune(encoder, importance, head_ratio=0.5, ffn_ratio=0.5, width_ratio=0.2, global_pruning=True)
    assert removed == Counts(heads=7, neurons=110, width=16)
    assert_trains(encoder, pairs)


@pytest.mark.parametrize("indices", [[3], [-1], [0, 0], [0, 1, 2]])
def test_impossible_blocks_are_refused(encoder: DualEncoder, indices: list[int]) -> None:
    with unchanged(encoder.model), pytest.raises(ValueError, match="indices must name some, not all, of the 3 layers"):
        encoder.remove_blocks("image", indices)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    model = clip()
    with torch.no_grad():
        model.visual.proj[3, 3] = bad
        model.ln_final.bias[0] = bad
    with (
        unchanged(model),
        pytest.raises(
            NonFiniteError, match=r"found NaN or infinity in \['visual.proj', 'ln_final.bias'\] \(2 in all\)"
        ),
    ):
        DualEncoder(model)


def test_models_without_weights_are_counted_but_not_scored(pairs: mope.Pairs) -> None:
    encoder, real = DualEncoder(clip().to("meta")), DualEncoder(clip())
    assert encoder.counts() == real.counts()
    arguments = encoder.pruner_arguments(head_ratio=0.5, ffn_ratio=0.5)
    assert arguments.keys() == real.pruner_arguments(head_ratio=0.5, ffn_ratio=0.5).keys()
    for use in (lambda: mope.score(encoder, pairs), lambda: encoder.accumulate_gradients(pairs)):
        with (
            unchanged(encoder.model),
            pytest.raises(ValueError, match=r"found some on the 'meta' device\. Load a checkpoint first"),
        ):
            use()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_pruners_need_autograd(encoder: DualEncoder, mode: Any) -> None:
    with unchanged(encoder.model), mode(), pytest.raises(RuntimeError, match="must be called with autograd on"):
        encoder.pruner_arguments(head_ratio=0.5)


def test_wrapping_under_no_grad_keeps_weights_trainable() -> None:
    with torch.no_grad():
        encoder = DualEncoder(clip())
    assert all(parameter.requires_grad for parameter in encoder.model.parameters())


def test_arguments_leave_the_model_as_it_is(encoder: DualEncoder) -> None:
    encoder.model.train()
    encoder.model.visual.requires_grad_(False)
    with unchanged(encoder.model):
        arguments = encoder.pruner_arguments(head_ratio=0.5, ffn_ratio=0.5, width_ratio=0.2)
        tp.pruner.MetaPruner(encoder.model, importance=lambda group: None, **arguments)


def test_pruning_keeps_training_modes(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    encoder.model.train()
    encoder.model.visual.eval()
    modes = {name: module.training for name, module in encoder.model.named_modules()}
    mope.prune(encoder, mope.MoPEImportance(encoder, pairs, groups=2, progress=False), head_ratio=0.5)
    assert {name: module.training for name, module in encoder.model.named_modules()} == modes


def test_wrapping_keeps_training_modes_and_requires_grad() -> None:
    model = clip().train()
    model.visual.requires_grad_(False).eval()
    DualEncoder(model)
    assert model.training
    assert not any(module.training for module in model.visual.modules())
    assert not any(parameter.requires_grad for parameter in model.visual.parameters())
    assert all(parameter.requires_grad for parameter in model.transformer.parameters())


def test_other_towers_are_refused(encoder: DualEncoder) -> None:
    with pytest.raises(ValueError, match=r"tower must be one of \['image', 'text'\]; found 'audio'"):
        unchecked(DualEncoder.check_blocks)(encoder, "audio", [0])


@pytest.mark.parametrize("tower", ["decoder", "audio"])
def test_only_towers_with_embeddings_embed(encoder: DualEncoder, tower: Any) -> None:
    with pytest.raises(ValueError, match=f"tower must be 'image' or 'text', which have embeddings; found '{tower}'"):
        unchecked(DualEncoder.embed)(encoder, tower, encoder.example_inputs["tokens"])


def _pickled(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, _pickled])
def test_copies_of_encoders_and_importances_are_whole_and_independent(
    encoder: DualEncoder, pairs: mope.Pairs, copied: Any
) -> None:
    mope.prune(encoder, mope.MoPEImportance(encoder, pairs, groups=2, progress=False), head_ratio=0.25)
    encoder.remove_blocks("image", [0])
    importance = mope.MoPEImportance(encoder, pairs, groups=2, progress=False)
    twin_importance = copied(importance)
    for twin in (copied(encoder), twin_importance.encoder):
        assert (twin.removed, twin.counts()) == (encoder.removed, encoder.counts())
        assert twin.block_numbers("image") == [1, 2]
    twin = twin_importance.encoder
    with unchanged(encoder.model):
        assert mope.prune(twin, twin_importance, head_ratio=0.5) == Counts(heads=2 * 2 + 2)
    assert twin.removed["image.heads"] == [3, 3, 4]
    with torch.no_grad():
        assert not torch.allclose(twin.embed("image", pairs.images), encoder.embed("image", pairs.images), atol=1e-3)


def test_towers_with_closures_over_the_model_are_copied_right() -> None:
    """Of the README's kind: the factory is asked again, for the copy."""
    encoder = DualEncoder(_Apart().eval())
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = encoder.embed("image", images)
        for twin in (copy.deepcopy(encoder), _pickled(encoder)):
            assert torch.equal(twin.embed("image", images), expected)
            for parameter in twin.model.parameters():
                parameter.zero_()
            assert not twin.embed("image", images).any()
            assert torch.equal(encoder.embed("image", images), expected)


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.relu(self.up(x)))
        return out


class _Apart(nn.Module):
    """A dual encoder whose towers have layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.read = nn.Linear(192, 16), nn.Embedding(20, 16)
        self.layers: Any = nn.ModuleList(_Layer(16) for _ in range(2))
        self.text_layers: Any = nn.ModuleList(_Layer(16) for _ in range(2))


class _Shared(_Apart):
    """The same layers for both towers."""

    def __init__(self) -> None:
        super().__init__()
        self.text_layers = self.layers


class _Tied(_Apart):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[1].up.weight = self.layers[0].up.weight


@mope.register_channels(_Layer)
def _channels(layer: Any) -> Any:
    return [("neurons", mope.towers.Channels((layer.up,), layer.down))]


@mope.register_towers(_Apart, _Shared, _Tied)
def _towers(model: Any) -> mope.towers.Towers:
    def image(images: Tensor) -> Tensor:
        x = model.see(images.flatten(1))
        for layer in model.layers:
            x = layer(x)
        return x  # type: ignore[no-any-return]

    def text(tokens: Tensor) -> Tensor:
        x = model.read(tokens).mean(1)
        for layer in model.text_layers:
            x = layer(x)
        return x  # type: ignore[no-any-return]

    return mope.towers.Towers(
        image=mope.towers.OpaqueTower(model, image, lambda: torch.zeros(1, 3, 8, 8)),
        text=mope.towers.OpaqueTower(model, text, lambda: torch.ones(1, 5, dtype=torch.long)),
        encode_image=image,
        encode_text=text,
        image_shape=(3, 8, 8),
        context_length=5,
    )


def test_shared_layers_are_refused_at_wrapping() -> None:
    model = _Shared()
    with (
        unchanged(model),
        pytest.raises(UnsupportedModelError, match=r"own; found \['layers.0.up', .*\(4 in all\) in several"),
    ):
        DualEncoder(model)


def test_tied_layers_are_refused_before_anything_is_cut() -> None:
    encoder = DualEncoder(_Tied())
    uses: list[Any] = [
        lambda: mope.prune(encoder, tp.importance.GroupMagnitudeImportance(), ffn_ratio=0.5),
        lambda: mope.remove_units(encoder, [mope.scoring.Unit("neurons", "image", 0, 0, (0, 1))]),
    ]
    for use in uses:
        with (
            unchanged(encoder.model),
            pytest.raises(UnsupportedModelError, match=r"\[\['layers.0.up.weight', 'layers.1.up.weight'\]\]"),
        ):
            use()


@pytest.mark.parametrize(
    ("part", "heads", "neurons"),
    [("mlp.c_proj", 2, 0), ("mlp.c_fc", 2, 0), ("ln_2", 2, 28), ("attn.out_proj", 0, 28), ("attn.v_proj", 0, 28)],
)
def test_groups_with_an_ignored_member_stay_whole(encoder: DualEncoder, part: str, heads: int, neurons: int) -> None:
    """Torch-Pruning by itself cuts what ignored layers take."""
    ignored = encoder.model.visual.transformer.resblocks[0].get_submodule(part)
    with unchanged(ignored):
        arguments = encoder.pruner_arguments(head_ratio=0.5, ffn_ratio=0.5, ignored_layers=[ignored])
        tp.pruner.MetaPruner(encoder.model, importance=tp.importance.RandomImportance(), **arguments).step()
        assert encoder.removed["image.heads"] == [heads, 2, 2]
        assert encoder.removed["image.neurons"] == [neurons, 28, 28]
    with pytest.raises(ValueError, match="reach layers that are ignored"):
        encoder.pruner_arguments(width_ratio=0.5, ignored_layers=[ignored])


def test_what_lies_between_layers_is_not_ignored_alone() -> None:
    encoder = DualEncoder(clip(vision={"scale_fc": True}))
    mlp = encoder.model.visual.transformer.resblocks[1].mlp
    with unchanged(encoder.model), pytest.raises(ValueError, match=r"resblocks.1.mlp.c_fc'\] would stay whole"):
        encoder.pruner_arguments(ffn_ratio=0.5, ignored_layers=[mlp.ln])
    arguments = encoder.pruner_arguments(ffn_ratio=0.5, ignored_layers=[mlp.ln, mlp.c_fc])
    with unchanged(mlp):
        tp.pruner.MetaPruner(encoder.model, importance=tp.importance.RandomImportance(), **arguments).step()
    assert encoder.removed["image.neurons"] == [28, 0, 28]


def test_torch_prunings_states_load(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    mope.prune(encoder, tp.importance.GroupMagnitudeImportance(), head_ratio=0.5)
    fresh = clip(seed=1)
    DualEncoder(fresh)
    loaded = tp.load_state_dict(fresh, tp.state_dict(encoder.model))
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(pairs.images), encoder.model.encode_image(pairs.images))
    with pytest.raises(AttributeError, match="num_heads must be what the projections have, 2; found 4"):
        encoder.model.visual.transformer.resblocks[0].attn.num_heads = 4


def test_example_inputs_go_into_torch_prunings_functions(encoder: DualEncoder) -> None:
    """As the docstring says."""
    inputs, model = encoder.example_inputs, encoder.model
    macs, parameters = tp.utils.count_ops_and_params(model, tuple(inputs.values()))
    assert macs > parameters > 0
    graph = tp.DependencyGraph().build_dependency(
        model,
        inputs,
        forward_fn=lambda _, x: [encoder.embed("image", x["images"]), encoder.embed("text", x["tokens"])],
        unwrapped_parameters=[(model.visual.proj, 0), (model.text_projection, 0)],
    )
    assert list(graph.get_all_groups())


def _scored_and_pruned(encoder: DualEncoder, pairs: mope.Pairs) -> tuple[Any, ...]:
    table = mope.score(encoder, pairs, kinds=("head", "neurons"), groups=2, progress=False)
    importance = mope.MoPEImportance(encoder, pairs, table=table, progress=False)
    removed = mope.prune(encoder, importance, head_ratio=0.25, ffn_ratio=0.5)
    with torch.no_grad():
        return table.scores, removed, encoder.removed, encoder.embed("image", pairs.images).tolist()


def _at_once(count: int, work: Any) -> list[Any]:
    barrier = Barrier(count)

    def run(place: int) -> Any:
        barrier.wait()
        return work(place)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_ten_threads_with_models_of_their_own_do_as_one() -> None:
    def small(seed: int) -> tuple[DualEncoder, mope.Pairs]:
        encoder = DualEncoder(clip(seed=seed, vision={"layers": 1}, text={"layers": 1}))
        return encoder, pairs_for(encoder.model, 4)

    expected = [_scored_and_pruned(*small(seed)) for seed in range(10)]
    untouched, pairs = small(11)
    with torch.no_grad():
        before = untouched.embed("image", pairs.images)
    models = [small(seed) for seed in range(10)]
    assert _at_once(10, lambda place: _scored_and_pruned(*models[place])) == expected
    with torch.no_grad():
        assert torch.equal(untouched.embed("image", pairs.images), before)


def test_threads_that_share_a_model_wait_for_each_other(encoder: DualEncoder, pairs: mope.Pairs) -> None:
    """Scores, plain embeddings and pruner's arguments, at once, are those of one at a time."""

    def score() -> Any:
        return mope.score(encoder, pairs, kinds=("head", "neurons"), groups=2, progress=False).scores

    def embed() -> Any:
        with torch.no_grad():
            return [encoder.embed("text", pairs.tokens).tolist() for _ in range(20)]

    def trace() -> Any:
        return [len(encoder.pruner_arguments(head_ratio=0.5)["ignored_layers"]) for _ in range(3)]

    uses: list[Any] = [score, embed, trace, score, embed, trace]
    expected = [use() for use in uses]
    with unchanged(encoder.model):
        assert _at_once(len(uses), lambda place: uses[place]()) == expected
