"""Finds the towers of a dual encoder and what can be pruned of them."""

from dataclasses import replace
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from .._state import evaluation_mode, exclusive
from ..errors import MopeError, UnsupportedModelError
from ..surgery import build_graph, uncuttable
from ._graph import GraphMixin
from ._layer import Layer, TowerName
from ._opaque import OpaqueTower
from ._registry import Towers
from ._search import Search, searching
from ._structure import towers_of
from ._take_apart import take_apart
from ._tower import BlockTower


class FindMixin(GraphMixin):
    """Adds the towers to a dual encoder, as they are found when it is wrapped."""

    _pending = False
    _in_one: dict[str, str]

    @property
    def towers(self) -> dict[TowerName, BlockTower]:
        """The towers by name: ``image``, ``text``, and ``decoder`` if there is one (CoCa)."""
        if self._pending and not any(parameter.is_meta for parameter in self.model.parameters()):
            self._take_apart()
        towers: dict[TowerName, BlockTower] = {"image": self._towers.image, "text": self._towers.text}
        return towers if self._towers.decoder is None else towers | {"decoder": self._towers.decoder}

    @property
    def layers(self) -> list[Layer]:
        """All blocks of both towers, the image tower's first, as they are now."""
        return [Layer(name, i, block) for name, tower in self.towers.items() for i, block in enumerate(tower.blocks)]

    def _find(self) -> None:
        """Finds the units of both towers; leaves one of them whole if Torch-Pruning cannot trace it."""
        self._untraced = {}
        before = dict(self.unprunable)
        try:
            self._find_units()
        except MopeError:
            raise
        except Exception:
            if not self._leave_out() or not isinstance(getattr(self._towers, next(iter(self._untraced))), OpaqueTower):
                raise
            self.unprunable = before
            self._find_units()
        self._check_apart()

    def _find_units(self) -> None:
        """Finds the units of both towers, by structure where no handler knows the layers."""
        self._towers = self._new_towers()
        opaque = [tower for tower in (self._towers.image, self._towers.text) if isinstance(tower, OpaqueTower)]

        def graph() -> tuple[tp.DependencyGraph, list[Any], list[nn.Module]]:
            found, groups = self.checked_graph()
            return found, groups, uncuttable(found, groups)

        search = Search(self.model, [tower for tower in opaque if not tower.stays], graph)
        with searching(search):
            search.run()
            self.unprunable |= search.problems
            if search.found:
                self._towers = self._new_towers()
            bare = [tower for tower in opaque if not tower.blocks]
            for tower in bare:
                name = next(name for name, module in self.model.named_modules() if module is tower.root)
                reason = "it has no layers of known types and none with channels of its own"
                self.unprunable[name] = next(iter(self._untraced.values())) if tower.stays else reason
            if len(bare) == 2:
                raise UnsupportedModelError(
                    "a dual encoder must have layers of known types, or channels that can be cut, in one of its towers; found "
                    f"neither in {type(self.model).__qualname__}. {self.unprunable} Register its layers with "
                    "torch_pruning_mope.register_channels."
                )

    def _leave_out(self) -> bool:
        """Notes the towers that Torch-Pruning cannot trace, each tried alone; returns whether there is one, and another."""
        names: tuple[TowerName, ...] = ("image", "text")
        found: dict[TowerName, str] = {}
        for tower in self.towers.values():
            if isinstance(tower, OpaqueTower):
                with torch.no_grad(), evaluation_mode(tower.root):
                    tower.run()  # raises what is wrong with the encoder itself
        for name, other in zip(names, reversed(names), strict=True):
            self._untraced = {other: ""}
            try:
                build_graph(self.model, **self.graph_arguments())
            except Exception as error:  # noqa: BLE001 (Torch-Pruning's own, of whatever it does not know)
                found[name] = f"Torch-Pruning cannot follow its channels ({type(error).__name__}: {str(error)[:100]})"
        self._untraced = found
        return len(found) == 1

    def _new_towers(self) -> Towers:
        towers = towers_of(self.model)
        for name in self._untraced:
            tower = getattr(towers, name)
            if isinstance(tower, OpaqueTower):
                tower.stays = True
        return towers

    def _take_apart(self) -> None:
        """Encoders that are run by their own code, in parts where these make up the whole; once there are weights."""
        self._pending = any(parameter.is_meta for parameter in self.model.parameters())
        self._in_one = {}
        if self._pending:
            return
        changed: dict[str, BlockTower] = {}
        for name in ("image", "text"):
            tower = getattr(self._towers, name)
            if type(tower) is OpaqueTower and tower.blocks:
                with exclusive(self.model):
                    found = take_apart(tower)
                if isinstance(found, str):
                    self._in_one[name] = found
                else:
                    changed[name] = found
        self._towers = replace(self._towers, **changed)  # type: ignore[arg-type]

    def _check_apart(self) -> None:
        """Raises if towers share layers whose units could go: each unit would be counted and scored once for either."""
        owners: dict[nn.Module, set[str]] = {}
        for layer in self.layers:
            for units in layer.block.prunables:
                for module in (*units.sources, units.output):
                    owners.setdefault(module, set()).add(layer.tower)
        names = [name for name, module in self.model.named_modules() if len(owners.get(module, ())) > 1]
        if names:
            raise UnsupportedModelError(
                f"towers must have layers of their own; found {names[:5]} ({len(names)} in all) in several. Give each tower a "
                "copy of them (copy.deepcopy)."
            )
