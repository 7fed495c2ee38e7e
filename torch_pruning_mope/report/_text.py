"""Text of a run's files, fit for a page: numbers in words, strings that are valid, no path of this machine."""

import re

from markupsafe import Markup

_BAD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
"""Control characters, lone surrogates and overrides of direction, which UTF-8, XML or the eye cannot take."""
_ABSOLUTE = re.compile(r"(?:file:/+|(?<![\w.</\\~-])(?:(?:~[\w.-]*|[A-Za-z]:)?[/\\](?![/\\])|\\\\))(?:[^\n'\"]*[/\\])?")


def clean(value: object) -> object:
    """A string without what a page cannot hold; anything else as it is."""
    return _BAD.sub("\ufffd", value) if isinstance(value, str) and not isinstance(value, Markup) else value


def without_paths(text: str) -> str:
    """Text whose absolute paths are cut to their last part, and whose URLs hold no user."""
    return re.sub(r"(\w://)[^/\s@]*@", r"\1", _ABSOLUTE.sub("…/", text))


def amount(value: float | int) -> str:
    """A large number in three digits: ``3.77 M``."""
    for size, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return _three(value / size) + letter
    return f"{value:.0f}"


def milliseconds(value: float | int) -> str:
    """A time: ``14.2 ms``."""
    return f"{_three(value)} ms" if value < 1000 else f"{_three(value / 1000)} s"


def percent(value: float | int) -> str:
    """A share in percent: ``61.2``."""
    return f"{value:.1f}"


def change(before: float | int, after: float | int) -> str:
    """A relative change in percent."""
    return (
        signed(f"{100 * (after / before - 1):+.0f} %").replace("+0 %", "±0 %").replace("−0 %", "±0 %") if before else ""
    )


def short_number(value: float | int) -> str:
    """A number in two digits."""
    digits = 0 if abs(value) >= 9.95 else 1 if abs(value) >= 0.995 else 2
    return signed(f"{value:.{digits}f}".replace("-0.00", "0.00"))


def signed(number: str) -> str:
    """A number with a true minus."""
    return number.replace("-", "−")


def _three(value: float | int) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}".rstrip(".")
