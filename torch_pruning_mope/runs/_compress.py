"""A smaller model without training: scored, cut and reconstructed in stages."""

import copy
import math
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from tqdm import tqdm

from ..data import Pairs
from ..dual_encoder import DualEncoder
from ..metrics import MetricLike, resolve_metric
from ..planning import Budget, Limit, Multiple, Sizes, limits_of, plan_range
from ..scoring import Ranks, Rewiring, estimate_cost, fingerprint
from ._folder import RunFolder
from ._pipeline import Pipeline, budgets_of

Stages = Literal["auto"] | int | Sequence[float]

_AUTO = (0.5, 0.3, 0.2, 0.14, 0.1, 0.07, 0.05)
"""Shares of what can be removed that the stages leave; scores hold about as far as from one to the next."""
_APART = 1.2


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
    rewire: Rewiring = "obs",
    reconstruct_pairs: Pairs | None = None,
    ridge: float | None = None,
    inputs: bool = True,
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
        parameters: Parameters that may be left; see :func:`torch_pruning_mope.make_plan`, as for the budgets below.
        multiply_adds: Multiply-adds of one input.
        latency: Seconds on this machine.
        stages: ``auto``: at 50, 30, 20, 14, 10, 7 and 5 % of what can be removed, as far as the budget. A number of stages that
            leave equal shares of what they find; or the shares themselves.
        kinds: Units that may go: ``head``, ``neurons``, ``block``.
        min_heads: Heads that every attention keeps.
        min_neurons: Neurons that every MLP keeps.
        round_to: Multiple that the neurons left in every MLP are of, or ``"auto"``.
        uniform: All layers of a tower keep as many heads and neurons.
        batch_size: Inputs at once, for latency.
        metric: Metric whose loss scores are.
        groups: Neuron groups per MLP.
        rewire: Order of an MLP's neurons before they are grouped; see :func:`torch_pruning_mope.score`.
        reconstruct_pairs: Images and captions to reconstruct on, of which more than are scored on do good; by default the same.
        ridge: See :func:`torch_pruning_mope.reconstruct`.
        inputs: See :func:`torch_pruning_mope.reconstruct`, of the last reconstruction; those between stages are without.
        path: Folder of the run. The same call goes on there after an interruption, to the same bits on a CPU.
        progress: Show progress bars, and the stages and their time beforehand.

    Returns:
        The smaller model's encoder.

    Raises:
        ValueError: If no budget is given, or one cannot be met, before anything is scored.
        WrongModelError: If ``path`` holds another run.
    """
    dense = copy.deepcopy(model) if isinstance(model, DualEncoder) else DualEncoder(copy.deepcopy(model))
    dense.check_has_weights()
    pairs = Pairs.coerce(pairs)
    planning: dict[str, Any] = {
        "min_heads": min_heads,
        "min_neurons": min_neurons,
        "round_to": round_to,
        "uniform": uniform,
        "batch_size": batch_size,
    }
    reachable = plan_range(dense, kinds=kinds, groups=groups, latency=latency is not None, **planning)
    budgets: dict[Any, Budget | None] = {
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "latency": latency,
    }
    reachable.check(**budgets)
    whole = reachable.sizes("largest")
    all_limits = stage_limits(limits_of(budgets, whole), reachable.sizes("smallest"), stages)
    more = pairs if reconstruct_pairs is None else reconstruct_pairs
    scoring: dict[str, Any] = {"metric": metric, "kinds": kinds, "groups": groups, "rewire": rewire}
    run = Pipeline(
        dense=dense,
        pairs=pairs,
        scoring=scoring | {"interaction": "joint", "reconstruct": True},
        planning=planning,
        refit={"pairs": more, "ridge": ridge, "inputs": False},
        folder=path if isinstance(path, RunFolder) or path is None else RunFolder(path),
        progress=progress,
    )
    if run.folder is None:
        return _finished(run, all_limits, inputs=inputs)
    about = {
        "begun_by": "compress",
        **{measure: dict(budget) if isinstance(budget, Mapping) else budget for measure, budget in budgets.items()},
        "stages": stages if isinstance(stages, str | int) else list(stages),
        "metric": resolve_metric(metric).name,
        "kinds": sorted(kinds),
        "groups": groups,
        "rewire": rewire if isinstance(rewire, str) else type(rewire).__name__,
        **planning,
        "ridge": ridge,
        "inputs": inputs,
        "calibration": pairs.fingerprint(),
        "reconstruct_pairs": more.fingerprint(),
        "weights": fingerprint(dense.model),
    }
    with run.folder.held():
        run.folder.claim(about)
        return _finished(run, all_limits, inputs=inputs)


def _finished(run: Pipeline, all_limits: Sequence[Sequence[Limit]], *, inputs: bool) -> DualEncoder:
    """The model after all stages, of which those that were done before are resumed."""
    ranks = Ranks()
    show = run.progress and ranks.rank == 0
    try:
        if show and not (run.folder is not None and (run.folder.path / "stage-1/plan.json").exists()):
            plain = {name: value for name, value in run.scoring.items() if name != "reconstruct"}
            cost = estimate_cost(run.dense, run.pairs, repeats=1, **plain)
            seconds = f"{'at least ' if cost.at_least else ''}{cost.seconds:.0f} s"
            tqdm.write(f"compress: {len(all_limits)} stages; scores of the first take {seconds}", file=sys.stderr)
        for limits in all_limits:
            if run.plans and not budgets_of(limits, run.sizes):
                continue
            step = f"stage-{len(run.plans) + 1}"
            files = f"{step}/plan.json", f"{step}/scores.json"
            plan = run.prune(step, limits, ranks, files=files, until=partial(_until, run, limits))
            if show:
                tqdm.write(f"compress, {step}: {'; '.join(str(plan).splitlines())}", file=sys.stderr)
        run.refit = {**(run.refit or {}), "inputs": inputs}
        return run.current
    finally:
        ranks.close()


def _until(run: Pipeline, limits: Sequence[Limit]) -> float | None:
    """Share of the blocks' parameters after which a path may stop; None where all of it may be needed."""
    limit, *others = limits
    if others or limit.measure != "parameters" or run.planning["uniform"]:
        return None
    blocks = [layer.block.module for layer in run.current.layers if layer.tower in limit.towers]
    parameters = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    share = 1.05 * (limit.of(run.sizes) - limit.most) / parameters
    share += 0.1 if run.planning["min_heads"] or run.planning["min_neurons"] else 0.0
    share += 0.05 if run.planning["round_to"] != 1 else 0.01
    return share if share < 1 else None


