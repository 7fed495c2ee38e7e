"""Rows of an evaluation as a table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


COUNTS = {
    "parameters": ("params", 1e6, " M"),
    "multiply_adds": ("MMACs", 1e6, ""),
    "bytes": ("MB", 1e6, ""),
    "latency_ms": ("ms", 1.0, ""),
}
PERCENT = {
    "i2t_r1": "i→t R@1", "i2t_r5": "R@5", "i2t_r10": "R@10", "t2i_r1": "t→i R@1", "t2i_r5": "R@5", "t2i_r10": "R@10",
    "top1": "top-1", "top5": "top-5", "mean_per_class": "per class",
}  # fmt: skip


def rows_table(rows: Sequence[dict[str, Any]]) -> "Table":
    """A column for each figure that a row of ``evaluation.json`` has."""
    from rich.table import Table

    table = Table()
    table.add_column("model", no_wrap=True)
    counts = [name for name in COUNTS if any(name in row for row in rows)]
    percent = [name for name in PERCENT if any(name in row for row in rows)]
    for heading in [*(COUNTS[name][0] for name in counts), *(PERCENT[name] for name in percent), "images"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        numbers = [f"{row[name] / COUNTS[name][1]:.2f}{COUNTS[name][2]}" if name in row else "" for name in counts]
        shares = [f"{row[name]:.1f}" if name in row else "" for name in percent]
        own = row["criterion"] in {"MoPE", "dense", ""}
        table.add_row(row["stage"] if own else row["criterion"], *numbers, *shares, str(row["pairs"]))
    return table
