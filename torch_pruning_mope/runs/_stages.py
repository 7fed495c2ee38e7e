"""Both stages: prune width, prune depth, distil, in some number of rounds."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from .._fingerprint import fingerprint
from ..cost import footprints
from ..data import Pairs
from ..distillation import DistillationLoss, check_training
from ..dual_encoder import DualEncoder
from ..metrics import MetricLike, resolve_metric
from ..planning import Budget
from ._folder import RunFolder
from ._rounds import Spacing, check_budgets, round_budget
from ._steps import Batches, StageRun


def pretrain_stage(
    model: nn.Module,
    calibration: Pairs,
    train: Batches,
    *,
    path: str | Path | RunFolder,
    width: Budget | None = None,
    parameters: Budget | None = None,
    **options: Any,
) -> DualEncoder:
    """Mutates ``model``: prunes the width of both towers, then their depth, then distils from the whole model.

    The pre-training stage of MoPE-CLIP (arXiv 2403.07839): the model is scored zero-shot. Heads and neuron groups go in one
    joint order of both towers, layers greedily (both ours; the paper scores each unit alone).

    Args:
        model: A zero-shot CLIP. To go on with a run, pass it unpruned again.
        calibration: Pairs to score on; neither trained nor tested on.
        train: Training pairs, or batches of them; see :func:`torch_pruning_mope.distill`.
        path: Folder of the run.
        width: Parameters left once heads and neurons have gone: a share, a number, or one for each tower; None for all.
        parameters: Parameters left once layers have gone too, likewise, of the whole model; None for all layers kept.
        **options: Those of :func:`run_stage`, and of :func:`torch_pruning_mope.distill`, ``steps`` among them.

    Returns:
        The student.
    """
    return run_stage(model, calibration, train, path=path, width=width, parameters=parameters, **options)


def finetune_stage(
    model: nn.Module,
    calibration: Pairs,
    train: Batches,
    *,
    path: str | Path | RunFolder,
    width: Budget | None = None,
    parameters: Budget | None = None,
    finetune_steps: int = 0,
    **options: Any,
) -> DualEncoder:
    """Mutates ``model``: fine-tunes it if asked to, prunes width, distils, prunes depth, distils.

    The fine-tuning stage of MoPE-CLIP (arXiv 2403.07839). The fine-tuned model is the teacher. For one tower alone, as in the
    paper, give budgets of that tower: ``{"image": "50%"}``.

    Args:
        model: A CLIP; a fine-tuned one, if there are no steps to fine-tune it. To go on with a run, pass it as it was.
        calibration: As for :func:`pretrain_stage`, like the following.
        train: Training pairs, or batches of them.
        path: Folder of the run.
        width: Parameters left once heads and neurons have gone.
        parameters: Parameters left once layers have gone too; None for all layers kept, and one distillation.
        finetune_steps: Steps of contrastive training before anything else, with the other arguments of the distillation.
        **options: Those of :func:`run_stage`, and of :func:`torch_pruning_mope.distill`, for each training.

    Returns:
        The student.
    """
    return run_stage(
        model,
        calibration,
        train,
        path=path,
        width=width,
        parameters=parameters,
        distil_between=True,
        finetune_steps=finetune_steps,
        **options,
    )


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
    rounds: int = 1,
    spacing: Spacing = "geometric",
    metric: MetricLike = "contrastive_loss",
    groups: int = 16,
    round_to: int = 1,
    uniform: bool = False,
    cache_teacher: bool = False,
    progress: bool = True,
    **training: Any,
) -> DualEncoder:
    """Mutates ``model``: either stage, with all its options. The package's text says what the folder holds.

    Args:
        model: The model. To go on with a run, pass it as it was.
        calibration: Pairs to score on.
        train: Training pairs, or batches of them.
        path: Folder of the run.
        width: Parameters left once heads and neurons have gone; None for depth alone.
        parameters: Parameters left once layers have gone too; None for width alone.
        distil_between: Whether to distil after width and after depth, and not only in the end.
        finetune_steps: Steps of contrastive training before anything is scored.
        rounds: In how many rounds the budgets are reached: a little of the width and of the depth, then distillation, as often
            as this. With layers to remove, ``width`` says how much heads and neurons contribute: its N-th root is the share
            that they leave of what a round finds.
        spacing: Whether every round leaves the same share, or removes the same number of parameters.
        metric: What units are scored by.
        groups: Neuron groups per MLP.
        round_to: Multiple that the neurons left in every MLP are of.
        uniform: Whether all layers of a tower keep as many heads and neurons.
        cache_teacher: Run the teacher once on each training pair and keep its outputs in the folder for all trainings: the same
            losses to rounding. With hidden states, that is a number per token, channel and layer, for each image and caption.
        progress: Whether to show progress bars.
        **training: Arguments of :func:`torch_pruning_mope.distill`, for each training.

    Returns:
        The student.

    Raises:
        ValueError: If an argument cannot be, a budget cannot be met, or ``path`` holds another run. Nothing has been scored or
            trained then, but for a depth that turns out to be out of reach once the width has gone.
    """
    encoder = DualEncoder(model)
    if rounds < 1 or finetune_steps < 0 or spacing not in {"geometric", "linear"}:
        raise ValueError(
            "rounds must be at least 1, finetune_steps at least 0 and spacing 'geometric' or 'linear'; found "
            f"{rounds}, {finetune_steps} and {spacing!r}."
        )
    if cache_teacher and not isinstance(train, Pairs):
        raise ValueError(
            "train must be Pairs for cache_teacher=True, whose views are always the same; found batches. Gather them with "
            "gather_pairs, or pass cache_teacher=False."
        )
    check_training(train, **training)
    check_budgets(encoder, width, parameters, groups=groups, round_to=round_to, uniform=uniform)
    about = {
        "begun_by": "stage",
        "width": width,
        "parameters": parameters,
        "distil_between": distil_between,
        "finetune_steps": finetune_steps,
        "rounds": rounds,
        "spacing": spacing,
        "metric": resolve_metric(metric).name,
        "groups": groups,
        "round_to": round_to,
        "uniform": uniform,
        "calibration": calibration.fingerprint(),
        "weights": fingerprint(model),
    }
    folder = path if isinstance(path, RunFolder) else RunFolder(path)
    with folder.held():
        folder.claim(about)
        run = StageRun(encoder, calibration, train, folder, metric, groups, progress, training, cache_teacher)
        if finetune_steps:
            run.train("training-dense", loss=_contrastive(training.get("loss")), steps=finetune_steps)
        run.teach_by(DualEncoder(copy.deepcopy(model).requires_grad_(False)))
        _prune_and_train(run, width, parameters, rounds, spacing, distil_between, round_to=round_to, uniform=uniform)
    return encoder


def _prune_and_train(
    run: StageRun,
    width: Budget | None,
    parameters: Budget | None,
    rounds: int,
    spacing: Spacing,
    distil_between: bool,
    **settings: Any,
) -> None:
    """Mutates the run's model: its rounds."""
    encoder = run.encoder
    whole = footprints(encoder)
    for place in range(1, rounds + 1):
        step = "" if rounds == 1 else f"round-{place}/"
        target = partial(round_budget, whole=whole, place=place, rounds=rounds, spacing=spacing)
        if width is not None:
            alone = parameters is None or rounds == 1
            run.prune(step + "width", target(width, now=footprints(encoder), alone=alone), **settings)
            if distil_between:
                run.train(step + "training-width")
        if parameters is not None:
            run.prune(step + "depth", target(parameters, now=footprints(encoder), alone=True))
        if not distil_between or parameters is not None:
            run.train(step + ("training-depth" if distil_between else "training"))


def _contrastive(loss: DistillationLoss | None) -> DistillationLoss:
    """The part of an objective that needs no teacher."""
    return DistillationLoss(similarity=0.0, features=0.0, sigmoid=loss is not None and loss.sigmoid)
