"""Both stages of MoPE-CLIP: prune width, prune depth, distil."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .._fingerprint import fingerprint
from ..data import Pairs
from ..distillation import DistillationLoss, TeacherCache, check_training
from ..dual_encoder import DualEncoder
from ..metrics import MetricLike, resolve_metric
from ..planning import Budget, Limit, limits_of, plan_range
from ..scoring import Ranks
from ._folder import RunFolder
from ._pipeline import Batches, Pipeline


def pretrain_stage(model: nn.Module, calibration: Pairs, train: Batches, **options: Any) -> DualEncoder:
    """Prunes a zero-shot CLIP in width, then in depth, and distils it from the whole model; leaves the model as it is.

    The pre-training stage of MoPE-CLIP (arXiv 2403.07839). Heads and neuron groups go in one joint order of both towers,
    layers greedily, and what is left is reconstructed (all ours; the paper scores each unit alone).

    Args:
        model: A zero-shot CLIP.
        calibration: Pairs to score on; neither trained nor tested on.
        train: Training pairs, or batches of them; see :func:`torch_pruning_mope.distill`.
        **options: Those of :func:`run_stage`, ``path`` and ``steps`` among them.

    Returns:
        The student.
    """
    return run_stage(model, calibration, train, **options)


def finetune_stage(
    model: nn.Module, calibration: Pairs, train: Batches, *, finetune_steps: int = 0, **options: Any
) -> DualEncoder:
    """Fine-tunes a CLIP if asked to, prunes width, distils, prunes depth, distils; leaves the model as it is.

    The fine-tuning stage of MoPE-CLIP (arXiv 2403.07839). The fine-tuned model is the teacher. For one tower alone, as in the
    paper, give budgets of that tower: ``{"image": "50%"}``.

    Args:
        model: A CLIP; a fine-tuned one, if there are no steps to fine-tune it.
        calibration: Pairs to score on; neither trained nor tested on.
        train: Training pairs, or batches of them.
        finetune_steps: Steps of contrastive training before anything else, with the other arguments of the distillation.
        **options: Those of :func:`run_stage`, for each training.

    Returns:
        The student.
    """
    return run_stage(model, calibration, train, distil_between=True, finetune_steps=finetune_steps, **options)


def run_stage(
    model: nn.Module,
    calibration: Pairs,
    train: Batches,
    *,
    path: str | Path | RunFolder,
    width: Budget | None = None,
    parameters: Budget | None = None,
    distil_between: bool = False,
    finetune_steps: int = 0,
    metric: MetricLike = "contrastive_loss",
    groups: int = 16,
    round_to: int = 1,
    uniform: bool = False,
    reconstruct: bool = True,
    cache_teacher: bool = False,
    progress: bool = True,
    **training: Any,
) -> DualEncoder:
    """Runs either stage; leaves the model as it is. The same call goes on after an interruption, to the same bits on a CPU.

    Args:
        model: The model.
        calibration: Pairs to score on, and to reconstruct on.
        train: Training pairs, or batches of them.
        path: Folder of the run; :mod:`torch_pruning_mope.runs` says what it holds.
        width: Parameters left once heads and neurons have gone: a share, a number, or one for each tower; None for depth alone.
        parameters: Parameters left once layers have gone too, likewise, of the whole model; None for width alone.
        distil_between: Distil after width and after depth, and not only in the end.
        finetune_steps: Steps of contrastive training before anything is scored.
        metric: Metric whose loss scores are.
        groups: Neuron groups per MLP.
        round_to: Multiple that the neurons left in every MLP are of.
        uniform: All layers of a tower keep as many heads and neurons.
        reconstruct: Refit what is left onto the dense model before it is trained, and score units as they are missed then.
        cache_teacher: Run the teacher once on each training pair and keep its outputs in the folder for all trainings: the same
            losses to rounding. With hidden states, that is a number per token, channel and layer, for each image and caption.
        progress: Show progress bars.
        **training: Arguments of :func:`torch_pruning_mope.distill`, for each training.

    Returns:
        The student.

    Raises:
        ValueError: If an argument cannot be, a budget cannot be met, or ``path`` holds another run. Nothing has been scored or
            trained then, but for a depth that turns out to be out of reach once the width has gone.
    """
    if finetune_steps < 0:
        raise ValueError(f"finetune_steps must be at least 0; found {finetune_steps}.")
    if cache_teacher and not isinstance(train, Pairs):
        raise ValueError(
            "train must be Pairs for cache_teacher=True, whose views are always the same; found batches. Gather them with "
            "gather_pairs, or pass cache_teacher=False."
        )
    check_training(train, **training)
    dense = DualEncoder(copy.deepcopy(model))
    rules = {"round_to": round_to, "uniform": uniform}
    limits = _limits(dense, width, parameters, groups=groups, **rules)
    about = {
        "begun_by": "stage",
        "width": width,
        "parameters": parameters,
        "distil_between": distil_between,
        "finetune_steps": finetune_steps,
        "metric": resolve_metric(metric).name,
        "groups": groups,
        **rules,
        "reconstruct": reconstruct,
        "calibration": calibration.fingerprint(),
        "weights": fingerprint(dense.model),
    }
    folder, ranks = path if isinstance(path, RunFolder) else RunFolder(path), Ranks()
    run = Pipeline(
        dense=dense,
        pairs=calibration,
        scoring={"metric": metric, "groups": groups, "reconstruct": reconstruct},
        planning=rules,
        refit={"pairs": calibration} if reconstruct else None,
        folder=folder,
        progress=progress,
    )
    try:
        with folder.held():
            folder.claim(about)
            if finetune_steps:
                loss = training.get("loss")
                own = DistillationLoss(similarity=0.0, features=0.0, sigmoid=loss is not None and loss.sigmoid)
                run.train("training-dense", train, None, **training | {"loss": own, "steps": finetune_steps})
                run.dense = run.base
            teacher = _kept(run, train, training) if cache_teacher else run.dense
            for place, (step, limit) in enumerate(limits.items(), start=1):
                kinds, order = (("head", "neurons"), "joint") if step == "width" else (("block",), "greedy")
                run.prune(
                    step, limit, ranks, files=(f"{step}-plan.json", f"{step}.json"), kinds=kinds, interaction=order
                )
                if distil_between or place == len(limits):
                    run.train(f"training-{step}" if distil_between else "training", train, teacher, **training)
            return run.current
    finally:
        ranks.close()


def _kept(run: Pipeline, train: Any, training: Mapping[str, Any]) -> TeacherCache:
    """Outputs of the dense model on the training pairs, in the run's folder."""
    loss: DistillationLoss | None = training.get("loss")
    precision = training.get("teacher_precision") or training.get("precision", "no")
    path = run.folder.path / "teacher"  # type: ignore[union-attr]  # a stage has one
    kept = TeacherCache.of(
        run.dense,
        train,
        path=path,
        hidden=loss is not None and "hidden" in loss.weights,
        precision=None if precision == "no" else precision,
    )
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    run.note("teacher", f"kept what it makes of {train.num_images} images, {size / 1e6:.1f} MB")
    return kept


def _limits(
    dense: DualEncoder, width: Budget | None, parameters: Budget | None, **rules: Any
) -> dict[str, list[Limit]]:
    """The limits of each step; raises unless they can be met, as far as is known before anything is scored."""
    budgets: dict[str, Budget | None] = {"width": width, "depth": parameters}
    asked = {step: budget for step, budget in budgets.items() if budget is not None}
    if not asked:
        raise ValueError("width or parameters must be given; found neither. Say how many parameters may be left.")
    found = {}
    for step, budget in asked.items():
        kinds = (*(("head", "neurons") if width is not None else ()), *(("block",) if step == "depth" else ()))
        reachable = plan_range(dense, kinds=kinds, **rules)
        reachable.check(parameters=budget)
        found[step] = limits_of({"parameters": budget}, reachable.sizes("largest"))
    for before in found["width"] if len(found) == 2 else ():
        for after in found["depth"]:
            if after.towers == before.towers and after.most >= before.most:
                raise ValueError(
                    f"parameters must be less than width, so that layers go after heads and neurons; found {after.most:.4g} "
                    f"and {before.most:.4g}. Leave parameters out to keep all layers."
                )
    return found
