"""``mope demo``: criteria compared on the embedded model."""

from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure

from ..demo import DemoResult, heat_maps, rich_table, run_demo, save_json
from ._app import app, check_folder, console, one_line_errors


def _check_picture(path: Path | None) -> Path | None:
    """Refuses a format that cannot be drawn, before minutes of work rather than after."""
    known = sorted(Figure().canvas.get_supported_filetypes())
    if path is not None and path.suffix[1:] not in known:
        raise typer.BadParameter(f"its suffix must be one of {', '.join(known)}; found {path.name}.")
    return check_folder(path)


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Seed of calibration pairs, training batches and random pruning.")] = 0,
    head_ratio: Annotated[float, typer.Option(help="Share of the attention heads to remove.")] = 0.3,
    ffn_ratio: Annotated[float, typer.Option(help="Share of the FFN neurons to remove.")] = 0.5,
    steps: Annotated[int, typer.Option(help="Fine-tuning steps of 128 pairs.")] = 60,
    pairs: Annotated[int, typer.Option(help="Calibration pairs.")] = 1000,
    test_pairs: Annotated[int, typer.Option(help="Test pairs: the size of the gallery.")] = 3000,
    json: Annotated[Path | None, typer.Option(help="File for the rows.", dir_okay=False, callback=check_folder)] = None,
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
    console().print(rich_table(result.rows, title=title), *notes, sep="\n", highlight=False)
