"""Processes for tests: forks of one that has imported the package and done nothing, whatever the tests' own has done before."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

import torch.distributed as dist

CLEAN = multiprocessing.get_context("forkserver")
"""A fork of the tests' own process could wait forever for a lock that one of its threads held."""
CLEAN.set_forkserver_preload(["torch_pruning_mope.cli", "tests.unit.models"])


def run_ranks(main: Callable[..., Any], *arguments: Any, world: int = 2) -> list[int]:
    """Calls ``main(rank, *arguments)`` in each rank; once one fails, ends the others.

    Returns:
        How each has ended, negative for a signal.
    """
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    launched = {
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "TORCHELASTIC_RUN_ID": "tests", "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    ranks = [CLEAN.Process(target=_run, args=(launched, rank, main, arguments)) for rank in range(world)]
    try:
        for rank in ranks:
            rank.start()
        while all(not rank.exitcode for rank in ranks) and (left := [rank for rank in ranks if rank.exitcode is None]):
            assert wait([rank.sentinel for rank in left], timeout=300), "ranks that hang"
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    return [rank.exitcode or 0 for rank in ranks]


def _run(launched: dict[str, str], rank: int, main: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= launched | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    main(rank, *arguments)
