"""Range of sizes that plans can reach, before anything is scored."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..cost import TOWERS, Footprint, footprints, freed_parameters, latencies
from ..encoder import EncoderCore, TowerName
from ..scoring import Score, ScoreTable, enumerate_units
from ._budget import Budget, Measure, Multiple, Sizes, Timer, limits_of, multiple_of, sizes_of, unreachable, without
from ._choose import allowed, excess, units_of
from ._order import Step, removal_order


@dataclass(frozen=True)
class PlanRange:
    """The smallest and the largest that a model can be.

    Attributes:
        largest: Footprint of each tower as it is.
        smallest: Footprint of each tower without all that may go.
        latency: Seconds of each tower, ``largest`` and ``smallest``; None if it was not measured.
    """

    largest: Mapping[TowerName, Footprint]
    smallest: Mapping[TowerName, Footprint]
    latency: Mapping[str, Mapping[TowerName, float]] | None = None

    def check(
        self, *, parameters: Budget | None = None, multiply_adds: Budget | None = None, latency: Budget | None = None
    ) -> None:
        """Raises unless budgets can be met."""
        if latency is not None and self.latency is None:
            raise ValueError("latency must have been measured; found none. Call plan_range with latency=True.")
        asked: dict[Measure, Budget | None] = {
            "parameters": parameters,
            "multiply_adds": multiply_adds,
            "latency": latency,
        }
        limits = limits_of(asked, self.sizes("largest"))
        if failing := excess(self.sizes("smallest"), limits):
            raise ValueError(unreachable(failing, "with such units"))

    def sizes(self, side: Literal["largest", "smallest"]) -> Sizes:
        """Sizes by measure and tower of one end."""
        seconds = {} if self.latency is None else self.latency[side]
        return sizes_of(self.largest if side == "largest" else self.smallest, seconds)

    def __str__(self) -> str:
        """A line per tower and one for both: each measure at its smallest and its largest."""
        measures: list[tuple[Measure, str, float, str]] = [
            ("parameters", "parameters", 1e6, "M"),
            ("multiply_adds", "multiply-adds", 1e9, "G"),
        ]
        measures += [] if self.latency is None else [("latency", "latency", 1e-3, "ms")]
        rows = [["", *(f"{name}, {unit}" for _, name, _, unit in measures)]]
        least, most = self.sizes("smallest"), self.sizes("largest")
        for label, towers in (("image", TOWERS[:1]), ("text", TOWERS[1:]), ("both", TOWERS)):
            cells = []
            for measure, _, scale, _ in measures:
                low, high = (sum(sizes[measure][tower] for tower in towers) for sizes in (least, most))
                cells.append(f"{low / scale:.3f} to {high / scale:.3f} ({low / high:.1%} to 100%)")
            rows.append([label, *cells])
        return _aligned(rows)


def plan_range(
    encoder: EncoderCore,
    *,
    kinds: Collection[str] = ("head", "neurons", "block"),
    towers: Collection[str] = ("image", "text"),
    groups: int = 16,
    round_to: Multiple = 1,
    uniform: bool = False,
    min_heads: int = 0,
    min_neurons: int = 0,
    latency: bool = False,
    batch_size: int = 1,
    timer: Timer = latencies,
) -> PlanRange:
    """The least that plans can leave of a model, without any scores; to know before a long run whether a budget can be met.

    Args:
        encoder: The dual encoder; left as it is.
        kinds: Units that may go; see :func:`torch_pruning_mope.score`.
        towers: Towers whose units may go.
        groups: Neuron groups per MLP.
        round_to: See :func:`make_plan`.
        uniform: All layers of a tower keep as many heads and neurons.
        min_heads: Heads that every attention keeps.
        min_neurons: Neurons that every MLP keeps.
        latency: Measure time.
        batch_size: Inputs at once, for that.
        timer: See :func:`make_plan`.

    Returns:
        The range.
    """
    units = enumerate_units(encoder, kinds, {}, groups, towers)
    sizes = {unit: freed_parameters(encoder, unit) for unit in units}
    # Blocks first and the large ones before the small, so that the one that must stay is the smallest.
    scores = tuple(Score(unit, -float(size) if unit.kind == "block" else 1.0, 0.0, 0.0) for unit, size in sizes.items())
    blocks = sorted((score for score in scores if score.unit.kind == "block"), key=lambda score: score.value)
    parts = ScoreTable(tuple(score for score in scores if score.unit.kind != "block"), 0.0, "", "", "")
    order: list[Step] = [(score,) for score in blocks]
    order += removal_order(
        parts, lambda unit: freed_parameters(encoder, unit), multiple_of(encoder, round_to), uniform=uniform
    )
    smaller = without(encoder, units_of(allowed(encoder, order, min_heads, min_neurons)))
    seconds = None
    if latency:
        seconds = {side: timer(of, batch_size=batch_size) for side, of in (("largest", encoder), ("smallest", smaller))}
    return PlanRange(footprints(encoder), footprints(smaller), seconds)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns, the head first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
