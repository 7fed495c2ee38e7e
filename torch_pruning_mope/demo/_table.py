"""The demo's table for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from ._criteria import LABELS


def rich_table(rows: Sequence[Mapping[str, Any]], *, title: str = "") -> Table:
    """The rows as one table; a criterion is named at its first row."""
    table = Table(title=title, title_justify="left")
    for heading in ("criterion", "stage"):
        table.add_column(heading, no_wrap=True)
    for heading in ("params", "MMACs", "i→t R@1", "R@5", "t→i R@1", "R@5", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    names = [row["criterion"] or "dense" for row in rows]
    for place, (row, name) in enumerate(zip(rows, names, strict=True)):
        table.add_row(
            "" if place and names[place - 1] == name else LABELS.get(name, name),
            row["stage"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['multiply_adds'] / 1e6:.1f}",
            *(f"{row[key]:.1f}" for key in ("i2t_r1", "i2t_r5", "t2i_r1", "t2i_r5")),
            "" if row["stage"] == "dense" else f"{row['seconds']:.1f}",
            style="bold" if name == "mope" else None,
            end_section=names[place + 1 : place + 2] != [name],
        )
    return table
