"""What a model takes: parameters, multiply-adds, time."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from .._flops import count_multiply_adds
from .._state import evaluation_mode, synchronise
from ..encoder import EncoderCore, TowerName
from ..surgery import reached_leaves

TOWERS: tuple[TowerName, ...] = ("image", "text")


@dataclass(frozen=True)
class Footprint:
    """What one tower takes.

    Attributes:
        parameters: What its embedding depends on, but for the token embedding.
        token_embedding: Parameters of that; it grows with the vocabulary and no pruning of units touches it.
        multiply_adds: Of matrix products, convolutions and attention, for one input of full length.
    """

    parameters: int
    token_embedding: int
    multiply_adds: int


def footprints(encoder: EncoderCore) -> dict[TowerName, Footprint]:
    """What each tower takes.

    Args:
        encoder: The dual encoder; left as it is. It may be on the ``meta`` device.

    Returns:
        A footprint per tower.
    """
    inputs = encoder.example_inputs
    found: dict[TowerName, Footprint] = {}
    with evaluation_mode(encoder.model):
        for tower, example in (("image", inputs["images"]), ("text", inputs["tokens"])):
            name: TowerName = "image" if tower == "image" else "text"
            macs, used = _counted(encoder, name, example)
            words = _token_embedding(encoder.model, used) if name == "text" else set()
            total = sum(parameter.numel() for parameter in used)
            table = sum(parameter.numel() for parameter in words)
            found[name] = Footprint(total - table, table, macs)
    return found


def _counted(encoder: EncoderCore, tower: TowerName, example: torch.Tensor) -> tuple[int, set[nn.Parameter]]:
    """Multiply-adds of a tower, and the parameters that its embedding depends on, from one run."""
    macs, outputs = 0, []

    def run() -> list[torch.Tensor]:
        nonlocal macs
        macs = count_multiply_adds(lambda: outputs.append(encoder.embed(tower, example)))
        return outputs

    used = reached_leaves(encoder.model, run)
    return macs, used


def _token_embedding(model: nn.Module, used: set[nn.Parameter]) -> set[nn.Parameter]:
    """The largest embedding among some parameters: that of the vocabulary."""
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding) and module.weight in used]
    return set(max(modules, key=lambda module: module.num_embeddings).parameters()) if modules else set()


@torch.inference_mode()
def latencies(encoder: EncoderCore, *, batch_size: int = 1, repeats: int = 15) -> dict[TowerName, float]:
    """Median seconds of each tower on its own device, on inputs of full length.

    Args:
        encoder: The dual encoder; left as it is.
        batch_size: Inputs at once.
        repeats: How often each is timed, after two runs that are not.

    Returns:
        Seconds per tower.
    """
    examples: Mapping[str, torch.Tensor] = encoder.example_inputs
    found: dict[TowerName, float] = {}
    with evaluation_mode(encoder.model):
        for name, key in (("image", "images"), ("text", "tokens")):
            tower: TowerName = "image" if name == "image" else "text"
            inputs = examples[key].expand(batch_size, *examples[key].shape[1:]).contiguous()
            times = []
            for _ in range(repeats + 2):
                synchronise(encoder.device)
                began = time.perf_counter()
                encoder.embed(tower, inputs)
                synchronise(encoder.device)
                times.append(time.perf_counter() - began)
            found[tower] = statistics.median(times[2:])
    return found
