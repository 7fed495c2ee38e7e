"""The table in print."""

from typing import Any

from rich.console import Console

from torch_pruning_mope.demo import rich_table


def row(criterion: str, stage: str, seconds: float, **rest: float) -> dict[str, Any]:
    numbers = {"parameters": 3_774_849, "multiply_adds": 67_651_840, "i2t_r1": 80.25, "i2t_r5": 98.0, "t2i_r1": 79.5}
    return {"criterion": criterion, "stage": stage, **numbers, "t2i_r5": 97.5, "seconds": seconds, **rest}


def test_the_table_shows_every_figure_and_names_a_criterion_once() -> None:
    rows = [
        row("", "dense", 0.0),
        row("", "fine-tuned", 12.34),
        row("mope", "removed", 5.0, parameters=2_230_000, multiply_adds=39_300_000, i2t_r1=60.0),
        row("mope", "reconstructed", 2.0),
    ]
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(rich_table(rows, title="Tiny CLIP"))
    lines = console.export_text().splitlines()
    assert "Tiny CLIP" in lines[0]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert cells[0] == ["dense", "dense", "3.77 M", "67.7", "80.2", "98.0", "79.5", "97.5", ""]
    assert cells[1][:2] == ["", "fine-tuned"]
    assert cells[2] == ["MoPE", "removed", "2.23 M", "39.3", "60.0", "98.0", "79.5", "97.5", "5.0"]
    assert cells[3][:2] == ["", "reconstructed"]
