"""Commands in this process, and what a run leaves."""

from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

import torch_pruning_mope as mope
from torch_pruning_mope.cli import app

PAIRS = ("--pairs", 16, "--quiet")
SCORE = (*PAIRS, "--groups", 2, "--kind", "head", "--kind", "neurons")
TRAIN = ("--pairs", 32, "--steps", 2, "--batch-size", 16, "--quiet")


def mope_command(*arguments: object, code: int = 0) -> Any:
    """Runs a command, and looks at how it ended."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output[-500:]}\n{result.stderr[-500:]}\n{result.exception!r}"[-1500:]
    return result


def words(text: str) -> str:
    return " ".join(text.split())


def one_error(result: Any) -> str:
    """The only line of an error."""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    return str(line)


def files_of(run: Path) -> dict[str, bytes]:
    """What there is in a run, but for times."""
    own = {file.relative_to(run).as_posix(): file for file in run.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in sorted(own.items()) if name != "steps.log"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(mope.load(folder).model.state_dict())
