"""Files of a pruned model for other runtimes and libraries."""

import copy
import functools
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from .._io import write_folder
from ..data import Pairs
from ..encoder import EncoderCore, TowerName
from ..errors import ExportError, MopeError
from ..loading import LoadedModel
from ._deployment import write_deployment
from ._gate import Gate
from ._programs import (
    Runner,
    deployed_encoders,
    some_inputs,
    weights_of_one,
    write_executorch,
    write_onnx,
    write_program,
)
from ._quantize import Quantization
from ._stock import write_open_clip, write_transformers

Format = Literal["onnx", "torch", "executorch", "open_clip", "transformers"]
_PROGRAMS = {
    "onnx": (write_onnx, "onnx"),
    "torch": (write_program, "pt2"),
    "executorch": (write_executorch, "pte"),
}
_COUNTS = {"executorch": (1,)}
"""Numbers of inputs to check programs with that do not take any number."""
_STOCK: dict[str, Callable[[EncoderCore, Path], dict[TowerName, Runner]]] = {
    "open_clip": write_open_clip,
    "transformers": write_transformers,
}

_TOLERANCE, _COARSE = 1e-4, 5e-2
"""Largest differences, relative to the largest number of an embedding; the second for models in half precision."""


def export(
    model: nn.Module | EncoderCore | LoadedModel,
    folder: str | Path,
    *,
    format: Format = "onnx",  # noqa: A002
    opset: int | None = None,
    quantize: Quantization | None = None,
    pairs: Pairs | Iterable[object] | None = None,
    test_pairs: Pairs | Iterable[object] | None = None,
    max_drop: float = 1.0,
) -> list[Path]:
    """Writes a model for other runtimes, or as a stock model of the library that it came from.

    | format | files | read by |
    |---|---|---|
    | `onnx` | `image.onnx`, `text.onnx`, `deployment.json` | :func:`load_exported`, onnxruntime and others |
    | `torch` | `image.pt2`, `text.pt2`, `deployment.json` | `torch.export.load` |
    | `executorch` | `image.pte`, `text.pte`, `deployment.json` | ExecuTorch, on phones; one input at a time |
    | `open_clip` | `open_clip_config.json`, `open_clip_model.safetensors` | open_clip, as `local-dir:FOLDER` |
    | `transformers` | `config.json`, `model.safetensors` | `AutoModel.from_pretrained` |

    The first three hold the deployment form (:func:`fold`) of each encoder, the first two for any number of inputs;
    `deployment.json` describes their inputs, and of a :class:`LoadedModel` preprocessing and tokenizer too. The others need
    layers that all kept the same widths, and as many heads as the width is wide: both libraries derive one from the other.
    Written files are loaded and run before they are put in place.

    With ``quantize="int8"``, onnxruntime quantises matrix products, convolutions and token tables statically, signed and per
    channel in the weights. Layers whose output it changes by more than 5 % stay in float; `deployment.json` lists the error of
    each layer. ``quantize="fp16"`` halves the bytes; CPUs compute such files in float32.

    Args:
        model: A CLIP-like model, pruned or not, wrapped or not, with or without its inputs; left as it is.
        folder: The target; made if it does not exist. Files of the same names are replaced.
        format: One of the table.
        opset: ONNX's version of the operators; by default the exporter's choice.
        quantize: ``int8`` or ``fp16`` for ONNX, or None.
        pairs: Calibration pairs of int8; the first 256 images and captions are used.
        test_pairs: Pairs on which recall is measured before and after quantisation; None to measure nothing.
        max_drop: Points of mean R@1 that quantisation may cost.

    Returns:
        The files.

    Raises:
        ValueError: If ``format`` or ``quantize`` is unknown, an argument does not go with the format, ``test_pairs`` are
            among ``pairs``, or pairs are of other shapes than the files take.
        ExportError: If the format cannot express the model, a package is missing, the exporter fails, the files embed
            otherwise, or quantisation costs more than ``max_drop``. Nothing is then left in the folder.
    """
    _check_arguments(format, opset, quantize, pairs)
    loaded = model if isinstance(model, LoadedModel) else None
    given = model.model if isinstance(model, LoadedModel | EncoderCore) else model
    encoder = EncoderCore(copy.deepcopy(given).eval())
    encoder.check_has_weights()
    encoder.model.cpu()
    gate = None if quantize is None else Gate(quantize, pairs, test_pairs, max_drop, encoder)
    target = Path(folder)
    with write_folder(target) as partial:
        if format in _PROGRAMS:
            runners = _write_programs(encoder, partial, format, opset)
            about = None if gate is None else gate.quantize(runners, partial)
            write_deployment(encoder, loaded, partial, format, about)
        else:
            for tower, run in _STOCK[format](encoder, partial).items():
                _check(encoder, tower, functools.partial(encoder.embed, tower), run)
        return [target / path.name for path in sorted(partial.iterdir())]


