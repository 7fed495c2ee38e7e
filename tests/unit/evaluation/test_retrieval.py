"""Retrieval: against sums by hand, against CLIP_benchmark, and from every kind of data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

import torch_pruning_mope as mope
from tests.unit.evaluation.lookup import Lookup, noisy, number_tokens
from tests.unit.models import clip, pairs_for
from torch_pruning_mope.errors import DataError, NonFiniteError, UnsupportedModelError
from torch_pruning_mope.evaluation import evaluate_retrieval

KEYS = [f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]


def by_hand(images: Tensor, texts: Tensor, index: list[int], ks: tuple[int, ...]) -> dict[str, tuple[float, int]]:
    """Each recall and what ties cost, query by query over plain lists."""
    similarity = (normalize(images, dim=-1) @ normalize(texts, dim=-1).T).tolist()
    found: dict[str, tuple[float, int]] = {}
    for way in ("i2t", "t2i"):
        ranks = []
        for query in range(len(images) if way == "i2t" else len(texts)):
            row = similarity[query] if way == "i2t" else [line[query] for line in similarity]
            right = [i for i in range(len(row)) if (index[i] == query if way == "i2t" else i == index[query])]
            best = max(row[i] for i in right)
            wrong = [value for i, value in enumerate(row) if i not in right]
            ranks.append((sum(value >= best for value in wrong), sum(value > best for value in wrong)))
        for k in ks:
            hits = sum(with_ties < k for with_ties, _ in ranks)
            lost = sum(without < k <= with_ties for with_ties, without in ranks)
            found[f"{way}_r{k}"] = 100 * hits / len(ranks), lost
    return found


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_recalls_and_ties_are_those_counted_by_hand(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 6))
    index = [*range(count), *data.draw(st.lists(st.integers(0, count - 1), max_size=6))]
    corner = st.tuples(*[st.sampled_from([-1.0, 1.0])] * 4)  # of a cube: many are alike, and rounding decides nothing
    images = torch.tensor(data.draw(st.lists(corner, min_size=count, max_size=count)))
    table = torch.tensor(data.draw(st.lists(corner, min_size=len(index), max_size=len(index))))
    pairs = mope.Pairs(images, number_tokens([str(i) for i in range(len(index))]), torch.tensor(index))
    found = evaluate_retrieval(Lookup(table), pairs, ks=(1, 2, 4), batch_size=3)
    expected = by_hand(images, table, index, (1, 2, 4))
    assert dict(found.recalls) == pytest.approx({key: value for key, (value, _) in expected.items()})
    assert (found.images, found.captions) == (count, len(index))


def test_a_collapsed_model_finds_nothing() -> None:
    pairs = mope.Pairs(torch.ones(20, 4), torch.zeros(20, 2, dtype=torch.long))
    found = evaluate_retrieval(Lookup(torch.ones(1, 4)), pairs)
    assert set(found.recalls.values()) == {0.0}
    assert found.recall_mean == 0


def test_the_mean_is_that_of_the_recall_metric() -> None:
    images, texts = noisy(50, 3)
    index = torch.arange(50).repeat_interleave(3)
    found = evaluate_retrieval(Lookup(texts), mope.Pairs(images, torch.arange(150)[:, None], index))
    assert list(found.recalls) == KEYS
    assert found.recall_mean == pytest.approx(100 * mope.metrics.Recall()(images, texts, index))
    content = json.loads(json.dumps(found.to_dict()))
    assert content["i2t_r5"] == found.recalls["i2t_r5"]
    assert (content["images"], content["captions"], content["skipped"]) == (50, 150, 0)


def clip_benchmark(model: nn.Module, images: Tensor, captions: list[list[str]], ks: list[int]) -> dict[str, float]:
    """What CLIP_benchmark says, by our names."""
    module = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval", reason="CLIP_benchmark is not installed")
    batches = [(images[i : i + 64], captions[i : i + 64]) for i in range(0, len(images), 64)]
    found = module.evaluate(model, batches, number_tokens, "cpu", amp=False, recall_k_list=ks)
    names = {"image_retrieval": "t2i", "text_retrieval": "i2t"}
    return {
        f"{names[task]}_r{key.partition('@')[2]}": 100 * value
        for key, value in found.items()
        for task in [key.partition("_recall")[0]]
    }


def test_recall_is_clip_benchmarks() -> None:
    """1,000 images of 5 captions each."""
    images, table = noisy(1000, 5, noise=1.3)
    model = Lookup(table)
    captions = [[str(5 * image + which) for which in range(5)] for image in range(1000)]
    theirs = clip_benchmark(model, images, captions, [1, 5, 10])
    tokens = torch.stack([number_tokens(texts) for texts in captions])
    ours = evaluate_retrieval(model, zip(images.split(64), tokens.split(64), strict=True))
    assert dict(ours.recalls) == pytest.approx(theirs, abs=1e-4)  # theirs is a float32
    assert 20 < ours.recall_mean < 80  # neither all nor nothing


def test_recall_differs_from_clip_benchmarks_by_ties_alone() -> None:
    """They let the sort decide, so theirs lies between ours and what ours would be if ties helped."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(200, 16, generator=generator).sign()  # corners of a cube: many are as near, to the bit
    table = images.repeat_interleave(5, 0) * (torch.rand(1000, 16, generator=generator) - 0.15).sign()
    model = Lookup(table)
    captions = [[str(5 * image + which) for which in range(5)] for image in range(200)]
    theirs = clip_benchmark(model, images, captions, [1, 5, 10])
    index = torch.arange(200).repeat_interleave(5)
    ours = evaluate_retrieval(model, mope.Pairs(images, torch.arange(1000)[:, None], index))
    lost = {key: count for key, (_, count) in by_hand(images, table, index.tolist(), (1, 5, 10)).items()}
    for key, value in theirs.items():
        most = ours.recalls[key] + 100 * lost[key] / (200 if key.startswith("i2t") else 1000)
        assert ours.recalls[key] - 1e-4 <= value <= most + 1e-4
    assert lost["t2i_r1"] > 50
    assert theirs["t2i_r1"] > ours.recalls["t2i_r1"] + 1


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Twelve pictures with two captions each, as COCO lists them; two of the files are broken."""
    images, notes = [], []
    rows = mope.emoji_scenes("test", 12)
    for number, (pixels, caption) in enumerate(rows):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png"})
        notes += [{"image_id": number, "caption": text} for text in (caption, rows[number - 1][1])]
    (tmp_path / "3.png").write_text("no picture")
    (tmp_path / "7.png").unlink()
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": notes}))
    return tmp_path / "captions.json"


@pytest.mark.filterwarnings("ignore:.*samples skipped")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_is_read_as_it_is_gathered(scenes: Path, workers: int) -> None:
    model, preprocess, tokenizer = mope.load_model("tiny")
    data = mope.open_pairs(scenes, preprocess, tokenizer, max_skipped=0.3)
    streamed = evaluate_retrieval(model, data, ks=(1, 3), batch_size=4, num_workers=workers)
    gathered = evaluate_retrieval(model, mope.gather_pairs(data), ks=(1, 3))
    assert (streamed.images, streamed.captions, streamed.skipped) == (10, 20, 2)
    assert streamed.recalls == gathered.recalls
    assert streamed.recall_mean > 0
    again = evaluate_retrieval(model, data, ks=(1, 3), limit=6)
    assert (again.images, again.captions) == (6, 12)
    assert again.recalls == evaluate_retrieval(model, mope.gather_pairs(data, 6), ks=(1, 3)).recalls


def test_shards_and_loaders(tmp_path: Path) -> None:
    from tests.unit.data.files import picture, write_shard

    texts = json.dumps({"caption": ["a red apple on white", "a dog on blue"]}).encode()
    samples = {f"{i:03}": {"png": picture(9 * i), "json": texts} for i in range(5)}
    shard = write_shard(tmp_path / "0.tar", {**samples, "bad": {"txt": b"a cat on red"}})
    model, preprocess, tokenizer = mope.load_model("tiny")
    data = mope.open_pairs(shard, preprocess, tokenizer, max_skipped=0.5)
    for _ in range(2):  # the second pass counts no more than the first
        with pytest.warns(UserWarning, match="× image missing"):
            found = evaluate_retrieval(model, data)
        assert (found.images, found.captions, found.skipped) == (5, 10, 1)
    pairs = mope.emoji_pairs("test", 8)
    loader = DataLoader(list(zip(pairs.images, pairs.tokens, strict=True)), batch_size=3)
    assert evaluate_retrieval(model, loader) == evaluate_retrieval(model, pairs)
    assert evaluate_retrieval(model, loader, limit=4) == evaluate_retrieval(model, pairs, limit=4)


def test_wrapped_pruned_and_plain_models() -> None:
    plain = clip()
    pairs = pairs_for(plain, 12, captions=2)
    expected = evaluate_retrieval(plain, pairs)
    plain.train()
    encoder = mope.DualEncoder(plain)
    assert evaluate_retrieval(encoder, pairs, batch_size=5).recalls == expected.recalls
    assert plain.training  # left as it was
    importance = mope.MoPEImportance(encoder, pairs, progress=False)
    mope.prune(encoder, importance, head_ratio=0.5, ffn_ratio=0.5)
    pruned = evaluate_retrieval(encoder, pairs)
    assert pruned == evaluate_retrieval(encoder.model, pairs)
    assert pruned == evaluate_retrieval(mope.fold(encoder), pairs)


def test_models_of_transformers() -> None:
    from tests.unit import zoo

    model = zoo.build("transformers SigLIP")
    encoder = mope.DualEncoder(zoo.build("transformers SigLIP"))
    pairs = zoo.pairs_of(encoder)
    assert evaluate_retrieval(model, pairs, ks=(1, 2)) == evaluate_retrieval(encoder, pairs, ks=(1, 2))


def test_half_precision_takes_images_as_they_are() -> None:
    model = clip().bfloat16()
    found = evaluate_retrieval(model, pairs_for(clip(), 6))
    assert found.images == 6


PAIRS = mope.Pairs(torch.randn(3, 4), torch.zeros(3, 2, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ks": ()}, r"ks must be cut-offs of at least 1; found \(\)"),
        ({"ks": (0, 5)}, r"ks must be cut-offs of at least 1; found \(0, 5\)"),
        ({"batch_size": 0}, "batch_size must be at least 1; found 0"),
        ({"limit": 1}, "limit must be at least two images, which retrieval needs; found 1"),
    ],
)
def test_arguments_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(Lookup(torch.ones(1, 4)), PAIRS, **options)  # type: ignore[arg-type]


def test_bad_models_and_data(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"found Linear. Register its towers"):
        evaluate_retrieval(nn.Linear(2, 2), PAIRS)
    model = Lookup(torch.ones(1, 4))
    with pytest.raises(ValueError, match="pairs must hold at least two images; found 0"):
        evaluate_retrieval(model, [])
    with pytest.raises(TypeError, match=r"must be batches .*; found Tensor"):
        evaluate_retrieval(model, [torch.ones(2, 4)])
    with pytest.raises(NonFiniteError, match="text embeddings must be finite"):
        evaluate_retrieval(Lookup(torch.full((1, 4), torch.nan)), PAIRS)
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    (tmp_path / "pairs.csv").write_text("filepath,title\n0.png,0\n")
    data = mope.open_pairs(tmp_path / "pairs.csv", lambda _: torch.ones(4), number_tokens)
    with pytest.raises(DataError, match="must have at least two readable images with captions; found 1"):
        evaluate_retrieval(model, data)
