"""All that test_ranks.py compares, in one of two processes: ``python -m tests.unit.distillation.in_two_ranks OUT RANK``."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.unit.distillation import losses_in_ranks, training_in_ranks

if __name__ == "__main__":
    torch.set_num_threads(1)
    out, rank = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", f"file://{out}/store", rank=rank, world_size=2, timeout=timedelta(seconds=240))
    torch.save(losses_in_ranks.run(rank) | training_in_ranks.main(rank, out), out / f"{rank}.pt")
    dist.destroy_process_group()
