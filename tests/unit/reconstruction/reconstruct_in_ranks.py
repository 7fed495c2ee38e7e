"""A user's script that knows nothing of ranks; run alone or in each of several."""

import copy
from pathlib import Path

import torch

import torch_pruning_mope as mope
from tests.unit.models import clip, pairs_for
from tests.unit.reconstruction.oracle import cut


def main(rank: int, out: Path) -> None:
    torch.set_num_threads(1)
    dense = mope.DualEncoder(clip().double())
    student = mope.DualEncoder(copy.deepcopy(dense.model))
    cut(student)
    pairs = pairs_for(dense.model, 30)
    pairs = mope.Pairs(pairs.images.double(), pairs.tokens)
    mope.reconstruct(student, dense, pairs, batch_size=4, progress=False)
    torch.save(student.model.state_dict(), out / f"rank{rank}.pt")
