"""Gradients of a large batch from chunks: those of the whole, with the memory of one."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.asserts import assert_close
from tests.unit.models import clip, pairs_for
from torch_pruning_mope.distillation._chunks import chunked_backward

from .terms import hidden, info_nce


class Model(nn.Module):
    """Two small towers with dropout, a temperature, and hidden states."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(6, width), nn.Dropout(0.3), nn.GELU(), nn.Linear(width, 5))
        self.text = nn.Sequential(nn.Linear(7, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, 5))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.image(images), self.text(texts), self.logit_scale.exp()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if gradient.abs().max() > 1e-8:
            assert_close(found[name], gradient, tolerance)


Batch = tuple[Tensor, Tensor]


def cut(batch: Batch, sizes: list[int]) -> list[Batch]:
    return list(zip(*(tensor.split(sizes) for tensor in batch), strict=True))


def at_once(model: Any, chunks: list[Batch], loss: Callable[..., Tensor]) -> Tensor:
    """The expected result: the same passes, random numbers included, in one graph."""
    images, texts, scales = zip(*(model(*chunk) for chunk in chunks), strict=True)
    value = loss(torch.cat(images), torch.cat(texts), scales[0])
    value.backward()
    return value.detach()


@pytest.mark.parametrize("sizes", [[12], [4, 4, 4], [5, 5, 2], [1] * 12], ids=str)
def test_equal_the_whole_batch(sizes: list[int]) -> None:
    model = Model().train()
    chunks = cut((torch.randn(12, 6), torch.randn(12, 7)), sizes)
    torch.manual_seed(7)
    expected_value = at_once(model, chunks, info_nce)
    expected, state = gradients(model), torch.get_rng_state()
    torch.manual_seed(7)
    value = chunked_backward(lambda chunk: model(*chunk), chunks, info_nce)
    assert not value.requires_grad
    assert_close(value, expected_value, 1e-6)
    assert torch.equal(torch.get_rng_state(), state)  # as if there had been one pass
    assert_same(gradients(model), expected)


def test_a_real_clip_with_several_captions_and_a_temperature_outside() -> None:
    model = clip()
    pairs = pairs_for(model, 6, captions=2)
    order = pairs.image_index.argsort()
    tokens, index = pairs.tokens[order], pairs.image_index[order]

    def encode(chunk: Batch) -> tuple[Tensor, Tensor]:
        return model.encode_image(chunk[0]), model.encode_text(chunk[1])

    def loss(images: Tensor, texts: Tensor) -> Tensor:
        return info_nce(images, texts, model.logit_scale.exp(), index)

    loss(*encode((pairs.images, tokens))).backward()
    expected = gradients(model)
    chunks = [(pairs.images[i : i + 2], tokens[2 * i : 2 * i + 4]) for i in (0, 2, 4)]
    chunked_backward(encode, chunks, loss)
    assert_same(gradients(model), expected)


def test_a_chunks_own_mean_loss_is_averaged() -> None:
    model, teacher = Model().eval(), torch.randn(10, 1, 5)
    batch = torch.randn(10, 6), torch.randn(10, 7)

    def own_loss(images: Tensor, rows: slice) -> Tensor:
        return hidden({"image": {0: images[:, None]}}, {"image": {0: teacher[rows]}})

    def encode(rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        images, texts, scale = model(batch[0][rows], batch[1][rows])
        return images, texts, scale, own_loss(images, rows)

    def loss(images: Tensor, texts: Tensor, scale: Tensor, own: Tensor) -> Tensor:
        return info_nce(images, texts, scale) + 3 * own

    whole = loss(*encode(slice(0, 10)))
    whole.backward()
    expected = gradients(model)
    value = chunked_backward(encode, [slice(0, 4), slice(4, 8), slice(8, 10)], loss)
    assert_close(value, whole, 1e-6)
    assert_same(gradients(model), expected)


def test_adds_to_gradients_and_leaves_a_frozen_tower_alone() -> None:
    model = Model().eval()
    model.image.requires_grad_(False)
    chunks = cut((torch.randn(6, 6), torch.randn(6, 7)), [3, 3])
    at_once(model, chunks, info_nce)
    at_once(model, chunks, info_nce)
    expected = gradients(model)
    for _ in range(2):
        chunked_backward(lambda chunk: model(*chunk), chunks, info_nce)
    assert_same(gradients(model), expected)


def test_under_autocast_the_weights_keep_their_gradients() -> None:
    """Autocast caches copies of weights, and those of the pass without a graph have none."""
    model = Model().eval()
    chunks = cut((torch.randn(8, 6), torch.randn(8, 7)), [4, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        at_once(model, chunks, info_nce)
    expected = gradients(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chunked_backward(lambda chunk: model(*chunk), chunks, info_nce)
    assert_same(gradients(model), expected, 0.02)


class Held:
    """Bytes that graphs keep for backward, now and at most."""

    def __init__(self) -> None:
        self.now, self.peak = 0, 0

    def pack(self, tensor: Tensor) -> Tensor:
        kept = tensor.clone()
        size = kept.numel() * kept.element_size()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(kept, self._free, size)
        return kept

    def _free(self, size: int) -> None:
        self.now -= size


def test_holds_the_graph_of_one_chunk() -> None:
    model = Model(width=256).eval()
    chunks = cut((torch.randn(64, 6), torch.randn(64, 7)), [8] * 8)
    peaks = []
    for run in (
        lambda: at_once(model, chunks, info_nce),
        lambda: at_once(model, chunks[:1], info_nce),
        lambda: chunked_backward(lambda chunk: model(*chunk), chunks, info_nce),
    ):
        held = Held()
        with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda kept: kept):
            run()
        peaks.append(held.peak)
    whole, one, chunked = peaks
    assert whole > 4 * one
    assert chunked < 1.5 * one + 3 * 64 * 64 * 4 * 4  # and the loss's few matrices of similarities


@pytest.mark.parametrize("fails_at", [2, 4])
def test_random_numbers_go_on_after_a_failure(fails_at: int) -> None:
    model, calls = Model().train(), iter(range(10))

    def encode(chunk: Batch) -> Any:
        if next(calls) == fails_at:
            raise RuntimeError("no")
        return model(*chunk)

    chunks = cut((torch.randn(6, 6), torch.randn(6, 7)), [2, 2, 2])
    torch.manual_seed(3)
    for chunk in chunks[: min(3, fails_at)]:
        model(*chunk)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    with pytest.raises(RuntimeError, match="no"):
        chunked_backward(encode, chunks, info_nce)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_sync_is_for_all_but_the_last_chunk() -> None:
    log: list[str] = []

    class NoSync:
        def __enter__(self) -> None:
            log.append("(")

        def __exit__(self, *_: object) -> None:
            log.append(")")

    model = Model()

    def encode(chunk: Batch) -> Any:
        log.append("x")
        return model(*chunk)

    chunks = cut((torch.randn(6, 6), torch.randn(6, 7)), [2, 2, 2])
    chunked_backward(encode, chunks, info_nce, no_sync=NoSync)
    assert "".join(log) == "(xxx)(x)(x)x"
