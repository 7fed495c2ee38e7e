"""The demo's table, for people and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from .._io import write_whole
from ._criteria import CRITERIA
from ._row import Row


def rich_table(rows: Sequence[Row], *, title: str = "", caption: str = "") -> Table:
    """The rows as one table; shares are of the first row.

    Args:
        rows: The rows, the dense model first.
        title: What stands above the table.
        caption: What stands below it.

    Returns:
        A table for ``rich``.
    """
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("criterion", no_wrap=True)
    table.add_column("stage", no_wrap=True)
    for heading in ("params", "MMACs", "i→t R@1", "R@5", "t→i R@1", "R@5", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for position, row in enumerate(rows):
        last = position + 1 == len(rows) or rows[position + 1].criterion != row.criterion
        label = CRITERIA[row.criterion].label if row.criterion in CRITERIA else row.criterion
        first = position == 0 or rows[position - 1].criterion != row.criterion
        table.add_row(
            label if first else "",
            row.stage,
            f"{row.params / 1e6:.2f} M",
            f"{row.macs / 1e6:.1f}",
            f"{row.i2t_r1:.1f}",
            f"{row.i2t_r5:.1f}",
            f"{row.t2i_r1:.1f}",
            f"{row.t2i_r5:.1f}",
            "" if row.stage == "dense" else f"{row.seconds:.1f}",
            style="bold" if row.criterion == "mope" else None,
            end_section=last,
        )
    return table


def save_json(rows: Sequence[Row], path: str | Path) -> None:
    """Writes the rows as a JSON list of objects.

    Args:
        rows: The rows.
        path: The file.
    """
    write_whole(Path(path), json.dumps([asdict(row) for row in rows], indent=1) + "\n")
