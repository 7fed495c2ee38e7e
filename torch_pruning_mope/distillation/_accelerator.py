"""Accelerate's accelerator, for one training alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def accelerator_for(precision: str, log_with: Any, folder: Path | None) -> Iterator[Any]:
    """Yields an accelerator, and afterwards puts back the settings that Accelerate keeps per process.

    Accelerate refuses a second precision in one process; each training has its own. Trackers are finished in the end, and the
    process group stays. Raises as :func:`distill` does.
    """  # noqa: DOC501
    from accelerate import Accelerator  # takes a second to import
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import DistributedDataParallelKwargs

    _check_trackers(log_with, folder)
    shared: list[dict[str, Any]] = [AcceleratorState._shared_state, GradientState._shared_state]
    before = [dict(state) for state in shared]
    accelerator = None
    try:
        for state in shared:
            state.clear()
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else each of torchrun's processes would be alone
            mixed_precision=precision,
            log_with=log_with,
            project_dir=folder,
            kwargs_handlers=[DistributedDataParallelKwargs()],
        )
        kind = str(accelerator.distributed_type).rsplit(".", 1)[-1]
        if kind in {"FSDP", "DEEPSPEED", "MEGATRON_LM"}:
            raise NotImplementedError(
                f"Accelerate must be configured for one process or for data parallelism (DDP); found {kind}. Launch without "
                "it, as torchrun does; distill(shard=True) spreads a student over ranks here."
            )
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if accelerator.num_processes != launched:
            raise RuntimeError(
                f"Accelerate must train in the {launched} processes that were launched together; found it set up for "
                f"{accelerator.num_processes}, as the first accelerator in this process was. Make that with cpu=True where "
                "there are no GPUs, or none of your own."
            )
        if precision == "fp16" and accelerator.device.type == "cpu":
            raise ValueError(
                "precision must be 'no' or 'bf16' on a CPU; found 'fp16', which Accelerate would leave out there."
            )
        yield accelerator
    finally:
        for tracker in [] if accelerator is None else accelerator.trackers:
            tracker.finish()  # and not end_training(), which ends the process group too
        for state, content in zip(shared, before, strict=True):
            state.clear()
            state.update(content)


def _check_trackers(log_with: Any, folder: Path | None) -> None:
    """Raises unless trackers are there, and have a place to write to; Accelerate leaves out those that are not installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    wanted = {str(each) for each in (log_with if isinstance(log_with, list | tuple) else [log_with])}
    available = {str(name) for name in get_available_trackers()}
    names = wanted & {str(name) for name in LoggerType} - {"all"} | (available if "all" in wanted else set())
    if missing := sorted(names - available):
        raise ImportError(
            f"log_with must name trackers that are installed; found {', '.join(missing)}. Install it first."
        )
    placed = sorted(name for name in names if LOGGER_TYPE_TO_CLASS[name].requires_logging_directory)
    if placed and folder is None:
        raise ValueError(
            f"path must be given for log_with={placed[0]!r}, which writes files; found None. They go to its folder 'mope'."
        )
