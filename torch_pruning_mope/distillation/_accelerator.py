"""Accelerate's accelerator, for one training alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def accelerator_for(precision: str, log_with: Any, folder: Path | None) -> Iterator[Any]:
    """An accelerator whose settings end with it.

    Accelerate keeps one set of settings per process and refuses a second precision. Those of this training are put in their
    place, and what was there before, such as an accelerator of the user's own, is put back on every path. The process group
    stays.

    Args:
        precision: Mixed precision.
        log_with: A tracker, several, or None.
        folder: Where trackers write that write files.

    Yields:
        The accelerator, which the extra ``train`` installs. Its trackers are finished in the end.

    Raises:
        ImportError: If Accelerate, or a tracker, is not installed.
        ValueError: If a tracker has no folder to write to, or the precision is not for this device.
        NotImplementedError: If it is configured to shard the model.
        RuntimeError: If it would train in this process alone, of several that were launched together.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError as error:
        raise ImportError('distil needs Accelerate: pip install "torch-pruning-mope[train]"') from error
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
                "it, as torchrun does; distil(shard=True) is what spreads a student over ranks here."
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
