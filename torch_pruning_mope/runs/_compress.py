"""A smaller model without training: scored, cut and reconstructed in stages."""

import copy
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..data import Pairs
from ..dual_encoder import DualEncoder
from ..metrics import MetricLike, resolve_metric
from ..planning import Budget, Multiple, limits_of, plan_range
from ..scoring import Rewiring, fingerprint
from ._compression import Compression
from ._folder import RunFolder
from ._shares import Stages, stage_limits


def compress(
    model: nn.Module | DualEncoder,
    pairs: Pairs | Iterable[tuple[Tensor, Tensor]],
    *,
    parameters: Budget | None = None,
    multiply_adds: Budget | None = None,
    latency: Budget | None = None,
    stages: Stages = "auto",
    kinds: Collection[str] = ("head", "neurons"),
    min_heads: int = 0,
    min_neurons: int = 0,
    round_to: Multiple = 1,
    uniform: bool = False,
    batch_size: int = 1,
    metric: MetricLike = "contrastive_loss",
    groups: int = 16,
    rewire: Rewiring = "taylor",
    reconstruct_pairs: Pairs | None = None,
    ridge: float | None = None,
    inputs: bool = False,
    path: str | Path | RunFolder | None = None,
    progress: bool = True,
) -> DualEncoder:
    """Makes a smaller model that is still good, without training and without labels.

    In stages: the units that are left are scored on a joint path, each as what the metric loses after the rest of its
    sub-layer is refitted; the least missed are removed until the stage's budget holds; and all that has gone so far is removed
    from the dense weights anew, which are reconstructed in one go. The next stage scores that model.

    Args:
        model: The model, or a dual encoder of it; left as it is.
        pairs: Pairs to score on; never those that results are reported on.
        parameters: How many parameters may be left; see :func:`torch_pruning_mope.make_plan`, as for the budgets below.
        multiply_adds: How many multiply-adds of one input.
        latency: How many seconds on this machine.
        stages: ``auto``: at 50, 30, 20, 14, 10, 7 and 5 % of what can be removed, as far as the budget. A number of stages that
            leave equal shares of what they find; or the shares themselves.
        kinds: Units that may go: ``head``, ``neurons``, ``block``.
        min_heads: Heads that every attention keeps.
        min_neurons: Neurons that every MLP keeps.
        round_to: Multiple that the neurons left in every MLP are of, or ``"auto"``.
        uniform: Whether all layers of a tower keep as many heads and neurons.
        batch_size: Inputs at once, for latency.
        metric: Metric whose loss scores are.
        groups: Neuron groups per MLP.
        rewire: How an MLP's neurons are ordered before they are grouped; see :func:`torch_pruning_mope.score`.
        reconstruct_pairs: Images and captions to reconstruct on, of which more than are scored on do good; by default the same.
        ridge: See :func:`torch_pruning_mope.reconstruct`.
        inputs: Likewise.
        path: Folder of the run. The same call goes on there after an interruption, to the same bits on a CPU.
        progress: Whether to show progress bars and say what comes.

    Returns:
        The smaller model's encoder.

    Raises:
        ValueError: If no budget is given, or one cannot be met, before anything is scored.
        WrongModelError: If ``path`` holds another run.
    """
    dense = copy.deepcopy(model) if isinstance(model, DualEncoder) else DualEncoder(copy.deepcopy(model))
    dense.check_has_weights()
    pairs = Pairs.coerce(pairs)
    found = plan_range(
        dense, kinds=kinds, groups=groups, round_to=round_to, uniform=uniform, min_heads=min_heads,
        min_neurons=min_neurons, latency=latency is not None, batch_size=batch_size,
    )  # fmt: skip
    budgets: dict[Any, Budget | None] = {
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "latency": latency,
    }
    found.check(**budgets)
    limits = limits_of(budgets, found.sizes("largest"))
    run = Compression(
        dense=dense,
        pairs=pairs,
        reconstruct_pairs=pairs if reconstruct_pairs is None else reconstruct_pairs,
        limits=stage_limits(limits, found.sizes("smallest"), stages),
        scoring={"metric": metric, "kinds": kinds, "groups": groups, "rewire": rewire, "reconstruct": True},
        planning={
            "min_heads": min_heads,
            "min_neurons": min_neurons,
            "round_to": round_to,
            "uniform": uniform,
            "batch_size": batch_size,
        },
        refit={"ridge": ridge, "inputs": inputs},
        folder=path if isinstance(path, RunFolder) or path is None else RunFolder(path),
        progress=progress,
    )
    if run.folder is None:
        return run.finish()
    with run.folder.held():
        run.folder.claim(_about(run, budgets, stages))
        return run.finish()


def _about(run: Compression, budgets: Mapping[str, Any], stages: Stages) -> dict[str, Any]:
    """What the run is, as its folder knows it."""
    scoring = {**run.scoring, "metric": resolve_metric(run.scoring["metric"]).name}
    rewire = scoring["rewire"]
    scoring |= {
        "kinds": sorted(scoring["kinds"]),
        "rewire": rewire if isinstance(rewire, str) else type(rewire).__name__,
    }
    return {
        "begun_by": "compress",
        **{measure: dict(budget) if isinstance(budget, Mapping) else budget for measure, budget in budgets.items()},
        "stages": stages if isinstance(stages, str | int) else list(stages),
        **scoring,
        **run.planning,
        **run.refit,
        "calibration": run.pairs.fingerprint(),
        "reconstruct_pairs": run.reconstruct_pairs.fingerprint(),
        "weights": fingerprint(run.dense.model),
    }
