"""The ``mope`` command; each subcommand is a few lines over the library."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure
from rich.console import Console

from ._version import __version__
from .demo import DemoResult, heat_maps, rich_table, run_demo, save_json
from .errors import MopeError
from .models import check_models, families_table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="MoPE for Torch-Pruning: prune CLIP-like dual encoders by what a zero-shot metric loses.",
)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Prints what the user can mend as one line, without a traceback, and exits with code 2.

    Yields:
        Nothing.

    Raises:
        Exit: In place of the error.
    """
    try:
        yield
    except (MopeError, OSError, TypeError, ValueError) as error:
        typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"torch-pruning-mope {__version__}")
        raise typer.Exit
    return wanted


def _check_folder(path: Path | None) -> Path | None:
    """Refuses a file in a folder that does not exist, before minutes of work rather than after."""
    if path is not None and not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"the folder of {path} does not exist.")
    return path


def _check_picture(path: Path | None) -> Path | None:
    """Refuses a format that cannot be drawn, likewise."""
    known = sorted(Figure().canvas.get_supported_filetypes())
    if path is not None and path.suffix[1:] not in known:
        raise typer.BadParameter(f"its suffix must be one of {', '.join(known)}; found {path.name}.")
    return _check_folder(path)


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """MoPE for Torch-Pruning: prune CLIP-like dual encoders by what a zero-shot metric loses."""


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Seed of calibration pairs, training batches and random pruning.")] = 0,
    head_ratio: Annotated[float, typer.Option(help="Share of the attention heads to remove.")] = 0.3,
    ffn_ratio: Annotated[float, typer.Option(help="Share of the FFN neurons to remove.")] = 0.5,
    steps: Annotated[int, typer.Option(help="Fine-tuning steps of 128 pairs.")] = 60,
    pairs: Annotated[int, typer.Option(help="Calibration pairs.")] = 1000,
    test_pairs: Annotated[int, typer.Option(help="Test pairs: the size of the gallery.")] = 3000,
    json: Annotated[
        Path | None, typer.Option(help="File for the rows.", dir_okay=False, callback=_check_folder)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="File for the picture (png, svg, pdf).", dir_okay=False, callback=_check_picture)
    ] = None,
) -> None:
    """Prunes the shipped tiny CLIP with MoPE and with other criteria, and compares their recall before and after training."""
    with one_line_errors():
        result = run_demo(
            seed=seed,
            head_ratio=head_ratio,
            ffn_ratio=ffn_ratio,
            steps=steps,
            pairs=pairs,
            test_pairs=test_pairs,
        )
        _print(result, pairs, test_pairs, steps)
        if json is not None:
            save_json(result.rows, json)
        if plot is not None:
            heat_maps(result.scores, plot)


@app.command()
def models(
    names: Annotated[
        list[str] | None, typer.Argument(help="Configurations of open_clip to wrap; all by default.")
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            help="File for a row per configuration: name, wraps, reason, …", dir_okay=False, callback=_check_folder
        ),
    ] = None,
) -> None:
    """Says which families of models work, as measured; given names or --json, wraps configurations of open_clip to see."""
    if json is None and not names:
        _console().print(families_table(), highlight=False)
        return
    with one_line_errors():
        checks = []
        for check in check_models(names or None):
            checks.append(check)
            typer.echo(
                f"{check.name}: {'wraps' if check.wraps else 'refused'}{': ' * bool(check.reason)}{check.reason}"
            )
        typer.echo(f"{sum(check.wraps for check in checks)} of {len(checks)} wrap.")
        if json is not None:
            json.write_text(dumps([asdict(check) for check in checks], indent=1) + "\n", encoding="utf-8")


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=100)  # a pipe has no width of its own


def _print(result: DemoResult, pairs: int, test_pairs: int, steps: int) -> None:
    """The table, and what its columns mean."""
    before, removed = result.before, result.removed
    title = (
        f"Tiny CLIP on emoji scenes without {removed.heads} of its {before.heads} heads and {removed.neurons} of its "
        f"{before.neurons} FFN neurons"
    )
    notes = (
        f"Recall in percent on {test_pairs} test pairs. Units are chosen on {pairs} calibration pairs "
        f"over all layers of both towers; 'fine-tuned' is {steps} steps of the contrastive loss on training pairs.",
        f"params: all, of which {result.embedding_params / 1e6:.2f} M are the token embedding. MMACs: million "
        "multiply-adds of all convolutions and matrix products, attention's included, per image and caption.",
        "seconds: scoring and pruning, or fine-tuning.",
    )
    _console().print(rich_table(result.rows, title=title), *notes, sep="\n", highlight=False)
