"""Models of this package in CLIP_benchmark, which takes open_clip's alone.

    python -m torch_pruning_mope.evaluation.clip_benchmark eval --model_type mope --model run/pruned --pretrained "" \
        --dataset flickr30k --recall_k 1 5 10 --no_amp --output flickr30k.json

is `clip_benchmark eval` with another model type. `--model` is any name of `load_model`, or the folder of a checkpoint.

Traps of CLIP_benchmark 1.6: without `--no_amp` it embeds in bfloat16 on a CPU, where similarities are often equal, and
of equal ones its sort lets some pass; of shards (`wds/...`) it has to be told `--task zeroshot_retrieval`; its accuracy of
classification fails with NumPy 2.4 or newer; and its command line needs `requests`, which it does not ask for.
"""

import importlib
from typing import Any

import torch

from ._open_clip import OpenClipModel

MODEL_TYPE = "mope"


def load_mope(
    model_name: str, pretrained: str = "", cache_dir: str | None = None, device: str | torch.device = "cpu"
) -> tuple[OpenClipModel, Any, Any]:
    """Loads a model as CLIP_benchmark's loaders do."""
    from ..checkpoint import load_model

    if pretrained not in {"", MODEL_TYPE}:
        raise ValueError(f"pretrained must be empty, because the model's name says it all; found {pretrained!r}.")
    loaded = load_model(model_name, device=device, cache_dir=cache_dir)
    return OpenClipModel(loaded.model).eval(), loaded.preprocess, loaded.tokenizer


def register() -> None:
    """Adds the model type ``mope`` to CLIP_benchmark; doing so again is harmless."""
    try:
        models = importlib.import_module("clip_benchmark.models")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"CLIP_benchmark must be installed; found {error.name} missing. pip install clip_benchmark"
        ) from error
    models.TYPE2FUNC[MODEL_TYPE] = load_mope
    if MODEL_TYPE not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(MODEL_TYPE)  # its command line holds this very list


def main() -> None:
    """Runs CLIP_benchmark's command line, with the model type ``mope``."""
    register()
    importlib.import_module("clip_benchmark.cli").main()


if __name__ == "__main__":
    main()
