"""Commands that are interrupted, again and again, and then finished: by hand, ``python -m tests.unit.cli.interruptions``.

A command runs in a child process that sends itself a signal at its n-th step: an event of Python's audit (a file is opened,
renamed, removed; a module is imported), so that a moment is the same in every run.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import torch_pruning_mope as mope

from ..ranks import CLEAN
from .commands import PAIRS, SCORE, TRAIN, files_of

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
_EVENTS = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "import"})
COMMANDS: dict[str, tuple[object, ...]] = {
    "score": SCORE,
    "plan": ("--parameters", "70%", "--round-to", 8),
    "prune": ("--quiet",),
    "reconstruct": ("--quiet",),
    "distill": TRAIN,
    "evaluate": (*PAIRS, "--no-latency"),
    "report": ("--examples", 0),
    "export": ("--format", "torch"),
    "pretrain-stage": (
        *("--width", "90%", "--parameters", "60%", "--groups", 1, "--steps", 2, "--batch-size", 16),
        *("--train-pairs", 32, *PAIRS),
    ),
    "compress": ("--parameters", "70%", "--groups", 1, "--stages", 2, "--no-time", "--test-pairs", 16, *PAIRS),
}
BEGINS = ("score", "pretrain-stage", "compress")


def in_child(arguments: Sequence[object], at: int | None = None, number: int = signal.SIGKILL) -> tuple[int, int]:
    """Runs a command in a child, which may send itself a signal at a step.

    Returns:
        How it ended, negative for a signal; and how many steps it took.
    """
    steps = CLEAN.Value("q", lock=False)
    child = CLEAN.Process(target=_run, args=([str(argument) for argument in arguments], at, number, steps))
    child.start()
    child.join(300)
    assert child.exitcode is not None, f"{arguments[0]} hangs"
    return child.exitcode, steps.value


def _run(arguments: list[str], at: int | None, number: int, steps: Any) -> None:
    def count(event: str, _: Any) -> None:
        if event in _EVENTS:
            steps.value += 1
            if steps.value == at:
                os.kill(os.getpid(), number)

    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.addaudithook(count)
        from torch_pruning_mope.cli import app

        app(arguments, prog_name="mope")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    finally:
        os._exit(code)


def call_of(command: str, run: Path, small: Path) -> tuple[object, ...]:
    model = ("--model", small) if command in BEGINS else ()
    return (command, run, *model, *COMMANDS[command])


def interrupted(
    command: str, before: Path | None, run: Path, small: Path, moments: Sequence[tuple[int, int]]
) -> list[int]:
    """Interrupts a command at each of some moments, one after another in one folder, and then lets it finish.

    Returns:
        How each of the interrupted ones ended.
    """
    if before is not None:
        shutil.copytree(before, run)
    arguments = call_of(command, run, small)
    ends = [in_child(arguments, at, number)[0] for at, number in moments]
    code, _ = in_child(arguments)
    assert code == 0, f"{command} did not finish after {moments}: {code}"
    return ends


def difference(found: Path, expected: Path) -> list[str]:
    """Names of the files in which two runs differ, but for their own names and files that hold times."""
    ours, wanted = files_of(found), files_of(expected)
    names = sorted(ours.keys() ^ wanted.keys())
    for name in sorted(ours.keys() & wanted.keys()):
        text = ours[name].replace(found.name.encode(), expected.name.encode())
        is_timed = name.endswith((".pt2", "reconstruction.json", "deployment.json")) or name.startswith("figures/")
        if text != wanted[name] and not is_timed:
            names.append(name)
    return [name for name in names if not name.startswith(("training/", "figures/"))]


def small_model(folder: Path) -> Path:
    """The tiny CLIP with two layers in each tower."""
    encoder = mope.DualEncoder(mope.load_tiny_clip())
    for tower in ("image", "text"):
        encoder.remove_blocks(tower, list(range(2, len(encoder.towers[tower].blocks))))  # type: ignore[arg-type,index]
    encoder.save_pretrained(folder, base="tiny")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="*", default=list(COMMANDS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        small = small_model(home / "small")
        before: Path | None = None
        for command in COMMANDS:
            own = None if command in BEGINS else before
            whole = home / f"{command}-whole"
            if own is not None:
                shutil.copytree(own, whole)
            code, steps = in_child(call_of(command, whole, small))
            assert code == 0, command
            if command in options.commands:
                wrong: list[str] = []
                for number in SIGNALS:
                    for moment in range(options.moments):
                        run = home / f"{command}-{number}-{moment}"
                        at = rng.randrange(1, steps + 1)
                        interrupted(command, own, run, small, [(at, number)])
                        wrong += [f"{number.name} at {at}: {name}" for name in difference(run, whole)]
                        shutil.rmtree(run)
                result = ", ".join(wrong) or "the same result"
                print(f"{command}, {steps} steps, {options.moments} moments for each signal: {result}")
            before = whole


if __name__ == "__main__":
    main()
