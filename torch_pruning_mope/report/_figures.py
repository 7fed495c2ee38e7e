"""The figures of a report, as files and as parts of its page."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from .._io import write_whole
from ._svg import inline_svg, svg_of
from ._theme import drawing


@dataclass(frozen=True)
class Table:
    """The numbers of a figure.

    Attributes:
        head: Column headings.
        rows: Rows of as many cells; the first cell of a row is its heading.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Shown:
    """A figure in the page.

    Attributes:
        svg: Its element.
        caption: What stands below it.
        table: Its numbers, where they are no other figure's.
    """

    svg: Markup
    caption: str
    table: Table | None = None


@dataclass(frozen=True)
class Gallery:
    """Draws figures into a folder.

    Attributes:
        folder: Where PNG and SVG files go.
    """

    folder: Path

    def show(
        self, name: str, draw: Callable[[], Figure], *, label: str, caption: str, table: Table | None = None
    ) -> Shown:
        """Draws one figure, and writes it as ``name.svg`` and ``name.png``.

        Args:
            name: Of the files.
            draw: Makes the figure.
            label: What it shows, in a sentence, for those who cannot see it.
            caption: What stands below it.
            table: Its numbers.

        Returns:
            The figure for the page.
        """
        with drawing():
            figure = draw()
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # it is laid out now; each format would do so twice over
            svg, png = svg_of(figure), io.BytesIO()
            figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
        write_whole(self.folder / f"{name}.svg", svg)
        write_whole(self.folder / f"{name}.png", png.getvalue())
        return Shown(Markup(inline_svg(svg, name, label)), caption, table)  # noqa: S704 (made of text that matplotlib escapes)
