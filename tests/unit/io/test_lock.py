"""Who holds a folder: one process, one thread; nobody once it is dead."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from torch_pruning_mope._io._lock import LOCK, hold
from torch_pruning_mope.errors import FolderInUseError

HOLDS = """
import os, sys, time
from pathlib import Path
from torch_pruning_mope._io._lock import hold
with hold(Path(sys.argv[1]), "mope score"):
    if os.fork() == 0:  # a worker that lives on
        print("held", flush=True)
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""


def test_another_process_is_told_who_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FolderInUseError, match=rf"held by process {process.pid} on .* \(mope score, since "):
            hold(folder).__enter__()
        process.kill()
        process.wait()
        with hold(folder):
            assert (folder / LOCK).exists()
        assert not (folder / LOCK).exists()
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_thread_may_enter_again_and_others_may_not(tmp_path: Path) -> None:
    refused: list[BaseException] = []

    def enters() -> None:
        try:
            hold(tmp_path).__enter__()
        except FolderInUseError as error:
            refused.append(error)

    with hold(tmp_path), hold(tmp_path / ".." / tmp_path.name):
        thread = threading.Thread(target=enters)
        thread.start()
        thread.join()
    assert "another thread of this process" in str(refused[0])
    thread = threading.Thread(target=enters)
    thread.start()
    thread.join()
    assert len(refused) == 1


def test_a_folder_that_stays_empty_goes_and_others_stay(tmp_path: Path) -> None:
    with hold(tmp_path / "a" / "b"):
        pass
    assert not list(tmp_path.iterdir())
    with hold(tmp_path / "a" / "b"):
        (tmp_path / "a" / "kept").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]
    with pytest.raises(NotADirectoryError, match="found a file at"):
        hold(tmp_path / "a" / "kept").__enter__()


def _count(folder: Path, counter: Path, rounds: int) -> None:
    done = 0
    while done < rounds:
        try:
            with hold(folder):
                value = int(counter.read_text())
                time.sleep(0.001)
                counter.write_text(str(value + 1))
                done += 1
        except FolderInUseError:
            time.sleep(0.001)


def test_no_two_hold_at_once(tmp_path: Path) -> None:
    """The file is removed and made again between holders, and nothing is lost."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_count, args=(tmp_path / "run", counter, 30)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert counter.read_text() == "90"
