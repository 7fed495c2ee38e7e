"""Models cut to a run's size by Torch-Pruning's own criteria."""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

from ..checkpoint import load
from ..dual_encoder import DualEncoder
from ..importance import stock_scores
from ..loading import LoadedModel
from ..planning import Plan, footprints, make_plan
from ._run import Run, wrapped


class Rival(StrEnum):
    """Criteria of Torch-Pruning."""

    l1 = "l1"
    taylor = "taylor"
    hessian = "hessian"
    random = "random"

    @property
    def label(self) -> str:
        """Its name in tables."""
        return {"l1": "L1", "taylor": "Taylor", "hessian": "Hessian"}.get(self.value, self.value)


def rivals(begun: Run, criteria: Sequence[Rival]) -> Iterator[tuple[Rival, LoadedModel]]:
    """The run's model, pruned by other criteria until no more is left than of the run's own smaller model.

    What was calibrated on is what the run was scored on. Widths are rounded, and layers kept, as the run's plan says.

    Args:
        begun: The run.
        criteria: The criteria.

    Yields:
        Each with its model.
    """
    if not criteria:
        return
    left = footprints(DualEncoder(load(begun.latest).model))
    path = begun.folder / "plan.json"
    settings: Mapping[str, Any] = Plan.load(path).settings if path.exists() else {}
    measure = settings.get("cost", "parameters")
    amounts = {tower: getattr(size, measure) for tower, size in left.items()}
    by_tower = any(isinstance(budget, Mapping) for budget in settings.get("budgets", {}).values())
    options: dict[str, Any] = {measure: amounts if by_tower else sum(amounts.values())}
    options |= {
        name: settings[name] for name in ("round_to", "uniform", "min_heads", "min_neurons") if name in settings
    }
    for criterion in criteria:
        loaded = begun.load()
        encoder = wrapped(loaded)
        table = stock_scores(encoder, begun.calibration(loaded), criterion.value, seed=begun.seed)
        # Putting back what fits would count a copy of the model for each of thousands of neurons.
        make_plan(encoder, table, refill=False, **options).apply(encoder)
        yield criterion, loaded
