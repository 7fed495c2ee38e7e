"""``mope demo`` and ``mope models``: criteria compared on the embedded model, and families that work."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._command import Call, check_folder, command


@command("models", is_of_run=False)
def models(
    call: Call,
    names: Annotated[
        list[str] | None, typer.Argument(help="Configurations of open_clip to wrap; all by default.")
    ] = None,
) -> None:
    """Lists families of models that work, as measured; given names or --json, wraps configurations of open_clip to see."""
    from ..evaluation import check_models, families_table

    if call.given["json"] is None and not names:
        call.show(families_table())
        return
    checks = []
    for check in check_models(names or None):
        checks.append(check)
        call.say(f"{check.name}: {'wraps' if check.wraps else 'refused'}{': ' * bool(check.reason)}{check.reason}")
    call.say(f"{sum(check.wraps for check in checks)} of {len(checks)} wrap.")
    call.answer([asdict(check) for check in checks])


if TYPE_CHECKING:
    from ..demo import DemoResult


def _check_picture(path: Path | None) -> Path | None:
    """Refuses a format that cannot be drawn, before minutes of work rather than after."""
    if path is None:
        return None
    from matplotlib.figure import Figure

    known = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix[1:] not in known:
        raise typer.BadParameter(f"its suffix must be one of {', '.join(known)}; found {path.name}.")
    return check_folder(path)


@command("demo", is_of_run=False)
def demo(
    call: Call,
    seed: Annotated[int, typer.Option(help="Seed of calibration pairs, training batches and random pruning.")] = 0,
    head_ratio: Annotated[float, typer.Option(help="Share of the attention heads to remove.")] = 0.3,
    ffn_ratio: Annotated[float, typer.Option(help="Share of the FFN neurons to remove.")] = 0.5,
    steps: Annotated[int, typer.Option(help="Steps of distillation, of 128 pairs.")] = 30,
    pairs: Annotated[int, typer.Option(help="Calibration pairs.")] = 1000,
    test_pairs: Annotated[int, typer.Option(help="Test pairs: the size of the gallery.")] = 3000,
    plot: Annotated[
        Path | None, typer.Option(help="File for the picture (png, svg, pdf).", dir_okay=False, callback=_check_picture)
    ] = None,
) -> None:
    """Compares MoPE with other criteria on the shipped tiny CLIP: pruned, reconstructed, fine-tuned."""
    from ..demo import rich_table, run_demo
    from ..report import heat_maps

    result = run_demo(
        seed=seed, head_ratio=head_ratio, ffn_ratio=ffn_ratio, steps=steps, pairs=pairs, test_pairs=test_pairs
    )
    title, *notes = _words(result, pairs, test_pairs, steps)
    call.show(rich_table(result.rows, title=title), *notes)
    call.answer(result.rows)
    if plot is not None:
        heat_maps(result.scores, plot)


def _words(result: "DemoResult", pairs: int, test_pairs: int, steps: int) -> tuple[str, ...]:
    """The table's title, and what its columns mean."""
    before, removed = result.before, result.removed
    return (
        f"Tiny CLIP on emoji scenes without {removed.heads} of its {before.heads} heads and {removed.neurons} of its "
        f"{before.neurons} FFN neurons",
        f"Recall in percent on {test_pairs} test pairs. Units are chosen on {pairs} calibration pairs "
        f"over all layers of both towers; 'reconstructed' is least squares on training pairs, 'fine-tuned' {steps} steps of "
        "distillation from there.",
        f"params: all, of which {result.embedding_parameters / 1e6:.2f} M are the token embedding. MMACs: million "
        "multiply-adds of all convolutions and matrix products, attention's included, per image and caption.",
        "seconds: scoring and removal, reconstruction, or fine-tuning.",
    )
