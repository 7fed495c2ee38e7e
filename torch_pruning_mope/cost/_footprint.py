"""Sizes of a model's towers: parameters, multiply-adds, seconds."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from .._state import evaluation_mode
from ..encoder import EncoderCore, TowerName
from ..surgery import reached_leaves
from ._multiply_adds import count_multiply_adds
from ._timer import median_seconds

TOWERS: tuple[TowerName, ...] = ("image", "text")


@dataclass(frozen=True)
class Footprint:
    """Size of one tower.

    Attributes:
        parameters: Parameters that its embedding depends on, but for the token embedding.
        token_embedding: Parameters of the token embedding, which grows with the vocabulary; no pruning of units touches it.
        multiply_adds: Of matrix products, convolutions and attention, for one input of full length.
    """

    parameters: int
    token_embedding: int
    multiply_adds: int


def footprints(encoder: EncoderCore) -> dict[TowerName, Footprint]:
    """Size of each tower. The model is left as it is, and may be on the ``meta`` device."""
    found: dict[TowerName, Footprint] = {}
    with evaluation_mode(encoder.model):
        for name, example in _examples(encoder).items():
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
    """Median seconds of each tower on its own device, for ``batch_size`` inputs of full length; the model is left as it is."""
    found: dict[TowerName, float] = {}
    with evaluation_mode(encoder.model):
        for tower, example in _examples(encoder).items():
            inputs = example.expand(batch_size, *example.shape[1:]).contiguous()
            found[tower] = median_seconds(partial(encoder.embed, tower, inputs), encoder.device, repeats=repeats)
    return found


def _examples(encoder: EncoderCore) -> dict[TowerName, torch.Tensor]:
    inputs = encoder.example_inputs
    return {"image": inputs["images"], "text": inputs["tokens"]}
