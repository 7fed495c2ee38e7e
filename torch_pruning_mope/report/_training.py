"""The training log: one step per line."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..distillation import TrainingStep
from ._json import read_jsonl
from ._text import clean


def read_training(path: Path) -> list[TrainingStep]:
    """Reads training.jsonl.

    Args:
        path: The file.

    Returns:
        The steps, in the order of the file.

    Raises:
        ValueError: If a line is damaged, or no training step.
    """
    return [_step(path, number, entry) for number, entry in enumerate(read_jsonl(path), start=1)]


def stretches(steps: list[TrainingStep]) -> list[list[TrainingStep]]:
    """Runs of steps whose numbers rise: another begins where training began again, or went on from a checkpoint before.

    Args:
        steps: The steps.

    Returns:
        The runs, one after another.
    """
    found = [steps[:1]] if steps else []
    for before, step in pairwise(steps):
        if step.step <= before.step:
            found.append([])
        found[-1].append(step)
    return found


def _step(path: Path, number: int, entry: Any) -> TrainingStep:
    try:
        terms = {clean(name, 40): float(value) for name, value in entry.get("terms", {}).items()}
        step = TrainingStep(int(entry["step"]), float(entry["loss"]), terms, float(entry.get("learning_rate", 0.0)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}, entry {number} must be a TrainingStep; found otherwise: {error!r}. Delete it."
        ) from error
    if not all(map(math.isfinite, [step.loss, step.learning_rate, *step.terms.values()])):
        raise ValueError(f"{path}, entry {number} must hold finite numbers; found {step}. Delete it.")
    return step
