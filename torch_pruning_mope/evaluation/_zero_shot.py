"""Zero-shot classification, with open_clip's templates and classifier."""

import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import open_clip
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._state import evaluation_mode
from ..data import ImagePairs, ShardedPairs
from ..dual_encoder import DualEncoder
from ..metrics import class_ranks
from ._open_clip import OpenClipModel
from ._retrieval import read_batches, skipped_of

Template = str | Callable[[str], str]
Templates = Literal["open_clip", "simple"] | Sequence[Template]
NAMED: Mapping[str, Sequence[Template]] = {
    "open_clip": open_clip.OPENAI_IMAGENET_TEMPLATES,
    "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
}


@dataclass(frozen=True)
class ZeroShotResult:
    """Accuracies, and the numbers behind them.

    Attributes:
        top1: Images whose class comes first, in percent. A tie goes to the class with the lower number, as with `argmax`.
        top5: Images whose class is among the first five, in percent; None of fewer than five classes.
        mean_per_class: Mean of the classes' top1, over the classes that occur, in percent.
        images: Number of images.
        classes: Number of classes.
        templates: Prompts of a class.
        skipped: Samples that could not be read or had no label.
    """

    top1: float
    top5: float | None
    mean_per_class: float
    images: int
    classes: int
    templates: int
    skipped: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON."""
        return asdict(self)


def evaluate_zero_shot(
    model: DualEncoder | nn.Module,
    images: ImagePairs | ShardedPairs | Iterable[object],
    classnames: Sequence[str],
    tokenizer: Callable[[Sequence[str]], Tensor],
    *,
    templates: Templates = "open_clip",
    limit: int | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
) -> ZeroShotResult:
    """Measures the accuracy of zero-shot classification (CLIP, arXiv 2103.00020, section 3.1).

    Args:
        model: A wrapped model, or any that open_clip or transformers could run; left as it is.
        images: A dataset of `open_labelled`, or batches ``(images, labels)``, such as a DataLoader's over a dataset of
            torchvision.
        classnames: Names of the classes, in the order of the labels.
        tokenizer: From captions to tokens, as `load_model` returns it.
        templates: ``open_clip`` for the 80 of OpenAI, ``simple`` for 7 of these; or strings with ``{}`` or ``{c}`` for the
            class, or functions of it.
        limit: Number of images; None for all.
        batch_size: Inputs run at once.
        num_workers: Processes that read a dataset; 0 reads in this one.
        progress: Shows a progress bar.

    Returns:
        The accuracies and the counts behind them.

    Raises:
        ValueError: If an argument is out of range, there are fewer than two classes or no images, or a label is of no class.
    """
    if len(classnames) < 2 or isinstance(classnames, str):
        raise ValueError(f"classnames must be at least two names; found {classnames!r}.")
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"batch_size and limit must be at least 1; found {batch_size} and {limit}.")
    prompts = template_functions(templates)
    classes = _classifier(model, tokenizer, classnames, prompts, batch_size)
    encoders = OpenClipModel(model)
    ranks, labels = [], []
    for pictures, found in _labelled(images, limit, batch_size=batch_size, num_workers=num_workers, progress=progress):
        label = found.to(encoders.device).long()
        if int(label.min()) < 0 or int(label.max()) >= len(classnames):
            raise ValueError(
                f"labels must be 0 to {len(classnames) - 1}, a name each; found {int(label.min())} to {int(label.max())}. "
                "Give as many classnames as there are classes."
            )
        ranks.append(class_ranks(encoders.embed("image", pictures, batch_size)[None], classes[None], label)[0].cpu())
        labels.append(label.cpu())
    if not ranks:
        raise ValueError("images must hold at least one; found none.")
    return _result(torch.cat(ranks), torch.cat(labels), len(classnames), len(prompts), skipped_of(images))


def template_functions(templates: Templates) -> list[Callable[[str], str]]:
    """Returns templates as functions of a class's name; raises ValueError for those that are none."""
    if isinstance(templates, str):
        if templates not in NAMED:
            raise ValueError(
                f"templates must be {' or '.join(map(repr, NAMED))}, or a list of them; found {templates!r}."
            )
        templates = NAMED[templates]
    if not templates:
        raise ValueError("templates must be at least one; found none.")
    return [_function(template) for template in templates]


def _function(template: Template) -> Callable[[str], str]:
    if not isinstance(template, str):
        return template
    fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    if not fields or set(fields) - {"", "c"}:
        raise ValueError(f"templates must have {{}} or {{c}} where the class goes; found {template!r}.")
    return lambda name: template.format(*[name] * len(fields), c=name)


@torch.inference_mode()
def _classifier(
    model: DualEncoder | nn.Module,
    tokenizer: Callable[[Sequence[str]], Tensor],
    classnames: Sequence[str],
    templates: list[Callable[[str], str]],
    batch_size: int,
) -> Float[Tensor, "C J"]:
    """Returns normalised embeddings of the classes, by open_clip's own code."""
    adapter = OpenClipModel(model)
    with evaluation_mode(adapter.model):
        weights: Tensor = open_clip.build_zero_shot_classifier(
            adapter,
            tokenizer,
            list(classnames),
            templates,
            num_classes_per_batch=max(1, batch_size // len(templates)),
            device=next(adapter.parameters()).device,
        )
    return weights.T.float() if weights.dtype != torch.float64 else weights.T


def _labelled(
    source: ImagePairs | ShardedPairs | Iterable[object], limit: int | None, **reading: Any
) -> Iterator[tuple[Tensor, Int[Tensor, "B"]]]:
    """Yields images and labels, up to a number of images."""
    if not isinstance(source, ImagePairs | ShardedPairs):
        source = map(_as_pairs, source)
    for batch in read_batches(source, limit, **reading):
        if batch.tokens.shape[1] != 1:
            raise TypeError(
                "images must be a dataset of open_labelled, or batches (images, labels); found captions. Use open_labelled."
            )
        yield batch.images, batch.tokens[:, 0]


def _as_pairs(batch: object) -> object:
    """Makes images with a label each pairs whose tokens are the labels."""
    match batch:
        case (Tensor() as images, Tensor() as labels) if labels.ndim == 1:
            return images, labels[:, None]
    return batch


def _result(
    ranks: Int[Tensor, "I"], labels: Int[Tensor, "I"], classes: int, templates: int, skipped: int
) -> ZeroShotResult:
    hits = (ranks < 1).double()
    sums = torch.zeros(classes, dtype=torch.double).index_add_(0, labels, hits)
    sizes = labels.bincount(minlength=classes)
    return ZeroShotResult(
        top1=100 * float(hits.mean()),
        top5=100 * float((ranks < 5).double().mean()) if classes >= 5 else None,
        mean_per_class=100 * float((sums / sizes)[sizes > 0].mean()),
        images=len(ranks),
        classes=classes,
        templates=templates,
        skipped=skipped,
    )
