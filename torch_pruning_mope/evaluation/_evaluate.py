"""Evaluation of a loaded model as a row of `evaluation.json`."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from .._io import read_json, write_whole
from ..data import ImagePairs, LabelledImages, Pairs, ShardedPairs, open_labelled, open_pairs
from ..deploy import fold
from ..errors import UnsupportedModelError
from ..loading import ExportedEncoder, LoadedModel
from ._cost import latency, multiply_adds, parameters
from ._retrieval import evaluate_retrieval
from ._zero_shot import Templates, evaluate_zero_shot

KEYS = ("model", "criterion", "stage", "task", "data", "part")
"""Rows that agree in these replace each other."""


def evaluate(
    loaded: LoadedModel,
    data: str | Path | Pairs | ImagePairs | ShardedPairs | LabelledImages | Iterable[object],
    *,
    task: str = "retrieval",
    label: str = "model",
    criterion: str = "",
    stage: str = "dense",
    classnames: Sequence[str] | str | Path | None = None,
    templates: Templates = "open_clip",
    ks: Sequence[int] = (1, 5, 10),
    limit: int | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    time_it: bool = False,
    progress: bool = True,
    **reading: Any,
) -> dict[str, Any]:
    """Evaluates a model, with its own preprocessing and tokenizer.

    Args:
        loaded: The model with its parts, as `load` and `load_model` return it; left as it is.
        data: A source or dataset of `open_pairs`, or pairs, for retrieval; of `open_labelled` to classify.
        task: ``retrieval`` or ``zero_shot``.
        label: Name of the model in the row.
        criterion: Criterion that chose the units to remove.
        stage: ``dense``, ``pruned`` or ``distilled``.
        classnames: Names of the classes, or a file with one a line; see `open_labelled`.
        templates: See :func:`evaluate_zero_shot`.
        ks: Cut-offs of retrieval.
        limit: Number of images; None for all.
        batch_size: Inputs run at once.
        num_workers: Processes that read files; 0 reads in this one.
        time_it: Measures the latency too, at batch 1, in deployment form (see :func:`fold`) if the model has one.
        progress: Shows a progress bar.
        **reading: Further options of `open_pairs` or `open_labelled`: ``split``, ``root``, ``max_skipped``.

    Returns:
        The row, plain JSON: the model, its ``parameters``, ``multiply_adds`` and ``latency_ms``, results in percent, and the
        number of ``pairs``.

    Raises:
        ValueError: If the task is unknown, or options of reading are given for data that are read already.
    """
    if task not in {"retrieval", "zero_shot"}:
        raise ValueError(f"task must be 'retrieval' or 'zero_shot'; found {task!r}.")
    is_source = isinstance(data, str | Path)
    if reading and not is_source:
        raise ValueError(f"{', '.join(reading)} must be left out of data that are open; found {type(data).__name__}.")
    model, preprocess, tokenizer = loaded
    common: dict[str, Any] = {
        "limit": limit,
        "batch_size": batch_size,
        "num_workers": num_workers,
        "progress": progress,
    }
    found: Any = data
    if task == "retrieval":
        if isinstance(data, str | Path):
            found = open_pairs(data, preprocess, tokenizer, **reading)
        result = evaluate_retrieval(model, found, ks=ks, **common).to_dict()
    else:
        if isinstance(data, str | Path):
            found = open_labelled(data, preprocess, classnames=classnames, **reading)
        if not isinstance(found, LabelledImages):
            raise ValueError(
                f"data must be a source of labelled images, or a dataset of open_labelled, to classify them; found "
                f"{type(data).__name__}."
            )
        result = evaluate_zero_shot(
            model, found.dataset, found.classnames, tokenizer, templates=templates, **common
        ).to_dict()
    row = {"model": label, "criterion": criterion, "stage": stage, "task": task, "data": _name(data)}
    return row | costs(loaded, time_it=time_it) | result | {"pairs": result["images"]}


def costs(loaded: LoadedModel, *, time_it: bool = False) -> dict[str, float | int]:
    """Measures parameters and multiply-adds of a model for one pair, and milliseconds if asked."""
    inputs = loaded.preprocess(Image.new("RGB", (64, 64)))[None], loaded.tokenizer([""])
    found: dict[str, float | int] = {}
    if isinstance(loaded.model, ExportedEncoder):
        found |= loaded.model.sizes
    else:
        found |= {"parameters": parameters(loaded.model), "multiply_adds": multiply_adds(loaded.model, inputs)}
    return found | ({"latency_ms": 1000 * latency(_deployed(loaded.model), inputs)} if time_it else {})


def _deployed(model: nn.Module) -> nn.Module:
    try:
        return fold(model)  # type: ignore[no-any-return]
    except UnsupportedModelError:
        return model


def save_evaluation(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Writes rows to a file, beside those that it holds; a row replaces an earlier one of the same model and data.

    Args:
        rows: Of :func:`evaluate`.
        path: The file, ``{"rows": [...]}`` in JSON; made if it does not exist.

    Raises:
        ValueError: If the file is of another form.
    """
    path = Path(path)
    earlier: Any = []
    if path.exists():
        try:
            content = read_json(path)
        except ValueError as error:
            raise ValueError(f"path must be a file of evaluations; found {path}, which is no JSON: {error}.") from error
        earlier = content.get("rows") if isinstance(content, dict) else None
        if not isinstance(earlier, list) or not all(isinstance(row, dict) for row in earlier):
            raise ValueError(f"path must be a file of evaluations, an object with rows; found another in {path}.")
    kept = {tuple(row.get(key) for key in KEYS): row for row in [*earlier, *rows]}
    write_whole(path, json.dumps({"rows": list(kept.values())}, indent=1) + "\n")


def _name(data: Any) -> str:
    if isinstance(data, str | Path):
        return str(data)
    dataset = data.dataset if isinstance(data, LabelledImages) else data
    return dataset.name if isinstance(dataset, ImagePairs | ShardedPairs) else type(dataset).__name__
