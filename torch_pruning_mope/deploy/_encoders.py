"""Encoders as modules of their own for exporters, and random inputs to check the written files."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..encoder import EncoderCore, TowerName
from ..surgery import reached_leaves
from ._fold import FoldedClip, folded_encoder


class Encoder(nn.Module):
    """One encoder of a dual encoder: inputs to embeddings, not normalised."""

    def __init__(self, model: nn.Module, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._encode = encode

    def forward(self, inputs: Tensor) -> Tensor:
        """Images ``[N, C, R, R]`` or token ids ``[N, T]`` to ``[N, J]``."""
        return self._encode(inputs)


def deployed_encoders(encoder: EncoderCore) -> dict[TowerName, Encoder]:
    """Each encoder of a model in deployment form, on the CPU."""
    encoder.check_has_weights()
    folded = folded_encoder(EncoderCore(copy.deepcopy(encoder.model).eval().cpu()))
    model = folded.model
    text = model.encode_text if isinstance(model, FoldedClip) else lambda tokens: folded.embed("text", tokens)
    return {"image": Encoder(model, lambda images: folded.embed("image", images)), "text": Encoder(model, text)}


def some_inputs(encoder: EncoderCore, tower: TowerName, count: int, seed: int = 0) -> Tensor:
    """Random inputs, on the CPU: noise, or ids of which the highest ends a caption and zeros follow."""
    generator = torch.Generator().manual_seed(seed)
    if tower == "image":
        example = encoder.example_inputs["images"]
        return torch.randn(count, *example.shape[1:], generator=generator).to(example.dtype)
    length = encoder.example_inputs["tokens"].shape[1]
    words = vocabulary(encoder)
    tokens = torch.randint(2, words - 1, (count, length), generator=generator)
    for row, ids in enumerate(tokens):
        end = length - 1 - row * (length // 2) // max(1, count - 1)
        ids[end], ids[end + 1 :] = words - 1, 0
    return tokens


def vocabulary(encoder: EncoderCore) -> int:
    """Number of token ids of the text encoder."""
    inputs = encoder.example_inputs["tokens"]
    used = reached_leaves(encoder.model, lambda: [encoder.embed("text", inputs)])
    tables = [
        module for module in encoder.model.modules() if isinstance(module, nn.Embedding) and module.weight in used
    ]
    return max(table.num_embeddings for table in tables)


class _Recorder(TorchFunctionMode):
    """Records the parameters that functions are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.used: set[nn.Parameter] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = tree_leaves((args, kwargs))
        self.used |= {leaf for leaf in found if isinstance(leaf, nn.Parameter)}
        return func(*args, **(kwargs or {}))


@contextmanager
def weights_of_one(encoder: Encoder, inputs: Tensor) -> Iterator[None]:
    """Inside, weights that the encoder does not use take no space."""
    with torch.no_grad(), _Recorder() as recorder:  # not what the output depends on: what leads nowhere is run as well
        encoder(inputs)
    used = recorder.used
    rest = {parameter: parameter.data for parameter in encoder.parameters() if parameter not in used}
    try:
        for parameter in rest:
            parameter.data = parameter.data.new_empty(0)
        yield
    finally:
        for parameter, data in rest.items():
            parameter.data = data
