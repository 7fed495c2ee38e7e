"""The paper's two stages as recipes: prune width, then depth, and distil.

Each step leaves its result in the run's folder and is not done again: score tables, plans, training checkpoints. The same call
on the same model goes on where it stopped.
"""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .data import Pairs
from .distillation import distil
from .encoder import DualEncoder
from .metrics import MetricLike
from .planning import Budget, Plan, footprints, make_plan, parse_amount
from .scoring import score

Batches = Pairs | Iterable[tuple[Tensor, Tensor]]


def pretrain_stage(
    model: nn.Module,
    calibration: Pairs,
    train: Batches,
    *,
    path: str | Path,
    width: Budget,
    parameters: Budget | None = None,
    metric: MetricLike = "contrastive_loss",
    groups: int = 16,
    round_to: int = 1,
    progress: bool = True,
    **training: Any,
) -> DualEncoder:
    """Mutates ``model``: prunes the width of both towers, then their depth, then distils from the whole model.

    The pre-training stage of MoPE-CLIP (arXiv 2403.07839): the model is scored zero-shot. Heads and neuron groups go in one
    joint order of both towers, layers greedily (both ours; the paper scores each unit alone).

    Args:
        model: A zero-shot CLIP. To go on with a run, pass it unpruned again.
        calibration: Pairs to score on; neither trained nor tested on.
        train: Training pairs, or batches of them; see :func:`torch_pruning_mope.distil`.
        path: Folder of the run.
        width: Parameters left once heads and neurons have gone: a share, a number, or one for each tower.
        parameters: Parameters left once layers have gone too, likewise, of the whole model; None for all layers kept.
        metric: What units are scored by.
        groups: Neuron groups per MLP.
        round_to: Multiple that the neurons left in every MLP are of.
        progress: Whether to show progress bars.
        **training: Arguments of :func:`torch_pruning_mope.distil`, ``steps`` among them.

    Returns:
        The student.
    """
    encoder, teacher, folder = _begin(model, path)
    shared = {"metric": metric, "progress": progress}
    whole = footprints(encoder)
    _prune_width(encoder, calibration, folder, width, groups=groups, round_to=round_to, **shared)
    if parameters is not None:
        _prune_depth(encoder, calibration, folder, _absolute(parameters, whole), **shared)
    distil(encoder, train, teacher=teacher, path=folder / "training", progress=progress, **training)
    return encoder


def finetune_stage(
    model: nn.Module,
    calibration: Pairs,
    train: Batches,
    *,
    path: str | Path,
    width: Budget,
    parameters: Budget | None = None,
    metric: MetricLike = "contrastive_loss",
    groups: int = 16,
    round_to: int = 1,
    progress: bool = True,
    **training: Any,
) -> DualEncoder:
    """Mutates ``model``: prunes width, distils, prunes depth, distils.

    The fine-tuning stage of MoPE-CLIP (arXiv 2403.07839), for a model that is fine-tuned already; that model is the teacher.
    For one tower alone, as in the paper, give budgets of that tower: ``{"image": "50%"}``.

    Args:
        model: A fine-tuned CLIP. To go on with a run, pass it unpruned again.
        calibration: As for :func:`pretrain_stage`, like the following.
        train: Training pairs, or batches of them.
        path: Folder of the run.
        width: Parameters left once heads and neurons have gone.
        parameters: Parameters left once layers have gone too; None for all layers kept, and one distillation.
        metric: What units are scored by.
        groups: Neuron groups per MLP.
        round_to: Multiple that the neurons left in every MLP are of.
        progress: Whether to show progress bars.
        **training: Arguments of :func:`torch_pruning_mope.distil`, for each of the two.

    Returns:
        The student.
    """
    encoder, teacher, folder = _begin(model, path)
    shared = {"metric": metric, "progress": progress}
    whole = footprints(encoder)
    _prune_width(encoder, calibration, folder, width, groups=groups, round_to=round_to, **shared)
    distil(encoder, train, teacher=teacher, path=folder / "training-width", progress=progress, **training)
    if parameters is not None:
        _prune_depth(encoder, calibration, folder, _absolute(parameters, whole), **shared)
        distil(encoder, train, teacher=teacher, path=folder / "training-depth", progress=progress, **training)
    return encoder


def _begin(model: nn.Module, path: str | Path) -> tuple[DualEncoder, DualEncoder, Path]:
    """The student to be, the teacher, and the folder."""
    encoder = DualEncoder(model)
    teacher = DualEncoder(copy.deepcopy(model).requires_grad_(False))
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    return encoder, teacher, folder


def _prune_width(
    encoder: DualEncoder, pairs: Pairs, folder: Path, budget: Budget, *, groups: int, round_to: int, **scoring: Any
) -> None:
    def plan() -> Plan:
        table = score(
            encoder,
            pairs,
            kinds=("head", "neurons"),
            groups=groups,
            interaction="joint",
            path=folder / "width.json",
            **scoring,
        )
        return make_plan(encoder, table, parameters=budget, round_to=round_to)

    _planned(encoder, folder / "width-plan.json", plan)


def _prune_depth(encoder: DualEncoder, pairs: Pairs, folder: Path, budget: Budget, **scoring: Any) -> None:
    def plan() -> Plan:
        table = score(encoder, pairs, kinds=("block",), interaction="greedy", path=folder / "depth.json", **scoring)
        return make_plan(encoder, table, parameters=budget)

    _planned(encoder, folder / "depth-plan.json", plan)


def _planned(encoder: DualEncoder, path: Path, make: Any) -> None:
    """Applies a plan: the one that is there, if the run got so far before."""
    plan: Plan = Plan.load(path) if path.exists() else make()
    if not path.exists():
        plan.save(path)
    plan.apply(encoder)


def _absolute(budget: Budget, whole: Any) -> Budget:
    """A budget of the whole model in numbers, since the model is smaller by now."""

    def number(amount: Any, towers: tuple[str, ...]) -> float:
        return float(parse_amount("parameters", amount, sum(whole[tower].parameters for tower in towers)))

    if isinstance(budget, str | int | float):
        return number(budget, ("image", "text"))
    return {tower: number(amount, (tower,)) for tower, amount in budget.items()}
