"""Steps of a run, with or without training: score and plan, remove and reconstruct, train. Each resumes what is there."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..cost import TOWERS, footprints
from ..data import Pairs
from ..distillation import TeacherCache, TrainingStep, distill
from ..dual_encoder import DualEncoder
from ..errors import PruningMismatchError
from ..planning import Limit, Plan, Sizes, make_plan, sizes_of
from ..pruning import remove_units
from ..reconstruction import reconstruct
from ..scoring import Ranks, score
from ._folder import RunFolder
from ._training_log import TrainingLog

Batches = Pairs | Iterable[tuple[Tensor, Tensor]]


@dataclass
class Pipeline:
    """State that the steps of one run share.

    Attributes:
        dense: The model before; left as it is. The student is reconstructed onto it.
        pairs: Pairs to score on.
        scoring: Arguments of :func:`torch_pruning_mope.score`.
        planning: Arguments of :func:`torch_pruning_mope.make_plan`.
        refit: Arguments of :func:`torch_pruning_mope.reconstruct`, ``pairs`` among them; None for no reconstruction.
        folder: Where steps are kept; None for nowhere.
        progress: Show progress.
        base: The model that plans are removed from: the dense one, or the student as last trained.
        plans: Plans since then, each for the model that the ones before left.
    """

    dense: DualEncoder
    pairs: Pairs
    scoring: Mapping[str, Any]
    planning: Mapping[str, Any]
    refit: Mapping[str, Any] | None
    folder: RunFolder | None
    progress: bool
    base: DualEncoder = field(init=False)
    plans: list[tuple[str, Plan]] = field(default_factory=list)
    _smaller: DualEncoder | None = None

    def __post_init__(self) -> None:
        self.base = self.dense

    @property
    def current(self) -> DualEncoder:
        """The base without all that was planned since, reconstructed in one go."""
        if not self.plans:
            return self.base
        if self._smaller is None:
            self._smaller = self._rebuilt()
        return self._smaller

    @property
    def sizes(self) -> Sizes:
        """Sizes of the current model; times as they were measured for its plan."""
        if not self.plans:
            return sizes_of(footprints(self.base), {})
        _, plan = self.plans[-1]
        return sizes_of(plan.after, plan.settings.get("latency", {}).get("after", {}))

    def prune(
        self,
        step: str,
        limits: Sequence[Limit],
        ranks: Ranks,
        *,
        files: tuple[str, str],
        until: Callable[[], float | None] = lambda: None,
        **scoring: Any,
    ) -> Plan | None:
        """Plans what goes next, if a limit does not hold yet.

        Args:
            step: Name of the step in the log.
            limits: The limits.
            ranks: Processes that score together.
            files: Names of the plan and of the score table.
            until: Share of the blocks' parameters after which a path may stop; None for the whole path, which is also taken
                if a part of it does not lead to the budget, in a table named ``all-…``.
            **scoring: More arguments of :func:`torch_pruning_mope.score`.

        Returns:
            The plan; None if all limits hold.
        """
        budgets = budgets_of(limits, self.sizes)
        if not budgets:
            self.note(step, "left as it is: its budget holds")
            return None
        plan = ranks.from_first(lambda: self._found(files[0]))
        if plan is None:
            towers = sorted({tower for limit in limits for tower in limit.towers})
            settings = {**self.scoring, "towers": towers, **scoring}
            plan = self._planned(budgets, files[1], ranks, settings, until())
            self.write(files[0], plan.to_json())
            self.note(step, f"scored and planned: {'; '.join(str(plan).splitlines())}")
        else:
            self.note(step, f"resumed the plan that was there: {'; '.join(str(plan).splitlines())}")
        self.plans.append((files[0], plan))
        self._smaller = None
        return plan

    def train(self, step: str, pairs: Batches, teacher: DualEncoder | TeacherCache | None, **arguments: Any) -> None:
        """Trains the current model, from its last checkpoint if there is one; it is the base from then on."""
        if self.folder is None:
            raise ValueError("folder must be given for training; found None.")
        log, count = TrainingLog(self.folder, step), 0
        report: Callable[[Any], object] = arguments.pop("on_step", lambda _: None)

        def on_step(entry: TrainingStep) -> None:
            nonlocal count
            count += 1
            log.add(entry)
            report(entry)

        student = self.current if self.plans else copy.deepcopy(self.base)
        history = distill(
            student,
            pairs,
            teacher=teacher,
            path=self.folder.path / step,
            on_step=on_step,
            progress=self.progress,
            **arguments,
        )
        log.finish(history)
        self.note(step, f"trained {count} steps; {len(history) - count} were done before")
        self.base, self.plans = student, []

    def note(self, step: str, what: str) -> None:
        """Adds a line to the log, if there is one."""
        if self.folder is not None:
            self.folder.note(step, what)

    def write(self, name: str, content: str) -> None:
        """Writes a file of the run, if it has a folder."""
        if self.folder is not None:
            self.folder.write(name, content)

    def _found(self, name: str) -> Plan | None:
        """A plan that an earlier call has left."""
        file = None if self.folder is None else self.folder.path / name
        return Plan.load(file) if file is not None and file.exists() else None

    def _planned(
        self, budgets: Mapping[str, Any], name: str, ranks: Ranks, settings: Mapping[str, Any], until: float | None
    ) -> Plan:
        """A plan by new scores."""
        path = None if self.folder is None else self.folder.path / name
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        table = score(self.current, self.pairs, **settings, until=until, path=path, progress=self.progress)
        try:
            return ranks.from_first(lambda: make_plan(self.current, table, **budgets, **self.planning))
        except ValueError:
            if until is None:
                raise
        folder, _, own = name.rpartition("/")  # minimums needed a longer path
        return self._planned(budgets, f"{folder}/all-{own}", ranks, settings, None)

    def _rebuilt(self) -> DualEncoder:
        smaller = copy.deepcopy(self.base)
        for _, plan in self.plans:
            remove_units(smaller, plan.units, checked=False)
        file, last = self.plans[-1]
        left = footprints(smaller)
        if left != dict(last.after):
            raise PruningMismatchError(f"what is left must be {dict(last.after)}; found {left}.")
        if self.refit is not None:
            report = reconstruct(smaller, self.dense, **self.refit, progress=self.progress)
            self.write(file.replace("plan.json", "reconstruction.json"), report.to_json())
        return smaller


def budgets_of(limits: Sequence[Limit], now: Sizes) -> dict[str, Any]:
    """Arguments of :func:`torch_pruning_mope.make_plan` for the limits that do not hold yet, as far as is known."""
    budgets: dict[str, Any] = {}
    for limit in limits:
        if limit.measure not in now or limit.of(now) > limit.most:
            if limit.towers == TOWERS:
                budgets[limit.measure] = limit.most
            else:
                budgets.setdefault(limit.measure, {})[limit.towers[0]] = limit.most
    return budgets
