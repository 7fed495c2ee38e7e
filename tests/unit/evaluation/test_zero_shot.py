"""Zero-shot classification: against open_clip's own evaluation, CLIP_benchmark's, and sums by hand."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, TensorDataset

import torch_pruning_mope as mope
from tests.unit.data.files import picture, write_shard
from tests.unit.evaluation.lookup import Lookup, number_tokens
from tests.unit.models import clip
from torch_pruning_mope.data import open_labelled
from torch_pruning_mope.errors import DataError
from torch_pruning_mope.evaluation import OpenClipModel, evaluate_zero_shot
from torch_pruning_mope.metrics import ZeroShotAccuracy

NAMES = ["owl", "fox", "car", "sun", "map", "key"]
TEMPLATES = ["{}", "a {c}", lambda name: f"the {name}s"]


def letters(texts: Sequence[str]) -> Tensor:
    """Tokens for the small CLIP: start, what each letter is modulo 47, the end."""
    rows = [[48, *(1 + ord(letter) % 47 for letter in text[:7]), 49] for text in texts]
    return torch.tensor([row + [0] * (9 - len(row)) for row in rows])


def labelled(count: int = 40, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(count, 3, 24, 24, generator=generator), torch.randint(0, 6, (count,), generator=generator)
    )


def topk_shares(output: Tensor, target: Tensor, topk: tuple[int, ...]) -> list[float]:
    """What `accuracy` of open_clip (3.3) and CLIP_benchmark (1.6) computes, which fails with NumPy 2.4 and newer."""
    hits = output.topk(max(topk), 1)[1] == target[:, None]
    return [float(hits[:, :k].sum()) for k in topk]


def test_accuracy_is_that_of_open_clips_own_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    zero_shot = pytest.importorskip("open_clip_train.zero_shot")
    monkeypatch.setattr(zero_shot, "accuracy", topk_shares)
    encoder = mope.DualEncoder(clip())
    loader = DataLoader(labelled(), 16)
    with torch.no_grad():
        classifier = open_clip.build_zero_shot_classifier(
            encoder.model, letters, NAMES, [lambda name: name, lambda name: f"a {name}", TEMPLATES[2]]
        )
    arguments = Namespace(device="cpu", precision="fp32", batch_size=16)
    expected = zero_shot.run(encoder.model, classifier, loader, arguments)
    assert (
        zero_shot.run(OpenClipModel(encoder), classifier, loader, arguments) == expected
    )  # the adapter serves as well
    found = evaluate_zero_shot(encoder, loader, NAMES, letters, templates=TEMPLATES, batch_size=7)
    assert (found.top1 / 100, (found.top5 or 0) / 100) == pytest.approx(expected)
    assert 0 < found.top1 < (found.top5 or 0) <= 100
    assert (found.images, found.classes, found.templates, found.skipped) == (40, 6, 3, 0)
    assert json.loads(json.dumps(found.to_dict()))["top1"] == found.top1


def test_accuracy_is_clip_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip(
        "clip_benchmark.metrics.zeroshot_classification", reason="CLIP_benchmark is not installed"
    )
    monkeypatch.setattr(module, "accuracy", lambda *found, topk: [n / 40 for n in topk_shares(*found, topk)])
    model, data = clip(), labelled()
    data.classes = NAMES  # type: ignore[attr-defined]
    loader = DataLoader(data, 16)
    theirs = module.evaluate(model, loader, letters, NAMES, ["a {c}", "{c}"], "cpu", amp=False)
    ours = evaluate_zero_shot(model, loader, NAMES, letters, templates=["a {}", "{}"])
    assert ours.top1 == pytest.approx(100 * theirs["acc1"])
    assert ours.top5 == pytest.approx(100 * theirs["acc5"])
    assert ours.mean_per_class == pytest.approx(100 * theirs["mean_per_class_recall"])


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_accuracy_by_hand_where_ties_go_to_the_first(data: st.DataObject) -> None:
    classes, count = data.draw(st.integers(2, 6)), data.draw(st.integers(1, 8))
    corner = st.tuples(*[st.sampled_from([-1.0, 1.0])] * 4)
    images = torch.tensor(data.draw(st.lists(corner, min_size=count, max_size=count)))
    table = torch.tensor(data.draw(st.lists(corner, min_size=classes, max_size=classes)))
    labels = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)))
    names = [str(number) for number in range(classes)]
    found = evaluate_zero_shot(Lookup(table), [(images, labels)], names, number_tokens, templates=["{}"])
    hits = ((normalize(images, dim=-1) @ normalize(table, dim=-1).T).argmax(-1) == labels).double()
    assert found.top1 == pytest.approx(100 * hits.mean().item())
    shares = [hits[labels == label].mean() for label in labels.unique()]
    assert found.mean_per_class == pytest.approx(100 * torch.stack(shares).mean().item())
    assert (found.top5 is None) == (classes < 5)
    if classes == 5:
        assert found.top5 == 100


def test_a_collapsed_model_has_the_accuracy_of_chance() -> None:
    images, labels = torch.ones(60, 4), torch.arange(60) % 6
    found = evaluate_zero_shot(
        Lookup(torch.ones(6, 4)), [(images, labels)], list("012345"), number_tokens, templates=["{}"]
    )
    assert (found.top1, found.top5) == (pytest.approx(100 / 6), pytest.approx(500 / 6))


def test_templates_of_open_clip_by_name() -> None:
    texts: list[str] = []

    def tokenizer(found: Sequence[str]) -> Tensor:
        texts.extend(found)
        return letters(found)

    loader = DataLoader(labelled(8), 4)
    for name, count in (("open_clip", 80), ("simple", 7)):
        texts.clear()
        found = evaluate_zero_shot(clip(), loader, NAMES, tokenizer, templates=name, limit=6)  # type: ignore[arg-type]
        assert (len(texts), found.templates, found.images) == (6 * count, count, 6)
        assert "itap of a fox." in texts or "itap of a fox." in [text.lower() for text in texts]


def colour(image: Image.Image) -> Tensor:
    return torch.tensor(image.getpixel((0, 0))).float()


def folders(root: Path) -> Path:
    """Three classes of two images of one colour each."""
    for number, name in enumerate(("b_dog", "a_cat", "c")):
        (root / name).mkdir(parents=True)
        for index in range(2):
            (root / name / f"{index}.png").write_bytes(picture(10 * number + index))
    return root


def test_a_folder_of_folders(tmp_path: Path) -> None:
    data = open_labelled(folders(tmp_path / "images"), colour)
    assert data.classnames == ["a cat", "b dog", "c"]
    table = torch.tensor([[10.0, 7, 9], [0, 7, 9], [20, 7, 9]])
    names = iter("012")
    found = evaluate_zero_shot(
        Lookup(table), data.dataset, data.classnames, number_tokens, templates=[lambda _: next(names)], batch_size=4
    )
    assert (found.top1, found.mean_per_class, found.images) == (100, 100, 6)
    (tmp_path / "images" / "classnames.txt").write_text("cat\ndog\nletter\n")
    assert open_labelled(tmp_path / "images", colour).classnames == ["cat", "dog", "letter"]
    assert open_labelled(tmp_path / "images", colour, classnames=["x", "y", "z"]).classnames == ["x", "y", "z"]
    with pytest.raises(DataError, match="one for each of the 3 folders"):
        open_labelled(tmp_path / "images", colour, classnames=["x", "y"])


def test_unreadable_images_are_counted(tmp_path: Path) -> None:
    root = folders(tmp_path / "images")
    (root / "c" / "0.png").write_text("no picture")
    data = open_labelled(root, colour, max_skipped=0.5)
    with pytest.warns(UserWarning, match="1 × image unreadable"):
        found = evaluate_zero_shot(Lookup(torch.eye(3)), data.dataset, list("012"), number_tokens, templates=["{}"])
    assert (found.images, found.skipped) == (5, 1)


def test_shards_as_clip_benchmark_has_them(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    samples = {f"{i:03}": {"png": picture(10 * (i % 3)), "cls": str(i % 3).encode()} for i in range(6)}
    bad = {"x0": {"png": picture(0), "cls": b"3"}, "x1": {"png": picture(0), "cls": b"dog"}, "x2": {"cls": b"0"}}
    write_shard(tmp_path / "test" / "0.tar", {**samples, **bad})
    with pytest.raises(DataError, match=r"found no classnames.txt in .*test' or above"):
        open_labelled(tmp_path / "test", colour)
    (tmp_path / "classnames.txt").write_text("0\n1\n2\n")
    data = open_labelled(tmp_path / "test", colour, max_skipped=0.5)
    table = torch.tensor([[0.0, 7, 9], [10, 7, 9], [20, 7, 9]])
    with pytest.warns(UserWarning, match=r"2 × entry malformed .*class 3 of 3.*1 × image missing"):
        found = evaluate_zero_shot(Lookup(table), data.dataset, data.classnames, number_tokens, templates=["{}"])
    assert (found.top1, found.images, found.skipped) == (100, 6, 3)
    again = open_labelled(str(tmp_path / "test" / "*.tar"), colour, classnames=tmp_path / "classnames.txt")
    assert again.classnames == ["0", "1", "2"]


def test_imagenets_folders_have_open_clips_names(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / "all" / f"n{number:08}").mkdir(parents=True)
    (tmp_path / "all" / "n00000000" / "0.png").write_bytes(picture(0))
    assert open_labelled(tmp_path / "all", colour).classnames == list(open_clip.IMAGENET_CLASSNAMES)
    (tmp_path / "few" / "n00000001").mkdir(parents=True)
    (tmp_path / "few" / "n00000001" / "0.png").write_bytes(picture(0))
    with pytest.raises(DataError, match="folders called by WordNet's numbers; found 1"):
        open_labelled(tmp_path / "few", colour)


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be a folder with a folder of images for each class, or shards; found"):
        open_labelled(tmp_path / "nowhere", colour)
    with pytest.raises(DataError, match="a folder of images for each class, or shards; found neither"):
        open_labelled(tmp_path, colour)
    with pytest.raises(DataError, match="found no file"):
        open_labelled(folders(tmp_path / "images"), colour, classnames=tmp_path / "names.txt")


BATCH = [(torch.ones(2, 4), torch.tensor([0, 1]))]


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (BATCH, {"classnames": ["0"]}, r"classnames must be at least two names; found \['0'\]"),
        (BATCH, {"classnames": "01"}, "classnames must be at least two names; found '01'"),
        (
            BATCH,
            {"templates": "imagenet"},
            "templates must be 'open_clip' or 'simple', or a list of them; found 'imagenet'",
        ),
        (BATCH, {"templates": []}, "templates must be at least one; found none"),
        (BATCH, {"templates": ["a photo"]}, r"templates must have \{\} or \{c\} where the class goes; found 'a photo'"),
        (BATCH, {"templates": ["{name}"]}, r"where the class goes; found '\{name\}'"),
        (BATCH, {"limit": 0}, "batch_size and limit must be at least 1; found 64 and 0"),
        ([], {}, "images must hold at least one; found none"),
        ([(torch.ones(1, 4), torch.tensor([2]))], {}, "labels must be 0 to 1, a name each; found 2 to 2"),
    ],
)
def test_bad_arguments(images: object, options: dict[str, object], message: str) -> None:
    arguments = {"classnames": ["0", "1"], "templates": ["{}"], **options}
    names = arguments.pop("classnames")
    with pytest.raises(ValueError, match=message):
        evaluate_zero_shot(Lookup(torch.ones(2, 4)), images, names, number_tokens, **arguments)  # type: ignore[arg-type]


def test_captions_are_no_labels(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(picture(0))
    (tmp_path / "1.png").write_bytes(picture(1))
    (tmp_path / "pairs.csv").write_text("filepath,title\n0.png,0\n1.png,1\n")
    data = mope.open_pairs(tmp_path / "pairs.csv", colour, number_tokens)
    with pytest.raises(TypeError, match=r"found captions\. Use open_labelled"):
        evaluate_zero_shot(Lookup(torch.ones(2, 3)), data, ["0", "1"], number_tokens, templates=["{}"])
    batch = torch.ones(2, 3), torch.zeros(2, 9, dtype=torch.long)
    with pytest.raises(TypeError, match=r"found captions\. Use open_labelled"):
        evaluate_zero_shot(Lookup(torch.ones(2, 3)), [batch], ["0", "1"], number_tokens, templates=["{}"])
    with pytest.raises(TypeError, match=r"must be batches .*; found Tensor"):
        evaluate_zero_shot(Lookup(torch.ones(2, 3)), [torch.ones(2, 3)], ["0", "1"], number_tokens, templates=["{}"])


def test_accuracy_as_the_metric_of_scores(tmp_path: Path) -> None:
    """A unit's score is what the accuracy loses once the unit is gone."""
    encoder = mope.DualEncoder(clip())
    images, labels = labelled(30).tensors
    prompts = letters([f"a {name}" for name in NAMES])
    pairs = mope.Pairs(images, prompts[labels])
    table = mope.score(encoder, pairs, metric=ZeroShotAccuracy(labels), kinds=("head",), progress=False)
    assert table.metric == "accuracy"

    def accuracy() -> float:
        return evaluate_zero_shot(encoder, [(images, labels)], NAMES, letters, templates=["a {}"]).top1 / 100

    assert table.dense == pytest.approx(accuracy())
    worst = max(table.scores, key=lambda score: abs(score.value))
    assert worst.value != 0
    with torch.no_grad():
        block = encoder.towers[worst.unit.tower].blocks[worst.unit.layer]
        output = block.attention.output.weight
        size = output.shape[1] // block.attention.num_units
        output[:, worst.unit.index * size : (worst.unit.index + 1) * size] = 0
    assert table.dense - accuracy() == pytest.approx(worst.value)


