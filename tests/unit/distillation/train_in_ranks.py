"""Run under torchrun by test_train.py."""

import sys
from pathlib import Path

import torch

import torch_pruning_mope as mope
from tests.unit.distillation.test_train import QUICK, student_of, weights
from tests.unit.models import clip, pairs_for
from torch_pruning_mope.distillation import distil

if __name__ == "__main__":
    torch.set_num_threads(1)
    teacher = mope.DualEncoder(clip())
    student = student_of(teacher)
    history = distil(student, pairs_for(clip(), 40, captions=2), teacher=teacher, steps=4, **QUICK)
    losses = torch.tensor([entry.loss for entry in history])
    if int(torch.distributed.get_rank() if torch.distributed.is_initialized() else 0) == 0:
        torch.save({"weights": weights(student), "losses": losses}, Path(sys.argv[1]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
