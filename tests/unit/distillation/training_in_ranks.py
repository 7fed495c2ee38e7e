"""The same training in one process, in two with everything each, in two with a part each."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import torch_pruning_mope as mope
from tests.unit.distillation.test_train import QUICK, Killed, student_of, weights
from tests.unit.models import clip, pairs_for
from torch_pruning_mope.distillation import DistillationLoss, TeacherCache, distill
from torch_pruning_mope.distillation import _cache as cache_module
from torch_pruning_mope.distillation._shard import Shards

TRAINING: dict[str, Any] = {**QUICK, "steps": 4, "save_every": 2, "ema": 0.8}
CASES: dict[str, dict[str, Any]] = {
    "all terms": {"loss": DistillationLoss.paper()},
    "in chunks": {"loss": DistillationLoss(sigmoid=True), "chunks": 2, "ema": None, "max_norm": None},
}


class _Dies:
    """Stops every rank, at the step after so many."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __enter__(self) -> None:
        self.patch = pytest.MonkeyPatch()
        forward = DistillationLoss.forward

        def counted(loss: DistillationLoss, *args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Killed
            return forward(loss, *args, **kwargs)

        self.patch.setattr(DistillationLoss, "forward", counted)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


def student() -> mope.DualEncoder:
    """In float64: Adam makes much of rounding where a gradient is nearly none. Some is not trained, some of no use."""
    made = student_of(mope.DualEncoder(clip(init_logit_bias=-2.0)))
    made.model.double().positional_embedding.requires_grad_(False)
    made.model.idle = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    return made


def data() -> mope.Pairs:
    pairs = pairs_for(clip(), 40, captions=2)
    return mope.Pairs(pairs.images.double(), pairs.tokens, pairs.image_index)


def teacher() -> mope.DualEncoder:
    return mope.DualEncoder(clip(init_logit_bias=-2.0).double())


def run(*, made: mope.DualEncoder | None = None, **arguments: Any) -> dict[str, torch.Tensor]:
    trained = student() if made is None else made
    history = distill(trained, data(), **{"teacher": teacher(), **TRAINING, **CASES["all terms"], **arguments})
    assert not trained.model.training
    kinds = {type(parameter) for parameter in trained.model.parameters()}
    assert kinds == {torch.nn.Parameter}, kinds
    return {"weights": weights(trained), "losses": torch.tensor([entry.loss for entry in history], dtype=torch.float64)}


def halved(shard: bool) -> torch.Tensor:
    """Losses of a student in float32, since autocast leaves float64 alone."""
    made = mope.DualEncoder(clip())
    history = distill(made, pairs_for(clip(), 16), steps=2, precision="bf16", shard=shard, **QUICK)
    return torch.tensor([entry.loss for entry in history])


def by_chance() -> mope.DualEncoder:
    """With dropout, another on each rank."""
    made = student()
    made.model.visual.transformer.resblocks[0].register_forward_hook(
        lambda module, _, output: torch.nn.functional.dropout(output, 0.2, module.training)
    )
    return made


def parts() -> torch.Tensor:
    """Share of the copy and of its average that this rank holds."""
    made = student()
    total = sum(parameter.numel() for parameter in made.model.parameters())
    shards = Shards(made, torch.device("cpu"), hidden=False, ema=0.5)
    assert shards.average is not None
    local = [
        sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in module.parameters())
        for module in (shards.model, shards.average)
    ]
    return torch.tensor(local) / total


def caches(rank: int, out: Path) -> dict[str, Any]:
    """A cache in a folder that both see, and in one of each; and how many shards this rank wrote."""
    written, found, original = list[Path](), dict[str, Any](), cache_module.save_tensors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "save_tensors", lambda file, *rest: (written.append(file), original(file, *rest)))
        for name, path in (("shared", out / "teacher"), ("own", out / f"teacher of {rank}")):
            kept = TeacherCache.of(teacher(), data(), path=path, shard_size=20)
            found[name] = kept.encoded(torch.arange(40), torch.arange(80)).texts
            found[f"{name}, files"] = sorted(file.name for file in path.iterdir())
            dist.barrier()
    return found | {"written": [file.parent.name for file in written]}


def refused(**arguments: Any) -> str:
    try:
        run(**arguments)
    except ValueError as error:
        return str(error)
    return "nothing"


def main(rank: int, out: Path) -> dict[str, Any]:
    """Results of this rank of two."""
    found: dict[str, Any] = {}
    for case, arguments in CASES.items():
        found[f"{case}, whole"] = run(**arguments)
        found[f"{case}, in shards"] = run(shard=True, path=out / case.replace(" ", "-"), **arguments)
    found["bf16"] = {shard: halved(shard) for shard in (False, True)}
    interrupted = student()
    before = weights(interrupted)
    with suppress(Killed), _Dies(3):
        run(shard=True, path=out / "interrupted", made=interrupted)
    found["left as it was"] = torch.equal(weights(interrupted), before)
    if rank == 0:
        shutil.copytree(out / "interrupted", out / "for one")
        shutil.copytree(out / "interrupted", out / "for 0")  # the other rank's folder, "for 1", is empty
    dist.barrier()
    found["other seed"] = refused(path=out / "interrupted", seed=1)
    found["of each its own"] = refused(path=out / f"for {rank}", steps=4 + rank)
    found["gone on"] = run(shard=True, path=out / "interrupted")
    found["gone on, whole"] = run(path=out / f"for {rank}")
    found["by chance"] = run(made=by_chance())
    with suppress(Killed), _Dies(3):
        run(made=by_chance(), path=out / "chance interrupted")
    found["by chance, gone on"] = run(made=by_chance(), path=out / "chance interrupted")
    return found | {"shares": parts(), "caches": caches(rank, out)}
