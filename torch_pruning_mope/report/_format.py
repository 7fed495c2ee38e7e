"""Numbers as people read them."""

from collections.abc import Callable
from dataclasses import dataclass

from ._evaluation import Evaluation


def amount(value: int | float) -> str:
    """A large number in three digits: ``3.77 M``."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{_three(value / size)} {letter}"
    return f"{value:.0f}"


def milliseconds(value: int | float) -> str:
    """A time: ``14.2 ms``."""
    return f"{_three(value)} ms" if value < 1000 else f"{_three(value / 1000)} s"


def _three(value: int | float) -> str:
    """Three digits that matter, zeros too, and all of a whole number."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}".rstrip(".")


def change(before: int | float, after: int | float) -> str:
    """How much less or more, in percent, with a true minus."""
    if not before:
        return ""
    percent = 100 * (after / before - 1)
    return f"{'−' if percent < 0 else '+'}{abs(percent):.0f} %" if round(percent) else "±0 %"


def in_words(name: str) -> str:
    """A name from a file as people write it: ``multiply-adds``, ``min heads``."""
    return name.replace("multiply_adds", "multiply-adds").replace("_", " ")


@dataclass(frozen=True)
class Measure:
    """Something that a model takes.

    Attributes:
        name: In words.
        of: Its value for a row.
        show: Its value in words.
    """

    name: str
    of: Callable[[Evaluation], int | float | None]
    show: Callable[[int | float], str]


MEASURES = (
    Measure("parameters", lambda row: row.parameters, amount),
    Measure("multiply-adds", lambda row: row.multiply_adds, amount),
    Measure("latency", lambda row: row.latency_ms, milliseconds),
)
