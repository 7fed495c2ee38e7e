"""The core of a dual encoder made prunable: towers, embeddings, counts, the dependency graph. Everything above uses it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch_pruning as tp
from jaxtyping import Float
from torch import Tensor, nn

from ._state import exclusive
from .errors import MopeError, NonFiniteError, UnsupportedModelError
from .surgery import (
    exchange,
    prunable_attention,
    uncuttable,
)
from .towers import (
    BlockTower,
    Counts,
    GraphMixin,
    Layer,
    OpaqueTower,
    Part,
    Prunable,
    Search,
    TowerName,
    Towers,
    TwoEncoders,
    searching,
    summary,
    take_apart,
    towers_of,
)

__all__ = ["EncoderCore", "TowerName"]
EncoderT = TypeVar("EncoderT", bound="EncoderCore")


class EncoderCore(GraphMixin):
    """A dual encoder with what everything else needs; see :class:`torch_pruning_mope.DualEncoder`, which adds the rest."""

    _pending = False
    _in_one: dict[str, str]
    origin: Any = None
    """The base of the model before pruning, if it came from a checkpoint."""

    def __init__(self, model: nn.Module) -> None:
        towers_of(model)  # raises with what is known, before anything is touched
        _check_weights(model)
        self.model: Any = model
        with exclusive(model):
            swapped, self.unprunable = prunable_attention(model)
            before = exchange(model, swapped)
            try:
                self._find()
                self._check_apart()
                self._original = self._unit_counts()
                self._take_apart()
            except BaseException:
                exchange(model, before)
                raise
        self.numbered = {name: [block.module for block in tower.blocks] for name, tower in self.towers.items()}

    @classmethod
    def of(
        cls: type[EncoderT],
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        *,
        image_size: int | tuple[int, int],
        context_length: int,
    ) -> EncoderT:
        """Mutates two encoders, as wrapping does: a dual encoder of modules given apart.

        Args:
            image_encoder: Images ``[N, 3, R, R]`` to embeddings ``[N, J]``, or to an output that has a ``pooler_output``.
            text_encoder: Token ids ``[N, T]`` to embeddings likewise. A text model of transformers is given the attention
                mask of its padding id as well.
            image_size: ``R``, or height and width.
            context_length: ``T``, of a caption at its longest.

        Returns:
            The dual encoder; its ``model`` has ``encode_image`` and ``encode_text``.
        """
        return cls(TwoEncoders(image_encoder, text_encoder, image_size=image_size, context_length=context_length))

    def __repr__(self) -> str:
        """Each tower's layers, heads and neurons, and what stays and why."""
        return summary(
            f"{type(self).__name__} of {type(self.model).__name__}", self.towers, self.unprunable, self._in_one
        )

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the towers, whose functions may be closures over the model."""
        return {name: value for name, value in vars(self).items() if name != "_towers"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Towers are made anew for the model that came along, so that a copy computes with its own weights."""
        vars(self).update(state)
        self._towers = self._new_towers()
        self._take_apart()

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

    def _new_towers(self) -> Towers:
        towers = towers_of(self.model)
        for name in self._untraced:
            tower = getattr(towers, name)
            if isinstance(tower, OpaqueTower):
                tower.stays = True
        return towers

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

    @property
    def image(self) -> BlockTower:
        """The image tower."""
        return self.towers["image"]

    @property
    def text(self) -> BlockTower:
        """The text tower."""
        return self.towers["text"]

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

    def sublayer(self, tower: TowerName, layer: int, part: Part) -> Prunable | None:
        """The attention of a block for ``head``, its MLP for ``neurons``."""
        block = self.towers[tower].blocks[layer]
        return block.attention if part == "head" else block.feed_forward

    @property
    def sublayers(self) -> dict[tuple[TowerName, int, Part], Prunable]:
        """All that have units left, by tower, layer and part."""
        found: dict[tuple[TowerName, int, Part], Prunable] = {}
        for layer in self.layers:
            for part, units in (("head", layer.block.attention), ("neurons", layer.block.feed_forward)):
                if units is not None and units.channels:
                    found[layer.tower, layer.index, part] = units  # type: ignore[index]
        return found

    @property
    def logit_scale(self) -> Tensor | float:
        """Factor of the similarities in the contrastive loss; 100, CLIP's ceiling, for a model without."""
        scale = getattr(self.model, "logit_scale", None)
        return scale.exp().squeeze() if isinstance(scale, Tensor) else 100.0

    def check_has_weights(self) -> None:
        """Raises ValueError if weights are on the ``meta`` device."""
        if any(parameter.is_meta for parameter in self.model.parameters()):
            raise ValueError("model must have its weights; found some on the 'meta' device. Load a checkpoint first.")

    @property
    def device(self) -> torch.device:
        """The device of the model's weights."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def embed(self, tower: TowerName, inputs: Tensor) -> Float[Tensor, "N J"]:
        """The model's own embeddings, not normalised; gradients and training mode are as the caller has set them.

        Waits for another thread that scores or prunes the model.

        Args:
            tower: ``image`` or ``text``.
            inputs: Images or token ids of that tower, on any device.

        Returns:
            The embeddings.

        Raises:
            ValueError: If ``tower`` is another, such as CoCa's decoder, which has no embeddings.
        """
        encoders = {"image": self._towers.encode_image, "text": self._towers.encode_text}
        if tower not in encoders:
            raise ValueError(f"tower must be 'image' or 'text', which have embeddings; found {tower!r}.")
        with exclusive(self.model):
            return encoders[tower](inputs.to(self.device))

    @property
    def removed(self) -> dict[str, list[int]]:
        """Units removed since wrapping: ``{"image.heads": [per layer], "image.neurons": ..., "text.heads": ...}``.

        Layers that were removed whole are counted as all of their units, at the end of the list.
        """
        now = self._unit_counts()
        return {
            key: [
                before - after
                for before, after in zip(counts, now[key] + [0] * (len(counts) - len(now[key])), strict=True)
            ]
            for key, counts in self._original.items()
        }

    def block_numbers(self, tower: TowerName) -> list[int]:
        """Positions that the blocks of a tower that are left had when the model was wrapped."""
        return [self.numbered[tower].index(block.module) for block in self.towers[tower].blocks]

    def _unit_counts(self) -> dict[str, list[int]]:
        counts: dict[str, list[int]] = {}
        for name, tower in self.towers.items():
            counts[f"{name}.heads"] = [_units(block.attention) for block in tower.blocks]
            counts[f"{name}.neurons"] = [_units(block.feed_forward) for block in tower.blocks]
        return counts

    @property
    def widths(self) -> dict[TowerName, int]:
        """The residual width of each tower, summed over the stages of one that has several."""
        return {name: tower.width for name, tower in self.towers.items() if tower.streams}

    def counts(self) -> Counts:
        """Heads, neurons and residual channels that the model has now, over both towers."""
        units = self._unit_counts()
        return Counts(
            heads=sum(sum(values) for key, values in units.items() if key.endswith("heads")),
            neurons=sum(sum(values) for key, values in units.items() if key.endswith("neurons")),
            width=sum(self.widths.values()),
        )

    def check_blocks(self, tower: TowerName, indices: Sequence[int]) -> None:
        """Raises as :meth:`remove_blocks` would."""
        if tower not in self.towers:
            raise ValueError(f"tower must be one of {list(self.towers)}; found {tower!r}.")
        blocks = list(self.towers[tower].blocks)
        count, chosen = len(blocks), set(indices)
        if len(chosen) != len(indices) or not chosen <= set(range(count)) or len(chosen) == count:
            raise ValueError(
                f"indices must name some, not all, of the {count} layers of the {tower} tower, each once; found "
                f"{list(indices)}."
            )
        fixed = [index for index in indices if blocks[index].siblings is None]
        if fixed:
            raise NotImplementedError(
                f"indices must be of layers that stand in a list and keep the shape of the hidden states; found {fixed}, which "
                "do not. A Tower of your own must set siblings of its Blocks for its layers to be removable."
            )

    def remove_blocks(self, tower: TowerName, indices: Sequence[int]) -> None:
        """Mutates the model: deletes whole Transformer layers of one tower.

        Args:
            tower: ``image`` or ``text``.
            indices: Positions of the layers to delete, as they are now.

        Raises:
            ValueError: If an index is out of range or repeated, or no layer would be left.
            NotImplementedError: If one of them cannot be deleted: it stands in no list, or changes the shape of the states.
        """
        self.check_blocks(tower, indices)
        blocks = list(self.towers[tower].blocks)
        count = len(blocks)
        self.towers[tower].delete(list(indices))
        left = {id(block.module) for block in self.towers[tower].blocks}
        order = sorted(range(count), key=lambda index: id(blocks[index].module) not in left)
        for kind in ("heads", "neurons"):  # what went is counted last
            counts = self._original[f"{tower}.{kind}"]
            counts[:count] = [counts[index] for index in order]


def _units(units: Prunable | None) -> int:
    return 0 if units is None else units.num_units


def _check_weights(model: nn.Module) -> None:
    """Raises if a weight is NaN or infinite."""
    weights = ((name, parameter) for name, parameter in model.named_parameters() if not parameter.is_meta)
    bad = [name for name, parameter in weights if not torch.isfinite(parameter).all()]
    if bad:
        raise NonFiniteError(f"model must have finite weights; found NaN or infinity in {bad[:5]} ({len(bad)} in all).")
