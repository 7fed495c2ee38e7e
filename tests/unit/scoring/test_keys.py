"""A kept table is of the same call, or refused; what cannot be told from others is not kept."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

import torch_pruning_mope as mope
from tests.unit.models import clip
from torch_pruning_mope._fingerprint import key_of

ARGUMENTS: dict[str, Any] = {"groups": 2, "kinds": ("neurons",), "rewire": "none", "progress": False}


class Weighted(mope.metrics.ContrastiveLoss):
    """A metric that depends on a tensor."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self._weights = weights

    def per_image(self, images: Tensor, texts: Tensor, image_index: Tensor) -> Tensor:
        return super().per_image(images, texts, image_index) * self._weights


def scaled(scale: float, key: str | None) -> Any:
    """A metric of one name, whatever it computes."""

    def margin(images: Tensor, texts: Tensor) -> float:
        return scale * (images @ texts.T).diagonal().mean().item()

    if key is not None:
        margin.key = key  # type: ignore[attr-defined]
    return margin


def backwards(key: str | None, by: int) -> Any:
    """A rewiring of one name, whatever it computes."""

    def order(group: Any) -> Tensor:
        return by * torch.arange(len(group[0].idxs)).float()

    if key is not None:
        order.key = key  # type: ignore[attr-defined]
    return order


@pytest.mark.parametrize(
    ("one", "other", "differing"),
    [
        ({"metric": scaled(1, "one")}, {"metric": scaled(2, "two")}, "metric_key"),
        ({"metric": Weighted(torch.ones(12))}, {"metric": Weighted(torch.arange(12.0))}, "metric_key"),
        ({"metric": mope.metrics.ContrastiveLoss(3.0)}, {"metric": mope.metrics.ContrastiveLoss(4.0)}, "metric_key"),
        ({"rewire": backwards("one", 1)}, {"rewire": backwards("two", -1)}, "rewire"),
        (
            {"rewire": tp.importance.GroupMagnitudeImportance(p=1)},
            {"rewire": tp.importance.GroupMagnitudeImportance(p=2)},
            "rewire",
        ),
        ({"groups": 3}, {}, "groups"),
        ({"interaction": "single"}, {}, "interaction"),
        ({"engine": "plain"}, {}, "engine"),
    ],
)
def test_a_table_of_something_else_is_refused(
    encoder: mope.DualEncoder, pairs: mope.Pairs, tmp_path: Path, one: Any, other: Any, differing: str
) -> None:
    path = tmp_path / "table.json"
    first = mope.score(encoder, pairs, path=path, **ARGUMENTS | one)
    before = path.read_bytes()
    again = mope.score(encoder, pairs, path=path, **ARGUMENTS | one)
    assert [score.value for score in again.scores] == [score.value for score in first.scores]
    with pytest.raises(ValueError, match=rf"path must be free, or hold the table .* is for other {differing}"):
        mope.score(encoder, pairs, path=path, **ARGUMENTS | other)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [lambda model: model.visual.proj.data.add_(1e-7), lambda model: setattr(model.visual.ln_post, "eps", 1e-3)],
)
def test_another_model_is_refused(pairs: mope.Pairs, tmp_path: Path, change: Any) -> None:
    """Weights changed through ``.data``, and weights that are the same in another architecture."""
    encoder = mope.DualEncoder(clip())
    mope.score(encoder, pairs, path=tmp_path / "table.json", **ARGUMENTS)
    change(encoder.model)
    with pytest.raises(ValueError, match=r"is for other (weights|architecture)"):
        mope.score(encoder, pairs, path=tmp_path / "table.json", **ARGUMENTS)


@pytest.mark.parametrize("change", [{"metric": scaled(1, None)}, {"rewire": backwards(None, 1)}])
def test_a_callable_without_a_key_is_not_kept(
    encoder: mope.DualEncoder, pairs: mope.Pairs, tmp_path: Path, change: Any
) -> None:
    with pytest.raises(ValueError, match=r"results are kept in `path`: .* must have a `key` attribute"):
        mope.score(encoder, pairs, path=tmp_path / "table.json", **ARGUMENTS | change)
    assert not list(tmp_path.iterdir())
    assert mope.score(encoder, pairs, **ARGUMENTS | change).scores


def test_keys_differ_where_values_do() -> None:
    class Thing:
        def __init__(self, part: object) -> None:
            self.part = part

    values = [
        None, 0, 1, 1.5, True, "a", b"a", Path("a"), (1, 2), [1, 2], {1, 2}, {1: 2}, {2: 1}, int, torch.float32,
        torch.tensor([1, 2]), torch.tensor([1.0, 2.0]), torch.tensor([[1, 2]]), torch.tensor([2, 1]).numpy(),
        nn.Linear(2, 2), nn.Linear(2, 2), nn.GELU(), nn.GELU("tanh"), Thing(1), Thing([1]), Thing(torch.ones(1)),
    ]  # fmt: skip
    keys = [key_of(value) for value in values]
    assert len(set(keys)) == len(values)
    assert keys[:23] == [key_of(value) for value in values][:23]
    assert key_of({"b": 1, "a": {2, 1}}) == key_of({"a": {1, 2}, "b": 1})
    for value in (lambda: 1, functools.partial(int, 2), Thing(print), [len], object()):
        with pytest.raises(ValueError, match="must have a `key` attribute"):
            key_of(value)
