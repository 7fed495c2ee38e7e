"""Files of a pruned model for other runtimes and libraries."""

import copy
import functools
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from ..encoder import EncoderCore, TowerName
from ..errors import ExportError, MopeError
from ._encoders import deployed_encoders, description, some_inputs, weights_of_one
from ._programs import Runner, write_executorch, write_onnx, write_program
from ._stock_open_clip import write_open_clip
from ._stock_transformers import write_transformers

Format = Literal["onnx", "torch", "executorch", "open_clip", "transformers"]
_PROGRAMS = {
    "onnx": (write_onnx, "onnx"),
    "torch": (write_program, "pt2"),
    "executorch": (write_executorch, "pte"),
}
_COUNTS = {"executorch": (1,)}
"""How many inputs a program is tried on, where it does not take any number."""
_STOCK: dict[str, Callable[[EncoderCore, Path], dict[TowerName, Runner]]] = {
    "open_clip": write_open_clip,
    "transformers": write_transformers,
}

_TOLERANCE, _COARSE = 1e-4, 5e-2
"""Of the largest number in an embedding; the second for models in half precision."""


def export(
    model: nn.Module | EncoderCore,
    folder: str | Path,
    *,
    format: Format = "onnx",  # noqa: A002 (what it is)
    opset: int | None = None,
) -> list[Path]:
    """Writes a model for other runtimes, or as a stock model of the library that it came from.

    | format | files | read by |
    |---|---|---|
    | `onnx` | `image.onnx`, `text.onnx`, `deployment.json` | onnxruntime and others |
    | `torch` | `image.pt2`, `text.pt2`, `deployment.json` | `torch.export.load` |
    | `executorch` | `image.pte`, `text.pte`, `deployment.json` | ExecuTorch, on phones; one input at a time |
    | `open_clip` | `open_clip_config.json`, `open_clip_model.safetensors` | open_clip, as `local-dir:FOLDER` |
    | `transformers` | `config.json`, `model.safetensors` | `AutoModel.from_pretrained` |

    The first three hold the deployment form (:func:`fold`) of each encoder, the first two for any number of inputs;
    `deployment.json` says what they take, and the temperature. The others need layers that all kept the same widths, and as
    many heads as the width is wide: both libraries derive one from the other. What was written is loaded and run before it is
    put in place.

    Args:
        model: A CLIP-like model, pruned or not, wrapped or not; left as it is.
        folder: Where the files go; made if need be. Files of the same names are replaced.
        format: What to write.
        opset: ONNX's version of the operators; by default the exporter's choice.

    Returns:
        The files.

    Raises:
        ValueError: If ``format`` is unknown, or ``opset`` is given for another format than ONNX.
        ExportError: If the format cannot express the model, a package is missing, the exporter fails, or what was written
            puts out something else. Nothing is then left in the folder.
    """
    if format not in get_args(Format):
        raise ValueError(f"format must be one of {', '.join(get_args(Format))}; found {format!r}.")
    if opset is not None and format != "onnx":
        raise ValueError(f"opset must be None for format {format!r}; found {opset}. It is ONNX's.")
    root = model.model if isinstance(model, EncoderCore) else model
    encoder = EncoderCore(copy.deepcopy(root).eval())
    encoder.check_has_weights()
    encoder.model.cpu()
    target = Path(folder)
    before = target.exists()
    target.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".export-", dir=target))
    try:
        if format in _PROGRAMS:
            _write_programs(encoder, partial, format, opset)
        else:
            for tower, run in _STOCK[format](encoder, partial).items():
                _check(encoder, tower, functools.partial(encoder.embed, tower), run)
        # Weights before what refers to them.
        names = sorted((path.name for path in partial.iterdir()), key=lambda name: name.endswith((".onnx", ".json")))
        return [(partial / name).replace(target / name) for name in names]
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not before and not any(target.iterdir()):
            target.rmdir()


def _write_programs(encoder: EncoderCore, folder: Path, format: str, opset: int | None) -> None:  # noqa: A002
    """Both encoders, and what a user has to know of them."""
    write, suffix = _PROGRAMS[format]
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
        embed = functools.partial(encoder.embed, tower)
        _check(encoder, tower, embed, run, _COUNTS.get(format, (1, 3)))
    (folder / "deployment.json").write_text(description(encoder), encoding="utf-8")


@torch.no_grad()
def _check(encoder: EncoderCore, tower: TowerName, embed: Runner, run: Runner, counts: Sequence[int] = (1, 3)) -> None:
    """Raises if what was written puts out something else than the model.

    Raises:
        ExportError: Then.
    """
    for count in counts:
        inputs = some_inputs(encoder, tower, count, seed=count)
        expected = embed(inputs)
        try:
            found = run(inputs)
        except Exception as error:
            reason = textwrap.shorten(str(error), 300, placeholder=" …")
            raise ExportError(
                f"what was written must take any number of inputs; found that the {tower} encoder refuses {count}: {reason}. "
                "The model's own code makes their number a constant; use torch.compile on the model that mope.fold returns."
            ) from error
        exact = expected.dtype in {torch.float32, torch.float64}
        deviation = float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
        if not deviation <= (_TOLERANCE if exact else _COARSE):
            raise ExportError(
                f"what was written must embed as the model does; found embeddings of the {tower} encoder that differ by "
                f"{deviation:.1e} of the largest for {count} inputs. Nothing was put in place; please report it."
            )
