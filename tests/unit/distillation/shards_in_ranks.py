"""The same training in one process, in two with everything each, in two with a part each. Run by test_shards.py in two."""

import shutil
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import torch_pruning_mope as mope
from tests.unit.distillation.test_train import QUICK, Killed, student_of, weights
from tests.unit.models import clip, pairs_for
from torch_pruning_mope.distillation import DistillationLoss, distil
from torch_pruning_mope.distillation._shard import Shards

TRAINING: dict[str, Any] = {**QUICK, "steps": 5, "save_every": 2, "ema": 0.8}
CASES: dict[str, dict[str, Any]] = {
    "all terms": {},
    "in chunks": {"loss": DistillationLoss(hidden=0.0), "chunks": 2, "ema": None},
    "sigmoid": {"loss": DistillationLoss(hidden=0.0, sigmoid=True), "max_norm": None},
}


class Dies(DistillationLoss):
    """Stops every rank, at the step after so many."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise Killed
        return super().forward(*args, **kwargs)


def student() -> mope.DualEncoder:
    """In float64: Adam makes much of rounding where a gradient is nearly none. Some is not trained, some of no use."""
    made = student_of(mope.DualEncoder(clip(init_logit_bias=-2.0)))
    made.model.double().positional_embedding.requires_grad_(False)
    made.model.idle = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    return made


def run(*, made: mope.DualEncoder | None = None, **arguments: Any) -> dict[str, torch.Tensor]:
    trained = student() if made is None else made
    teacher = mope.DualEncoder(clip(init_logit_bias=-2.0).double())
    pairs = pairs_for(clip(), 40, captions=2)
    pairs = mope.Pairs(pairs.images.double(), pairs.tokens, pairs.image_index)
    history = distil(trained, pairs, teacher=teacher, **{**TRAINING, **arguments})
    assert not trained.model.training
    kinds = {type(parameter) for parameter in trained.model.parameters()}
    assert kinds == {torch.nn.Parameter}, kinds
    return {"weights": weights(trained), "losses": torch.tensor([entry.loss for entry in history], dtype=torch.float64)}


def halved(shard: bool) -> torch.Tensor:
    """Losses of a student in float32, since autocast leaves float64 alone."""
    made = mope.DualEncoder(clip())
    history = distil(made, pairs_for(clip(), 16), steps=3, precision="bf16", shard=shard, **QUICK)
    return torch.tensor([entry.loss for entry in history])


def by_chance() -> mope.DualEncoder:
    """With dropout, another on each rank."""
    made = student()
    made.model.visual.transformer.resblocks[0].register_forward_hook(
        lambda module, _, output: torch.nn.functional.dropout(output, 0.2, module.training)
    )
    return made


def parts() -> dict[str, Any]:
    """How much of the copy and of its average this rank holds."""
    made = student()
    total = sum(parameter.numel() for parameter in made.model.parameters())
    shards = Shards(made, torch.device("cpu"), hidden=False, ema=0.5)
    assert shards.average is not None
    local = [
        sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in module.parameters())
        for module in (shards.model, shards.average)
    ]
    return {"shares": torch.tensor(local) / total}


def main() -> None:
    torch.set_num_threads(1)
    out, rank = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", f"file://{out}/store", rank=rank, world_size=2, timeout=timedelta(seconds=240))
    found: dict[str, Any] = {}
    for case, arguments in CASES.items():
        found[f"{case}, whole"] = run(**arguments)
        found[f"{case}, in shards"] = run(shard=True, path=out / case.replace(" ", "-"), **arguments)
    found["bf16"] = {shard: halved(shard) for shard in (False, True)}
    interrupted = student()
    before = weights(interrupted)
    try:
        run(shard=True, path=out / "interrupted", loss=Dies(3), made=interrupted)
    except Killed:
        found["left as it was"] = torch.equal(weights(interrupted), before)
    if rank == 0:
        shutil.copytree(out / "interrupted", out / "for one")
        shutil.copytree(out / "interrupted", out / "for whole")
    dist.barrier()
    found["gone on"] = run(shard=True, path=out / "interrupted")
    found["gone on, whole"] = run(path=out / "for whole")
    found["by chance"] = run(made=by_chance(), path=out / "chance")
    with suppress(Killed):
        run(made=by_chance(), path=out / "chance interrupted", loss=Dies(3))
    dist.barrier()
    found["by chance, gone on"] = run(made=by_chance(), path=out / "chance interrupted")
    found |= parts()
    torch.save(found, out / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
