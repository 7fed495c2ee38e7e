"""A tower that is run by the model's own code."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from .._state import evaluation_mode, hooked, without_tables
from ..errors import UnsupportedModelError
from ..surgery import PrunableAttention
from ._discover import FoundLayer, discover
from ._look import called_modules, common_root, first_tensor, in_chain, summed_dimensions, vocabulary_of
from ._tower import Block, BlockTower


@dataclass
class _Call:
    """A layer's call, as seen in a run.

    Attributes:
        place: Its place among the layers, by their first call.
        count: How often it is called.
        residual: Whether what comes out has the shape of what goes in, and no other layer is inside.
    """

    place: int
    count: int = 0
    residual: bool = True


class OpaqueTower(BlockTower):
    """One encoder of a dual encoder, run by the model's own code and known by the types of its modules."""

    stays = False
    """True if it is left whole, whatever layers it has."""

    def __init__(
        self,
        root: nn.Module,
        encode: Callable[[Tensor], Tensor],
        example: Callable[[], Tensor],
        *,
        dimensions: dict[str, int] | None = None,
        more_parameters: Callable[[], Sequence[tuple[nn.Parameter, int]]] = lambda: (),
        fixed: Callable[[nn.Module], bool] = lambda _: False,
        check: Callable[[Tensor], None] = lambda _: None,
        within: bool = False,
    ) -> None:
        self._root, self._within = root, within
        self.encode = encode
        self._example = example
        self._dimensions = dimensions or {}
        self._more_parameters = more_parameters
        self._fixed = fixed
        self._check = check
        self._seen: tuple[object, dict[nn.Module, _Call]] = (None, {})
        self._ran: dict[nn.Module, int] = {}
        self._chain: tuple[list[nn.Module], bool] = ([], True)
        self._summed: dict[str, int] | None = None
        self._vocabulary: int | None = None

    @property
    def root(self) -> nn.Module:
        """The module that holds the encoder."""
        if self._within:
            self._root, self._within = common_root(self._root, self.run), False
        return self._root

    def own_modules(self) -> set[nn.Module]:
        """Modules with parameters of their own that the encoder runs; ``root`` may hold those of the other one too."""
        return {self.root.get_submodule(name) for name in called_modules(self.root, self.run)}

    def check_inputs(self, inputs: Tensor) -> None:
        """As given."""
        self._check(inputs)

    def check_output(self, output: Any) -> None:
        """Raises where an encoder returns something else than one embedding for each input."""
        if not isinstance(output, Tensor) or output.ndim != 2:
            found = f"shape {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise UnsupportedModelError(
                f"an encoder must return one embedding for each input, a tensor [N, J]; found {found} for one input. Have it "
                "pool its tokens, or register a factory of towers whose encode_image and encode_text do."
            )

    @property
    def blocks(self) -> Sequence[Block]:
        """The layers in the order in which they run; one with several kinds of neurons counts as several blocks."""
        return [block for layer, call in self._layers() for block in self._blocks(layer, call)]

    @property
    def in_order(self) -> bool:
        """True if each layer runs once, so that a run can be resumed between layers."""
        return all(call.count == 1 for _, call in self._layers())

    @property
    def in_chain(self) -> bool:
        """True if, besides, a layer's output is of no use behind the next layer."""
        modules = list(dict.fromkeys(layer.module for layer, _ in self._layers()))
        if self._chain[0] != modules:
            self._chain = (modules, self.in_order and in_chain(self.root, modules, self.run))
        return self._chain[1]

    def begins(self, block: Block, part: str) -> int:
        """Place of the first layer that runs otherwise once units of a block have gone, or all of it."""
        self._layers()
        units = block.attention if part == "head" else block.feed_forward
        if part != "block" and units is not None and units.output in self._ran:
            return self._ran[units.output]
        inside = set(block.module.modules())
        return min(call.place for module, call in self._seen[1].items() if module in inside)

    @property
    def streams(self) -> Sequence[nn.Module]:
        """For each list of layers, the output of its first."""
        outputs: dict[int, nn.Module] = {}
        for layer, _ in self._layers():
            inner = {source for _, units in layer.found for source in units.sources}
            ends = [units.output for _, units in layer.found if units.output not in inner]
            if layer.siblings is not None and ends:
                outputs.setdefault(id(layer.siblings), ends[-1])
        return list(outputs.values())

    @property
    def joint_parameters(self) -> Sequence[tuple[nn.Parameter, int]]:
        """All parameters of no layer that Torch-Pruning knows, unless they are left alone."""
        attentions = (module for module in self.root.modules() if isinstance(module, PrunableAttention))
        alone = {id(parameter) for attention in attentions for parameter in attention.left_alone()}
        bare = {name: parameter for name, parameter in _bare_parameters(self.root) if id(parameter) not in alone}
        if self._summed is None:
            unknown = {name: each for name, each in bare.items() if each.ndim == 2 and name not in self._dimensions}
            with without_tables(self.root):
                self._summed = summed_dimensions(unknown, self.run) if unknown else {}
        dimensions = self._summed | self._dimensions
        found = [(parameter, dimensions.get(name, _last(parameter))) for name, parameter in bare.items()]
        return found + list(self._more_parameters())

    def run(self) -> Any:
        """Embeds the example."""
        return self.encode(self._example())

    def examples(self, count: int) -> Tensor:
        """Inputs that differ: noise, or token ids of the vocabulary, of which some end with what is often padding."""
        example = self._example()
        shape = (count, *example.shape[1:])
        generator = torch.Generator().manual_seed(0)
        if example.is_floating_point():
            return torch.randn(shape, generator=generator).to(example)
        if self._vocabulary is None:
            self._vocabulary = vocabulary_of(self.root, self.run, example)
        tokens = torch.randint(min(2, self._vocabulary - 1), self._vocabulary, shape, generator=generator)
        for row, padding in zip(range(1, count), (0, 1), strict=False):
            tokens[row, (shape[1] + 1) // 2 :] = padding
        return tokens.to(example)

    def _blocks(self, layer: FoundLayer, call: _Call) -> Iterator[Block]:
        siblings = layer.siblings if call.residual and not self._fixed(layer.module) else None
        heads = [units for kind, units in layer.found if kind == "head"]
        neurons = [units for kind, units in layer.found if kind == "neurons"]
        for place in range(max(len(heads), len(neurons))):
            yield Block(
                layer.module,
                heads[place] if place < len(heads) else None,
                neurons[place] if place < len(neurons) else None,
                siblings,
            )

    def _layers(self) -> list[tuple[FoundLayer, _Call]]:
        """The layers that run, in order."""
        found = [] if self.stays else discover(self.root)
        key = tuple(id(layer.module) for layer in found)
        if self._seen[0] != key:
            self._seen = (key, self._watch(found))
        calls = self._seen[1]
        ran = [(layer, calls[layer.module]) for layer in found if layer.module in calls]
        return sorted(ran, key=lambda entry: entry[1].place)

    def _watch(self, layers: Sequence[FoundLayer]) -> dict[nn.Module, _Call]:
        """Runs the encoder once and watches its layers, and between which of their ends the units' outputs run."""
        calls: dict[nn.Module, _Call] = {}
        self._ran = {}

        def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            call = calls.setdefault(module, _Call(len(calls)))
            call.count += 1
            call.residual &= first_tensor((args, kwargs)).shape == first_tensor(output).shape

        def begun(module: nn.Module, *_: Any) -> None:
            self._ran.setdefault(module, len(calls))

        outputs = {units.output for layer in layers for _, units in layer.found}
        with (
            torch.no_grad(),
            evaluation_mode(self.root),
            hooked(outputs, begun, before=True),
            hooked([layer.module for layer in layers], called),
        ):
            output = self.run()
        self.check_output(output)
        for module, call in calls.items():
            call.residual &= calls.keys() & set(module.modules()) == {module}
        return calls


_WHOLE = (
    tp.ops.TORCH_CONV,
    nn.Linear,
    nn.Embedding,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.PReLU,
)
"""Layers whose parameters Torch-Pruning handles."""


def _bare_parameters(root: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of no layer that Torch-Pruning knows."""
    for prefix, module in root.named_modules():
        if not isinstance(module, _WHOLE):
            for name, parameter in module.named_parameters(recurse=False):
                yield f"{prefix}.{name}" if prefix else name, parameter


def _last(parameter: nn.Parameter) -> int:
    """The last dimension but for those of a single place, which follow the channels of maps."""
    return max((dim for dim, size in enumerate(parameter.shape) if size > 1), default=0)
