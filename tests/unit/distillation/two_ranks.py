"""A script of these tests in two processes."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run_in_two(script: str, out: Path, **environment: str) -> None:
    """Runs a module as ``python -m script out rank``; by hand and not by torchrun, which would import torch once more."""
    shared = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", script, str(out), str(rank)],
            cwd=ROOT,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if "WORLD_SIZE" in environment else shared,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
