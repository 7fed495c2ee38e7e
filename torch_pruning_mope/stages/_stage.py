"""Both stages: prune width, prune depth, distil, in some number of rounds."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..data import Pairs
from ..distillation import DistillationLoss, check_training, distil
from ..encoder import DualEncoder
from ..metrics import MetricLike, resolve_metric
from ..planning import Budget, Plan, footprints, make_plan, parse_amount, parts_of, plan_range
from ..scoring import fingerprint, score
from ._folder import RunFolder
from ._rounds import Spacing, round_budget

Batches = Pairs | Iterable[tuple[Tensor, Tensor]]


def pretrain_stage(
    model: nn.Module,
    calibration: Pairs,
    train: Batches,
    *,
    path: str | Path,
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
        train: Training pairs, or batches of them; see :func:`torch_pruning_mope.distil`.
        path: Folder of the run.
        width: Parameters left once heads and neurons have gone: a share, a number, or one for each tower; None for all.
        parameters: Parameters left once layers have gone too, likewise, of the whole model; None for all layers kept.
        **options: Those of :func:`run_stage`, and of :func:`torch_pruning_mope.distil`, ``steps`` among them.

    Returns:
        The student.
    """
    return run_stage(model, calibration, train, path=path, width=width, parameters=parameters, **options)


def finetune_stage(
    model: nn.Module,
    calibration: Pairs,
    train: Batches,
    *,
    path: str | Path,
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
        **options: Those of :func:`run_stage`, and of :func:`torch_pruning_mope.distil`, for each training.

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
    path: str | Path,
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
        progress: Whether to show progress bars.
        **training: Arguments of :func:`torch_pruning_mope.distil`, for each training.

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
    check_training(train, **training)
    _check_budgets(encoder, width, parameters, groups=groups, round_to=round_to, uniform=uniform)
    folder = RunFolder(
        path,
        {
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
        },
    )
    run = _Run(encoder, calibration, train, folder, progress, training)
    if finetune_steps:
        own: DistillationLoss | None = training.get("loss")
        alone = DistillationLoss(similarity=0.0, features=0.0, hidden=0.0, sigmoid=own is not None and own.sigmoid)
        run.train("training-dense", loss=alone, steps=finetune_steps)
    run.teacher = DualEncoder(copy.deepcopy(model).requires_grad_(False))
    whole = footprints(encoder)
    for place in range(1, rounds + 1):
        prefix = "" if rounds == 1 else f"round-{place}/"
        after = {"width": "training-width", "depth": "training-depth"} if distil_between else {"depth": "training"}
        for part, budget in (("width", width), ("depth", parameters)):
            if budget is not None:
                alone_in_it = part == "depth" or parameters is None or rounds == 1
                target = round_budget(budget, whole, footprints(encoder), place, rounds, spacing, alone=alone_in_it)
                settings = {"round_to": round_to, "uniform": uniform} if part == "width" else {}
                run.prune(prefix + part, target, metric=metric, groups=groups, **settings)
            if part in after and (budget is not None or not distil_between):
                run.train(prefix + after[part])
    return encoder


@dataclass
class _Run:
    """What the steps of a run share.

    Attributes:
        encoder: The model that becomes the student.
        calibration: Pairs to score on.
        train_on: Pairs to train on.
        folder: Where everything is.
        progress: Whether to show progress bars.
        training: Arguments of :func:`torch_pruning_mope.distil`.
        teacher: The whole model; None before it is there.
    """

    encoder: DualEncoder
    calibration: Pairs
    train_on: Batches
    folder: RunFolder
    progress: bool
    training: dict[str, Any]
    teacher: DualEncoder | None = None

    def prune(self, step: str, budget: Budget | None, *, metric: MetricLike, groups: int, **settings: Any) -> None:
        """Applies a plan: the one that is there, if the run got so far before."""
        file = self.folder.path / f"{step}-plan.json"
        if file.exists():
            plan = Plan.load(file)
            self.folder.tell(step, f"took up the plan that was there: {_told(plan)}")
        elif budget is None:
            self.folder.tell(step, "left as it is: no more is left than the budget of this round")
            return
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            kinds = ("head", "neurons") if step.endswith("width") else ("block",)
            if kinds == ("block",):
                plan_range(self.encoder, kinds=kinds).check(parameters=budget)
            table = score(
                self.encoder,
                self.calibration,
                metric=metric,
                kinds=kinds,
                groups=groups,
                interaction="joint" if step.endswith("width") else "greedy",
                path=self.folder.path / f"{step}.json",
                progress=self.progress,
            )
            plan = make_plan(self.encoder, table, parameters=budget, **settings)
            self.folder.write(f"{step}-plan.json", plan.to_json())
            self.folder.tell(step, f"scored {len(table.scores)} units and planned: {_told(plan)}")
        plan.apply(self.encoder)

    def train(self, step: str, **other: Any) -> None:
        """Trains the student, from its last checkpoint if there is one."""
        log = self.folder.training_log(step)
        arguments = {**self.training, **other}
        told: Callable[[Any], object] = arguments.pop("on_step", lambda _: None)
        count = 0

        def on_step(entry: Any) -> None:
            nonlocal count
            count += 1
            log.add(entry)
            told(entry)

        history = distil(
            self.encoder,
            self.train_on,
            teacher=self.teacher,
            path=self.folder.path / step,
            on_step=on_step,
            progress=self.progress,
            **arguments,
        )
        log.finish(history)
        self.folder.tell(step, f"trained {count} steps; {len(history) - count} were done before")


def _told(plan: Plan) -> str:
    return "; ".join(str(plan).splitlines())


def _check_budgets(
    encoder: DualEncoder,
    width: Budget | None,
    parameters: Budget | None,
    *,
    groups: int,
    round_to: int,
    uniform: bool,
) -> None:
    """Raises unless budgets can be met, as far as is known before anything is scored."""
    if width is None and parameters is None:
        raise ValueError("width or parameters must be given; found neither. Say how many parameters may be left.")
    reachable = partial(plan_range, encoder, groups=groups, round_to=round_to, uniform=uniform)
    if width is not None:
        reachable(kinds=("head", "neurons")).check(parameters=width)
    if parameters is None:
        return
    found = reachable(kinds=("block",) if width is None else ("head", "neurons", "block"))
    found.check(parameters=parameters)
    if width is None:
        return
    before, after = (dict(parts_of("parameters", budget)) for budget in (width, parameters))
    for towers in before.keys() & after.keys():
        total = sum(found.largest[tower].parameters for tower in towers)
        least, most = (parse_amount("parameters", budget[towers], total) for budget in (after, before))
        if least >= most:
            raise ValueError(
                f"parameters must be less than width, so that layers go after heads and neurons; found {least:.4g} and "
                f"{most:.4g}. Leave parameters out to keep all layers."
            )
