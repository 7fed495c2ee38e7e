"""Models cut to a run's size by Torch-Pruning's own criteria."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..checkpoint import load
from ..cost import footprints
from ..dual_encoder import DualEncoder
from ..importance import stock_scores
from ..loading import LoadedModel
from ..planning import Plan, make_plan
from ._prune import RECONSTRUCTION, Reconstruction, refit
from ._source import Part
from ._started import StartedRun


def rivals(begun: StartedRun, criteria: Sequence[str]) -> Iterator[tuple[str, LoadedModel]]:
    """The run's model, pruned by other criteria until no more is left than of the run's own smaller model."""
    # They are calibrated on the pairs that the run was scored on. Widths are rounded, and layers kept, as the run's
    # plan says.
    if not criteria:
        return
    left = footprints(DualEncoder(load(begun.latest).model))
    path = begun.path / "plan.json"
    rules: Mapping[str, Any] = Plan.load(path).settings if path.exists() else {}
    measure = rules.get("cost", "parameters")
    amounts = {tower: getattr(size, measure) for tower, size in left.items()}
    by_tower = any(isinstance(budget, Mapping) for budget in rules.get("budgets", {}).values())
    options: dict[str, Any] = {measure: amounts if by_tower else sum(amounts.values())}
    options |= {name: rules[name] for name in ("round_to", "uniform", "min_heads", "min_neurons") if name in rules}
    for criterion in criteria:
        loaded = begun.load()
        encoder = DualEncoder(loaded.model)
        table = stock_scores(encoder, begun.parts(loaded).scored(), criterion, seed=begun.source.seed)  # type: ignore[arg-type]
        # Putting back what fits would count a copy of the model for each of thousands of neurons.
        make_plan(encoder, table, refill=False, **options).apply(encoder)
        if (begun.path / RECONSTRUCTION).exists():  # as the run's own model was
            settings = begun.folder.settings()
            how = next((settings[name] for name in ("reconstruct", "prune") if name in settings), {})
            known = {field.name for field in fields(Reconstruction)}
            how = {name: Part(value) if name == "part" else value for name, value in how.items() if name in known}
            refit(begun, encoder, Reconstruction(**how), progress=False)
        yield criterion, loaded
