"""The core of a dual encoder made prunable: towers, embeddings, counts, the dependency graph. Everything above uses it."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ._state import exclusive
from .errors import NonFiniteError
from .surgery import (
    exchange,
    prunable_attention,
)
from .towers import (
    BlockTower,
    Counts,
    FindMixin,
    Part,
    Prunable,
    TowerName,
    TwoEncoders,
    summary,
    towers_of,
)

__all__ = ["EncoderCore", "TowerName"]
EncoderT = TypeVar("EncoderT", bound="EncoderCore")


class EncoderCore(FindMixin):
    """A dual encoder with what everything else needs; see :class:`torch_pruning_mope.DualEncoder`, which adds the rest."""

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

    @property
    def image(self) -> BlockTower:
        """The image tower."""
        return self.towers["image"]

    @property
    def text(self) -> BlockTower:
        """The text tower."""
        return self.towers["text"]

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
