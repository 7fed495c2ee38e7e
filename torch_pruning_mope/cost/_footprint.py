"""Size of a model's towers and of what goes with a unit: parameters, multiply-adds, seconds."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from .._state import evaluation_mode, synchronise
from ..encoder import EncoderCore, TowerName
from ..surgery import reached_leaves
from ..towers import Unit
from ._multiply_adds import count_multiply_adds, multiply_adds_between


def median_seconds(
    function: Callable[[], object], device: torch.device, *, repeats: int = 15, warm_up: int = 2
) -> float:
    """Median seconds of a call, all work of the device included, after some calls that are not timed."""
    times = []
    for _ in range(warm_up + repeats):
        synchronise(device)
        began = time.perf_counter()
        function()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[warm_up:])


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


def freed_parameters(encoder: EncoderCore, unit: Unit) -> int:
    """Parameters that go with a unit when it is cut out of the whole model."""
    # Biases of output linears go with no head and no neuron, and norms with their block alone.
    if unit.kind == "block":
        return _count(encoder.towers[unit.tower].blocks[unit.layer].module)
    units = encoder.sublayer(unit.tower, unit.layer, unit.part)
    if units is None:
        raise ValueError(f"unit must be of the model as it is now; found {unit}, which it has not.")
    # All parameters of the layers around belong to the units, to each as many as to any other of its kind.
    inner = sum(_count(source) for source in units.sources)
    return (inner + units.output.weight.numel()) * len(unit.channels) // units.channels


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def freed_multiply_adds(encoder: EncoderCore, whole: Mapping[TowerName, Footprint]) -> Callable[[Unit], float]:
    """Multiply-adds of one input that go with a unit cut out of the whole model; measured in one run of each tower."""
    spans: dict[tuple[str, int, str], tuple[Sequence[nn.Module], nn.Module]] = {
        (layer.tower, layer.index, "block"): ((layer.block.module,), layer.block.module) for layer in encoder.layers
    }
    spans |= {place: (units.sources, units.output) for place, units in encoder.sublayers.items()}
    inputs = encoder.example_inputs
    with torch.no_grad(), evaluation_mode(encoder.model):
        measured = multiply_adds_between(
            lambda: [encoder.embed("image", inputs["images"]), encoder.embed("text", inputs["tokens"])], spans
        )

    def freed(unit: Unit) -> float:
        found = measured.get((unit.tower, unit.layer, unit.part))
        if not found:  # its layers are not called as modules
            size = whole[unit.tower]
            return freed_parameters(encoder, unit) * size.multiply_adds / size.parameters
        units = None if unit.kind == "block" else encoder.sublayer(unit.tower, unit.layer, unit.part)
        return float(found) if units is None else found * len(unit.channels) / units.channels

    return freed
