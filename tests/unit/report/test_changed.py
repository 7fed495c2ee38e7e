"""Queries that two models answer differently, against a loop over all of them."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip import SimpleTokenizer
from torch import Tensor

from torch_pruning_mope import DualEncoder, Pairs
from torch_pruning_mope.data import EmojiTokenizer
from torch_pruning_mope.metrics import Recall
from torch_pruning_mope.report import changed_examples
from torch_pruning_mope.report._changed import DIRECTIONS, OUTCOMES, _answers, _decoded

from ..models import clip, pairs_for


def brute_force(images: Tensor, texts: Tensor, owners: Tensor, direction: str) -> list[tuple[int, bool]]:
    """The answer to every query, and whether it is right: right ones must beat all wrong ones."""
    found = []
    for query in range(len(images) if direction == "i2t" else len(texts)):
        gallery = range(len(texts) if direction == "i2t" else len(images))
        best: dict[bool, tuple[float, int]] = {True: (-math.inf, -1), False: (-math.inf, -1)}
        for place in gallery:
            image, text = (query, place) if direction == "i2t" else (place, query)
            is_right = int(owners[text]) == image
            similarity = float(images[image] @ texts[text])
            if similarity > best[is_right][0]:
                best[is_right] = (similarity, place)
        right = best[True][0] > best[False][0]
        found.append((best[right][1], right))
    return found


def embeddings(encoder: DualEncoder, pairs: Pairs) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        both = encoder.embed("image", pairs.images), encoder.embed("text", pairs.tokens)
    return F.normalize(both[0], dim=-1), F.normalize(both[1], dim=-1)


@st.composite
def galleries(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of few whole numbers, so that ties abound and sums are exact; captions of images in any order."""
    images, captions = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    numbers = st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=2, max_size=2)
    rows = draw(st.lists(numbers, min_size=images * (1 + captions), max_size=images * (1 + captions)))
    owners = draw(st.permutations(list(range(images)) * captions))
    return torch.tensor(rows[:images]), torch.tensor(rows[images:]), torch.tensor(owners)


@settings(max_examples=60, deadline=None)
@given(galleries())
def test_answers_are_those_of_the_loop_and_ties_do_not_help(gallery: tuple[Tensor, Tensor, Tensor]) -> None:
    images, texts, owners = gallery
    for way in DIRECTIONS:
        found = _answers(images, texts, owners, way)
        expected = brute_force(images, texts, owners, way)
        assert (found.margin > 0).tolist() == [right for _, right in expected]
        similarity = images @ texts.T if way == "i2t" else texts @ images.T
        for query, (answer, right) in enumerate(
            expected
        ):  # equally similar answers of a kind are as good as each other
            chosen = int(found.best[query])
            assert similarity[query, chosen] == similarity[query, answer]
            image, text = (query, chosen) if way == "i2t" else (chosen, query)
            assert (int(owners[text]) == image) is right


@pytest.fixture(scope="module")
def setting() -> tuple[DualEncoder, DualEncoder, Pairs]:
    """Two models of the same weights but for a little noise, and more queries than examples are picked."""
    before, after = DualEncoder(clip()), DualEncoder(clip())
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in after.model.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    return before, after, pairs_for(before.model, 40, captions=2)


def test_examples_and_counts_are_those_of_the_loop(setting: tuple[DualEncoder, DualEncoder, Pairs]) -> None:
    before, after, pairs = setting
    found = changed_examples(before, after, pairs, count=500)
    expected: dict[tuple[str, str], dict[int, tuple[int, int]]] = {}
    owners = pairs.image_index
    for way in DIRECTIONS:
        answers = [brute_force(*embeddings(encoder, pairs), owners, way) for encoder in (before, after)]
        for query, ((first, was), (second, now)) in enumerate(zip(*answers, strict=True)):
            if was != now or (not was and first != second):
                outcome = "worse" if was else "better" if now else "both wrong"
                expected.setdefault((way, outcome), {})[query] = (first, second)
    assert set(expected) >= {(way, outcome) for way in DIRECTIONS for outcome in ("worse", "both wrong")}
    for way in DIRECTIONS:
        for outcome in OUTCOMES:
            own = [e for e in found.examples if (e.direction, e.outcome) == (way, outcome)]
            assert {e.query.index: (e.before.index, e.after.index) for e in own} == expected.get((way, outcome), {})
            assert found.counts[way][outcome] == len(own)
    for example in found.examples:
        image, text = (example.query, example.right)[:: 1 if example.direction == "i2t" else -1]
        assert owners[text.index] == image.index
        assert (image.caption, text.picture) == (None, None)
        assert image.picture
        assert text.caption == " ".join(str(t) for t in pairs.tokens[text.index].tolist())


def test_counts_account_for_the_change_of_recall(setting: tuple[DualEncoder, DualEncoder, Pairs]) -> None:
    before, after, pairs = setting
    found = changed_examples(before, after, pairs, count=1)
    assert found.queries == {"i2t": 40, "t2i": 80}
    for way in DIRECTIONS:
        recall = [Recall((1,), (way,))(*embeddings(encoder, pairs), pairs.image_index) for encoder in (before, after)]
        gained = found.counts[way]["better"] - found.counts[way]["worse"]
        assert gained == pytest.approx((recall[1] - recall[0]) * found.queries[way], abs=1e-6)


def test_the_pick_is_balanced_and_the_same_every_time(setting: tuple[DualEncoder, DualEncoder, Pairs]) -> None:
    found = changed_examples(*setting, count=16)
    assert len(found.examples) == 16
    assert found == changed_examples(*setting, count=16)
    picked = {
        (way, o): sum((e.direction, e.outcome) == (way, o) for e in found.examples)
        for way in DIRECTIONS
        for o in OUTCOMES
    }
    most = max(picked.values())
    for (way, outcome), count in picked.items():
        assert count >= min(most - 1, found.counts[way][outcome])
    for key in picked:
        changes = [abs(e.margin_after - e.margin_before) for e in found.examples if (e.direction, e.outcome) == key]
        assert changes == sorted(changes, reverse=True)
    assert [e.outcome for e in found.examples] == sorted((e.outcome for e in found.examples), key=OUTCOMES.index)


def test_a_model_agrees_with_itself(encoder: DualEncoder, pairs: Pairs) -> None:
    found = changed_examples(encoder, encoder, pairs)
    assert found.examples == ()
    assert not any(found.total(outcome) for outcome in OUTCOMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count must be at least 1; found 0"),
        ({"captions": ["one"]}, "captions must be one per caption, 12; found 1"),
    ],
)
def test_bad_arguments(encoder: DualEncoder, pairs: Pairs, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed_examples(encoder, encoder, pairs, **arguments)


class Special:
    """As transformers' tokenizers."""

    all_special_ids = (0, 9)

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return " ".join(f"w{i}" for i in ids if not (skip_special_tokens and i in self.all_special_ids))


class Wrapped:
    """As open_clip wraps those."""

    tokenizer = Special()


def test_captions_read_back() -> None:
    words = "a red apple to the left of a guitar on purple"
    for tokenizer in (EmojiTokenizer(), SimpleTokenizer()):
        assert _decoded(tokenizer([words])[0], tokenizer) == words
    for special in (Special(), Wrapped()):
        assert _decoded(torch.tensor([9, 4, 5, 9, 0, 0]), special) == "w4 w5"
