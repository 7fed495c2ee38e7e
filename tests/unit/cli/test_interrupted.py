"""Commands that are interrupted go on to the same result."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from torch_pruning_mope.runs import RunFolder

from ..ranks import CLEAN
from .interruptions import BEGINS, SIGNALS, call_of, difference, in_child, interrupted


@pytest.mark.parametrize("command", ["score", "prune", "distill"])
def test_interrupted_commands_go_on_to_the_same_result(command: str, begun: Path, tmp_path: Path, small: Path) -> None:
    """At a moment for each signal, one after another in one folder."""
    before = None if command in BEGINS else begun
    whole, run = tmp_path / "whole-run", tmp_path / "interrupted-run"
    if before is not None:
        shutil.copytree(before, whole)
    code, steps = in_child(call_of(command, whole, small))
    assert code == 0
    rng = random.Random(f"{command} 0")
    moments = [(rng.randrange(1, steps // 2), int(number)) for number in SIGNALS]
    ends = interrupted(command, before, run, small, moments)
    assert ends == [130, -signal.SIGTERM, -signal.SIGKILL]
    assert difference(run, whole) == []
    assert not (run / ".lock").exists()


def test_an_interruption_at_start_up_is_one_line(tmp_path: Path) -> None:
    """While modules are imported: a signal as soon as torch is."""
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "sys.addaudithook(lambda e, a: e == 'import' and a[0] == 'torch' and signal.raise_signal(signal.SIGINT))\n"
    code += "from torch_pruning_mope.__main__ import main\nmain()"
    found = subprocess.run(
        [sys.executable, "-c", code, "score", str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (130, "")
    assert found.stderr.strip() == "Interrupted: the same command goes on from here."
    assert not (tmp_path / "run").exists()


def _holds(run: Path, held: Path) -> None:
    with RunFolder(run, command="score").held():
        held.touch()
        time.sleep(60)


def test_two_runs_of_one_folder_at_once(begun: Path, tmp_path: Path, small: Path) -> None:
    """Processes: one works, the other is told who holds the folder; once the first is killed, the second works."""
    child = CLEAN.Process(target=_holds, args=(begun, tmp_path / "held"))
    child.start()
    try:
        while not (tmp_path / "held").exists():
            time.sleep(0.02)
        code, _ = in_child(("prune", begun, "--no-reconstruct"))
        assert code == 1
    finally:
        child.kill()
        child.join()
    assert in_child(("prune", begun, "--no-reconstruct"))[0] == 0
