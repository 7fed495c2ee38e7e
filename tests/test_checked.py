"""The tests run with the package's types checked."""

import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation

import torch_pruning_mope as mope


def test_wrong_types_are_refused() -> None:
    with pytest.raises(BeartypeCallHintViolation):
        mope.ScoreTable.load(3)  # type: ignore[arg-type]


def test_axes_of_other_lengths_are_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        mope.metrics.ContrastiveLoss(1.0)(torch.ones(2, 3), torch.ones(2, 4))
