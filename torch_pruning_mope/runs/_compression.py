"""Stages of a compression: score, plan, remove from the dense weights, reconstruct; or resume what is there."""

import copy
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from ..cost import footprints
from ..data import Pairs
from ..dual_encoder import DualEncoder
from ..errors import PruningMismatchError
from ..planning import Limit, Plan, Sizes, make_plan, sizes_of
from ..pruning import remove_units
from ..reconstruction import reconstruct
from ..scoring import Ranks, estimate_cost, score
from ._folder import RunFolder
from ._shares import budgets_of

_log = logging.getLogger(__name__)


@dataclass
class Compression:
    """The dense model, what is asked for, and what has gone so far.

    Attributes:
        dense: The model before; left as it is.
        pairs: Pairs to score on.
        reconstruct_pairs: Images and captions to reconstruct on.
        limits: Limits of each stage.
        scoring: Arguments of :func:`torch_pruning_mope.score`.
        planning: Arguments of :func:`torch_pruning_mope.make_plan`.
        refit: Arguments of :func:`torch_pruning_mope.reconstruct`.
        folder: Where steps are kept; None for nowhere.
        progress: Whether to show progress.
        plans: Plans of the stages so far, each for the model that the ones before left.
    """

    dense: DualEncoder
    pairs: Pairs
    reconstruct_pairs: Pairs
    limits: Sequence[Sequence[Limit]]
    scoring: Mapping[str, Any]
    planning: Mapping[str, Any]
    refit: Mapping[str, Any]
    folder: RunFolder | None
    progress: bool
    plans: list[Plan] = field(default_factory=list)

    def finish(self) -> DualEncoder:
        """Runs the stages that have not been run."""
        ranks = Ranks()
        try:
            self.plans = ranks.from_first(self._found)
            show = self.progress and ranks.rank == 0
            if not self.plans:
                _tell(f"compress: {len(self.limits)} stages; scores of the first take {self._estimate()}", show=show)
            current = self._rebuilt() if self.plans else self.dense
            for limits in self.limits:
                if self.plans and not budgets_of(limits, self._sizes()):
                    continue
                self.plans.append(self._planned(current, limits, ranks))
                _tell(f"compress, stage {len(self.plans)}: {'; '.join(str(self.plans[-1]).splitlines())}", show=show)
                current = self._rebuilt()
            return current
        finally:
            ranks.close()

    def _found(self) -> list[Plan]:
        """The plans that an earlier call has left."""
        plans: list[Plan] = []
        if self.folder is not None:
            while (file := self.folder.path / f"stage-{len(plans) + 1}/plan.json").exists():
                plans.append(Plan.load(file))
        return plans

    def _sizes(self) -> Sizes:
        """Sizes after the stages so far; times as they were measured then."""
        return sizes_of(self.plans[-1].after, self.plans[-1].settings.get("latency", {}).get("after", {}))

    def _planned(self, current: DualEncoder, limits: Sequence[Limit], ranks: Ranks) -> Plan:
        """The plan of one stage."""
        stage, budgets = f"stage-{len(self.plans) + 1}", budgets_of(limits, self._sizes() if self.plans else None)
        until = self._until(current, limits)
        try:
            plan = self._planned_until(until, current, limits, budgets, stage, ranks)
        except ValueError:
            if until is None:
                raise
            plan = self._planned_until(None, current, limits, budgets, stage, ranks)  # minimums needed a longer path
        if self.folder is not None:
            self.folder.write(f"{stage}/plan.json", plan.to_json())
            self.folder.note(stage, "; ".join(str(plan).splitlines()))
        return plan

    def _planned_until(
        self,
        until: float | None,
        current: DualEncoder,
        limits: Sequence[Limit],
        budgets: Mapping[str, Any],
        stage: str,
        ranks: Ranks,
    ) -> Plan:
        """A plan by a path that ends once this share of the blocks' parameters has gone."""
        name = "scores.json" if until else "all-scores.json"
        table = score(
            current,
            self.pairs,
            **self.scoring,
            interaction="joint",
            towers=sorted({tower for limit in limits for tower in limit.towers}),
            until=until,
            path=None if self.folder is None else self.folder.path / stage / name,
            progress=self.progress,
        )
        return ranks.from_first(lambda: make_plan(current, table, **budgets, **self.planning))

    def _until(self, current: DualEncoder, limits: Sequence[Limit]) -> float | None:
        """Share of the blocks' parameters after which a path may stop; None where all of it may be needed."""
        limit, *others = limits
        if others or limit.measure != "parameters" or self.planning["uniform"]:
            return None
        blocks = [layer.block.module for layer in current.layers if layer.tower in limit.towers]
        now = limit.of(self._sizes()) if self.plans else limit.total
        share = (now - limit.most) / sum(parameter.numel() for block in blocks for parameter in block.parameters())
        minimums = self.planning["min_heads"] or self.planning["min_neurons"]
        share = 1.05 * share + (0.1 if minimums else 0.0) + (0.05 if self.planning["round_to"] != 1 else 0.01)
        return share if share < 1 else None

    def _rebuilt(self) -> DualEncoder:
        """The dense model without all that has gone, reconstructed in one go."""
        smaller = copy.deepcopy(self.dense)
        for plan in self.plans:
            remove_units(smaller, plan.units, checked=False)
        left = footprints(smaller)
        if left != dict(self.plans[-1].after):
            raise PruningMismatchError(f"what is left must be {dict(self.plans[-1].after)}; found {left}.")
        report = reconstruct(smaller, self.dense, self.reconstruct_pairs, **self.refit, progress=self.progress)
        if self.folder is not None:
            self.folder.write(f"stage-{len(self.plans)}/reconstruction.json", report.to_json())
        return smaller

    def _estimate(self) -> str:
        """The time of the first stage's scores, as far as it is known before."""
        sample = {name: value for name, value in self.scoring.items() if name != "reconstruct"}
        cost = estimate_cost(self.dense, self.pairs, interaction="joint", repeats=1, **sample)
        return f"{'at least ' if cost.at_least else ''}{cost.seconds:.0f} s"


def _tell(text: str, *, show: bool) -> None:
    _log.info(text)
    if show:
        tqdm.write(text, file=sys.stderr)