def test_the_metric_averages_the_prompts_of_a_class() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(6, 4, generator=generator), torch.randn(12, 4, generator=generator)
    labels = [7, 7, 3, 3, 5, 5]
    index = torch.arange(12) % 6
    classes = {
        label: normalize(sum(normalize(texts[j], dim=-1) for j in range(12) if labels[j % 6] == label), dim=-1)
        for label in (3, 5, 7)
    }
    found = [max(classes, key=lambda label: float(classes[label] @ image)) for image in images]
    hits = sum(a == b for a, b in zip(found, labels, strict=True))
    assert ZeroShotAccuracy(labels)(images, texts, index) == pytest.approx(hits / 6)
    assert ZeroShotAccuracy(labels, top=3)(images, texts, index) == 1
    assert ZeroShotAccuracy(labels, top=3).name == "accuracy@3"


def test_bad_labels() -> None:
    with pytest.raises(
        ValueError, match=r"labels must be one integer per image, of at least two classes; found shape \[3\]"
    ):
        ZeroShotAccuracy([1, 1, 1])
    with pytest.raises(ValueError, match="top must be at least 1; found 0"):
        ZeroShotAccuracy([0, 1], top=0)
    with pytest.raises(ValueError, match="found 2 for 3 images"):
        ZeroShotAccuracy([0, 1])(torch.ones(3, 4), torch.ones(3, 4))
