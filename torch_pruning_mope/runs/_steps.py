"""The steps of a run: prune by a plan, train; or resume what is there."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..data import Pairs
from ..distillation import DistillationLoss, TeacherCache, TrainingStep, distill
from ..dual_encoder import DualEncoder
from ..metrics import MetricLike
from ..planning import Budget, Plan, make_plan, plan_range
from ..scoring import score
from ._folder import RunFolder
from ._training_log import TrainingLog

Batches = Pairs | Iterable[tuple[Tensor, Tensor]]


@dataclass
class StageRun:
    """What the steps of a stage share.

    Attributes:
        encoder: The model that becomes the student.
        calibration: Pairs to score on.
        train_on: Pairs to train on.
        folder: Where everything is.
        metric: What units are scored by.
        groups: Neuron groups per MLP.
        progress: Whether to show progress bars.
        training: Arguments of :func:`torch_pruning_mope.distill`.
        cache_teacher: Whether what the teacher makes of the pairs is kept in the folder.
        teacher: The whole model, or what is kept of it; None before it is there.
    """

    encoder: DualEncoder
    calibration: Pairs
    train_on: Batches
    folder: RunFolder
    metric: MetricLike
    groups: int
    progress: bool
    training: dict[str, Any]
    cache_teacher: bool
    teacher: DualEncoder | TeacherCache | None = None

    def teach_by(self, teacher: DualEncoder) -> None:
        """Takes the whole model as the teacher of what follows, run once for all if that is asked for."""
        self.teacher = teacher
        if not self.cache_teacher or not isinstance(self.train_on, Pairs):
            return
        loss: DistillationLoss | None = self.training.get("loss")
        precision = self.training.get("teacher_precision") or self.training.get("precision", "no")
        path = self.folder.path / "teacher"
        self.teacher = TeacherCache.of(
            teacher,
            self.train_on,
            path=path,
            hidden=loss is not None and "hidden" in loss.weights,
            precision=None if precision == "no" else precision,
        )
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        self.folder.note("teacher", f"kept what it makes of {self.train_on.num_images} images, {size / 1e6:.1f} MB")

    def prune(self, step: str, budget: Budget | None, **settings: Any) -> None:
        """Mutates the model: applies a plan, the one that is there if the run got so far before."""
        file = self.folder.path / f"{step}-plan.json"
        if file.exists():
            plan = Plan.load(file)
            self.folder.note(step, f"resumed the plan that was there: {_told(plan)}")
        elif budget is None:
            self.folder.note(step, "left as it is: no more is left than the budget of this round")
            return
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            kinds = ("head", "neurons") if step.endswith("width") else ("block",)
            if kinds == ("block",):
                plan_range(self.encoder, kinds=kinds).check(parameters=budget)
            table = score(
                self.encoder,
                self.calibration,
                metric=self.metric,
                kinds=kinds,
                groups=self.groups,
                interaction="joint" if step.endswith("width") else "greedy",
                path=self.folder.path / f"{step}.json",
                progress=self.progress,
            )
            plan = make_plan(self.encoder, table, parameters=budget, **settings)
            self.folder.write(f"{step}-plan.json", plan.to_json())
            self.folder.note(step, f"scored {len(table.scores)} units and planned: {_told(plan)}")
        plan.apply(self.encoder)

    def train(self, step: str, **other: Any) -> None:
        """Mutates the model: trains it, from its last checkpoint if there is one."""
        log = TrainingLog(self.folder, step)
        arguments = {**self.training, **other}
        told: Callable[[Any], object] = arguments.pop("on_step", lambda _: None)
        count = 0

        def on_step(entry: TrainingStep) -> None:
            nonlocal count
            count += 1
            log.add(entry)
            told(entry)

        history = distill(
            self.encoder,
            self.train_on,
            teacher=self.teacher,
            path=self.folder.path / step,
            on_step=on_step,
            progress=self.progress,
            **arguments,
        )
        log.finish(history)
        self.folder.note(step, f"trained {count} steps; {len(history) - count} were done before")


def _told(plan: Plan) -> str:
    return "; ".join(str(plan).splitlines())
