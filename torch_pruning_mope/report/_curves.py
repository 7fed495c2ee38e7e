"""Training curves: the loss, its terms, and the learning rate."""

import statistics
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..distillation import TrainingStep
from ._theme import BLUE, GREY
from ._training import stretches

_COLUMNS = 2


def draw_curves(steps: Sequence[TrainingStep]) -> Figure:
    """The loss, each of its terms and the learning rate over steps, each on its own scale.

    Args:
        steps: The steps.

    Returns:
        The figure.
    """
    terms = list(dict.fromkeys(name for step in steps for name in step.terms))
    panels: list[tuple[str, Callable[[TrainingStep], float | None]]] = [("loss", lambda step: step.loss)]
    panels += [(f"term: {name}", lambda step, name=name: step.terms.get(name)) for name in terms]  # type: ignore[misc]
    panels.append(("learning rate", lambda step: step.learning_rate))
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(6.6, 0.4 + 1.7 * rows), layout="constrained")
    grid = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for axes, (title, value) in zip(grid, panels, strict=False):
        for run in stretches(list(steps)):
            _curve(axes, run, value, smooth=title != "learning rate")
        axes.set_title(title)
        axes.grid(axis="y")
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[max(0, len(panels) - _COLUMNS) : len(panels)]:
        axes.set_xlabel("step")
    return figure


def _curve(
    axes: Axes, steps: Sequence[TrainingStep], value: Callable[[TrainingStep], float | None], *, smooth: bool
) -> None:
    """Every step, faint, and the running median of a twentieth of them."""
    points = [(step.step, found) for step in steps if (found := value(step)) is not None]
    numbers = [step for step, _ in points]
    values = [found for _, found in points]
    half = len(values) // 40
    if not smooth or half == 0:
        axes.plot(numbers, values, color=BLUE, linewidth=1.6, marker="o" if len(points) == 1 else "")
        return
    axes.plot(numbers, values, color=GREY, linewidth=0.8, alpha=0.6)
    medians = [statistics.median(values[max(0, place - half) : place + half + 1]) for place in range(len(values))]
    axes.plot(numbers, medians, color=BLUE, linewidth=1.8)
