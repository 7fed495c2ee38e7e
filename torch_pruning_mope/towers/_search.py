"""Units of layers of unknown types, found by their structure and tried before they are trusted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from .._state import evaluation_mode, kept_modules
from ..surgery import FusedLinear, Parts, PrunableAttention, attach, masking_is_removal, seal, share
from ._discover import discover, element_of
from ._inner import inner_neurons
from ._names import Named, named_units
from ._opaque import OpaqueTower
from ._prunable import Channels

Graph = Callable[[], tuple[tp.DependencyGraph, list[Any], list[nn.Module]]]
"""Builds the dependency graph of the model, with all its groups and the layers whose channels cannot be cut."""
_TOLERANCE = 1e-3
"""Of the change that a unit makes, for a cut to be the same as a mask: far below what another unit would change."""


class Search:
    """Mutates a model: finds the units of the layers that no handler knows."""

    def __init__(self, model: nn.Module, towers: list[OpaqueTower], graph: Graph) -> None:
        self._model, self._towers, self._graph = model, towers, graph
        self._undo: list[Callable[[], None]] = []
        self.problems: dict[str, str] = {}

    @property
    def found(self) -> bool:
        """True if anything was found."""
        return bool(self._undo)

    def run(self) -> None:
        """Finds, tries and notes the units; undoes all of it if something fails."""
        try:
            for tower in self._towers:
                if is_unknown(tower):
                    self._search(tower)
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Leaves the model as it was."""
        while self._undo:
            self._undo.pop()()

    def _search(self, tower: OpaqueTower) -> None:
        prefix = _name_of(self._model, tower.root)
        tried: dict[str, tuple[Parts, Callable[[], None]]] = {}
        ways: dict[str, list[Named]] = {}
        heads, by_name = set[str](), set[nn.Module]()
        own = tower.own_modules()
        for named in named_units(tower.root):
            if any(tower.root.get_submodule(each) not in own for each in named.inputs):
                continue  # of the other encoder, or cross-attention in one that is run without
            name = f"{prefix}.{named.owner}" if prefix else named.owner
            if _is_covered(tower.root, named):
                continue
            if named.kind == "head":
                heads.add(name)
                by_name |= {tower.root.get_submodule(each) for each in named.inputs}
            if named.problem:
                self.problems[name] = named.problem
                if named.output:
                    layers = [tower.root.get_submodule(each) for each in (*named.inputs, named.output)]
                    self._undo.append(seal(tower.root.get_submodule(named.owner), layers[:-1], layers[-1]))
            else:
                first, *others = [replace(named, counts=(way,)) for way in named.counts]
                tried[name], ways[name] = self._show(tower.root, first), others
        while True:
            graph, groups, firm = self._graph()
            bad = self._try_all(tower, graph, {name: parts for name, (parts, _) in tried.items()})
            if not bad:
                break
            for name, reason in bad.items():
                tried.pop(name)[1]()
                if ways[name]:
                    tried[name] = self._show(tower.root, ways[name].pop(0))
                elif name in heads:  # of others it was a guess
                    self.problems[name] = reason
        inner = list(inner_neurons(tower.root, own, groups, set(firm), _covered(tower.root) | by_name))
        named_inner = {
            f"{prefix}.{owner} {place}" if prefix else f"{owner} {place}": (owner, parts)
            for place, (owner, parts) in enumerate(inner)
        }
        bad = self._try_all(tower, graph, {name: parts for name, (_, parts) in named_inner.items()})
        for name, (owner, parts) in named_inner.items():
            if name in bad:
                self.problems[name.rpartition(" ")[0]] = bad[name]
            else:
                self._undo.append(attach(tower.root.get_submodule(owner), parts))

    def _show(self, root: nn.Module, named: Named) -> tuple[Parts, Callable[[], None]]:
        """Takes fused layers apart and shows the tracer what goes together."""
        undo: list[Callable[[], None]] = []
        sources: list[nn.Module] = [root.get_submodule(name) for name in named.inputs]
        if len(sources) == 1:
            letters = ("q", "k", "v") if named.kind == "head" else ("first", "second")
            fused = FusedLinear(sources[0], letters)  # type: ignore[arg-type]
            undo.append(_exchanged(root, named.inputs[0], fused))
            sources = list(fused.parts)
        output: Any = root.get_submodule(named.output)
        size = 1 if named.units is None else output.in_features // named.units
        if named.kind == "head" and (sharing := output.in_features // sources[-1].out_features) > 1:
            undo += [share(source, sharing, size // sharing) for source in sources[1:]]
        (counts,) = named.counts
        counted = root.get_submodule(named.counted) if counts else None
        parts = Parts(named.kind, tuple(sources), output, size, counted, counts, shown=True)
        undo.append(attach(root.get_submodule(named.owner), parts))

        def back() -> None:
            while undo:
                undo.pop()()

        self._undo.append(back)
        return parts, back

    def _try_all(self, tower: OpaqueTower, graph: tp.DependencyGraph, tried: dict[str, Parts]) -> dict[str, str]:
        """Why some cannot be pruned; those of the same kind of module fail and hold together."""
        if any(parameter.is_meta for parameter in self._model.parameters()):
            return {}
        whole: Tensor | None = None
        known: dict[Any, str] = {}
        for name, parts in tried.items():
            key = _like(self._model, name, parts)
            if key not in known:
                whole = _embedded(tower) if whole is None else whole
                known[key] = self._trial(tower, graph, parts, whole)
        reasons = {name: known[_like(self._model, name, parts)] for name, parts in tried.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    def _trial(self, tower: OpaqueTower, graph: tp.DependencyGraph, parts: Parts, whole: Tensor) -> str:
        """Cuts a unit out and puts it back; the reason if the model fails without, or computes something else."""
        output: Any = parts.output
        channels = list(range(parts.unit_size))
        units = Channels(parts.sources, output, parts.unit_size)
        pruner = graph.get_pruner_of_module(output)
        try:
            with kept_modules(self._model):
                with torch.inference_mode(False):
                    group = graph.get_pruning_group(output, pruner.prune_in_channels, channels)
                    exact = masking_is_removal(graph, output)
                    mask = units.mask(channels)
                    group.prune(record_history=False)
                cut = _embedded(tower)
        except Exception as error:  # noqa: BLE001 (the model's own code, run with a layer it may not expect)
            return f"its code does not run without one: {str(error).splitlines()[0][:100]}"
        if not torch.isfinite(cut).all():
            return "its embeddings are not finite without one"
        if not exact:
            return ""
        handle = output.register_forward_pre_hook(lambda _, args: (args[0] * mask, *args[1:]))
        try:
            masked = _embedded(tower)
        finally:
            handle.remove()
        change, difference = float((masked - whole).abs().max()), float((cut - masked).abs().max())
        noise = 100 * torch.finfo(whole.dtype).eps * float(whole.abs().max())
        return "" if difference <= _TOLERANCE * change + noise else "cutting one out is not the same as masking it"


def is_unknown(tower: OpaqueTower) -> bool:
    """Returns whether an encoder has attention or layers of which no handler knows the units."""
    root = tower.root
    layers = discover(root)
    if not layers or any(not _is_covered(root, named) for named in named_units(root)):
        return True
    modules = dict(root.named_modules())
    known = {layer.module for layer in layers if any(kind == "neurons" for kind, _ in layer.found)}
    elements = {element_of(name, modules) for name, module in modules.items() if isinstance(module, nn.Linear)}
    covered = _covered(root)
    return any(
        modules[element] not in known
        and sum(isinstance(part, nn.Linear) and part not in covered for part in modules[element].modules()) > 1
        for element in elements
        if element
    )


def _covered(root: nn.Module) -> set[nn.Module]:
    """Layers around units that are known, and all that prunable attention holds."""
    found = {
        module for layer in discover(root) for _, units in layer.found for module in (*units.sources, units.output)
    }
    attentions = (module for module in root.modules() if isinstance(module, PrunableAttention))
    return found | {module for attention in attentions for module in attention.modules()}


def _is_covered(root: nn.Module, named: Named) -> bool:
    covered = _covered(root)
    return any(root.get_submodule(name) in covered for name in named.inputs)


def _like(model: nn.Module, name: str, parts: Parts) -> Any:
    """The key of units of the same kind: the types of their module and of its children."""
    owner = model.get_submodule(name.partition(" ")[0])
    kinds = tuple(type(module) for module in owner.children())
    return type(owner), kinds, parts.kind, parts.unit_size, len(parts.sources), type(parts.output)


def _embedded(tower: OpaqueTower) -> Tensor:
    """Embeddings of two inputs that differ in all places."""
    with torch.inference_mode(False), torch.no_grad(), evaluation_mode(tower.root):
        found: Tensor = tower.encode(tower.examples(2))
    return found


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(str(name) for name, module in model.named_modules() if module is wanted)


def _exchanged(root: nn.Module, name: str, module: nn.Module) -> Callable[[], None]:
    """Puts a module in the place of another."""
    parent, _, child = name.rpartition(".")
    holder, before = root.get_submodule(parent), root.get_submodule(name)
    setattr(holder, child, module)
    return lambda: setattr(holder, child, before)


@contextmanager
def searching(search: Search) -> Iterator[None]:
    """Undoes a search if what follows fails."""
    try:
        yield
    except BaseException:
        search.undo()
        raise