def stage_limits(limits: Sequence[Limit], least: Sizes, stages: Stages) -> list[list[Limit]]:
    """The limits of every stage, the given ones last; ``least`` is the size of the smallest model."""
    goals = [max(0.0, (limit.most - limit.of(least)) / (limit.total - limit.of(least))) for limit in limits]
    shares = _shares(stages, min(goals))
    found = []
    for share in shares:
        eased = [limit.of(least) + share * (limit.total - limit.of(least)) for limit in limits]
        found.append([replace(limit, most=max(limit.most, most)) for limit, most in zip(limits, eased, strict=True)])
    return [*found, list(limits)]


def _shares(stages: Stages, goal: float) -> list[float]:
    """Shares between the whole and the goal, decreasing."""
    if stages == "auto":
        return [share for share in _AUTO if share > _APART * goal]
    if isinstance(stages, int) and not isinstance(stages, bool) and stages >= 1:
        return [math.exp(math.log(max(goal, 1e-3)) * place / stages) for place in range(1, stages)]
    if isinstance(stages, Sequence) and not isinstance(stages, str):
        shares = [share for share in stages if isinstance(share, float) and 0 < share < 1]
        if len(shares) == len(stages) and shares == sorted(set(shares), reverse=True):
            return [share for share in shares if share > goal]
    raise ValueError(
        f"stages must be 'auto', a number of at least 1, or decreasing shares between 0 and 1; found {stages!r}."
    )