def _check_arguments(form: str, opset: int | None, quantize: str | None, pairs: object) -> None:
    """Raises ValueError if arguments are unknown or do not go together."""
    if form not in get_args(Format):
        raise ValueError(f"format must be one of {', '.join(get_args(Format))}; found {form!r}.")
    if opset is not None and form != "onnx":
        raise ValueError(f"opset must be None for format {form!r}; found {opset}. It is ONNX's.")
    if quantize not in {None, *get_args(Quantization)}:
        raise ValueError(f"quantize must be None or one of {', '.join(get_args(Quantization))}; found {quantize!r}.")
    if quantize is not None and form != "onnx":
        raise ValueError(f"quantize={quantize!r} must come with format='onnx'; found {form!r}.")
    if quantize == "int8" and pairs is None:
        raise ValueError("quantize='int8' must come with calibration pairs; found none. Pass pairs.")


def _write_programs(encoder: EncoderCore, folder: Path, format: str, opset: int | None) -> dict[TowerName, Runner]:  # noqa: A002
    """Writes both encoders; returns their runners."""
    write, suffix = _PROGRAMS[format]
    runners: dict[TowerName, Runner] = {}
    for tower, part in deployed_encoders(encoder).items():
        inputs = some_inputs(encoder, tower, 2)
        path = folder / f"{tower}.{suffix}"
        with weights_of_one(part, inputs):
            try:
                run = write(part, inputs, path, opset)
            except MopeError:
                raise
            except Exception as error:
                root: BaseException = error
                while root.__cause__ is not None:
                    root = root.__cause__
                reason = textwrap.shorten(str(root), 400, placeholder=" …")
                raise ExportError(
                    f"format: the {tower} encoder must be one that torch's exporter can follow; found {type(root).__name__}: "
                    f"{reason}. Try another format, or use torch.compile on the model that mope.fold returns."
                ) from error
        _check(encoder, tower, functools.partial(encoder.embed, tower), run, _COUNTS.get(format, (1, 3)))
        runners[tower] = run
    return runners


@torch.no_grad()
def _check(encoder: EncoderCore, tower: TowerName, embed: Runner, run: Runner, counts: Sequence[int] = (1, 3)) -> None:
    """Raises ExportError if the files embed otherwise than the model."""
    for count in counts:
        inputs = some_inputs(encoder, tower, count, seed=count)
        expected = embed(inputs)
        try:
            found = run(inputs)
        except Exception as error:
            reason = textwrap.shorten(str(error), 300, placeholder=" …")
            raise ExportError(
                f"files must take any number of inputs; found that the {tower} encoder refuses {count}: {reason}. "
                "The model's own code makes their number a constant; use torch.compile on the model that mope.fold returns."
            ) from error
        exact = expected.dtype in {torch.float32, torch.float64}
        deviation = float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
        if not deviation <= (_TOLERANCE if exact else _COARSE):
            raise ExportError(
                f"files must embed as the model does; found embeddings of the {tower} encoder that differ by "
                f"{deviation:.1e} of the largest for {count} inputs. Nothing was put in place; please report it."
            )
