"""What is printed where, and how commands fail."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_pruning_mope as mope
from torch_pruning_mope.errors import NonFiniteError, UngroupedParametersError

from .commands import PAIRS, mope_command, one_error, words


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("bad\n ratio"), 2),
        (mope.errors.MetricError("no metric"), 2),
        (NonFiniteError("NaN\nfound"), 1),
        (UngroupedParametersError("x"), 1),
        (OSError(28, "No space left on device"), 1),
        (KeyError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_is_one_line(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr("torch_pruning_mope.demo.run_demo", fail)
    result = mope_command("demo", code=code)
    (line,) = result.stderr.strip().splitlines()
    assert not result.stdout
    if code == 130:
        assert line == "Interrupted: the same command goes on from here."
    else:
        assert line.startswith((f"Error: {words(str(error))}", "Error: KeyError: 'x'"))
    monkeypatch.setenv("MOPE_TRACEBACK", "1")
    if code != 130:
        with pytest.raises(type(error)):
            raise mope_command("demo", code=1).exception


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "nowhere", "--parameters", "50%"), "RUN must be a folder that one of mope score"),
        (("plan", "--model", "tiny", "--parameters", "image=50%,sound=2"), "must be for image, text or both"),
        (("score", "run", "--model", "no-such-model"), "no-such-model"),
        (("score", "run", "--data", "missing.csv"), "found nothing at 'missing.csv'"),
        (("score", "run", "--metric", "fid", *PAIRS), "metric must be"),
        (("score", "run", "--part", "test"), "No such option"),
        (("score", "run", "--groups", "0"), "--groups"),
        (("score", "run", "--device", "abacus"), "--device must be one that torch has here; found 'abacus'"),
        (("score",), "Missing argument"),
        (("score", "file", *PAIRS), "found a file at file"),
        (("evaluate", "--model", "tiny", "--root", "x"), "--root, --split and --encoding go with --data"),
        (("report", "\x1b[31mred"), r"found no such run in \x1b[31mred"),
        (("nothing",), "No such command"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    line = one_error(mope_command(*arguments, code=1 if "file" in arguments else 2))
    assert message in line
    assert "\x1b" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    line = one_error(mope_command("score", tmp_path / "run", "--device", "cuda", code=2))
    assert "--device must be one that torch has here; found 'cuda'" in line
    assert not (tmp_path / "run").exists()


def test_standard_output_holds_the_json_alone(begun: Path, small: Path) -> None:
    commands: list[tuple[object, ...]] = [
        ("score", begun),
        ("plan", begun),
        ("plan", begun, "--parameters", "80%"),
        ("prune", begun),
        ("evaluate", begun, *PAIRS, "--no-latency"),
        ("report", begun, "--examples", 0),
        ("models", "ViT-B-32"),
    ]
    for command in commands:
        result = mope_command(*command, "--json", "-")
        assert json.loads(result.stdout)
        assert result.stderr.strip()


def test_quiet_is_quiet(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No command makes a bar that shows; a bar that lasts less than two seconds would not be seen anyway."""
    shown: list[Any] = []
    for module in ("data._gather", "distillation._loop", "scoring._families"):
        name = f"torch_pruning_mope.{module}.tqdm"
        original = pytest.importorskip(f"torch_pruning_mope.{module}").tqdm

        def spy(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
            shown.append(not kwargs.get("disable", False))
            return _original(*args, **kwargs)

        monkeypatch.setattr(name, spy)
    (begun / "scores.json").unlink()
    mope_command("score", begun, "--quiet")
    mope_command("distill", begun, "--pairs", 32, "--steps", 1, "--batch-size", 16, "--quiet")
    mope_command("evaluate", begun, *PAIRS, "--no-latency")
    assert shown
    assert not any(shown)
