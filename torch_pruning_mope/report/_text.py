"""Strings from outside, made fit to be written and shown."""

import unicodedata

_ALLOWED = {"\n", "\t"}


def clean(text: str, most: int | None = None) -> str:
    """A string without what UTF-8 or XML cannot hold, or what reorders the text around it.

    Args:
        text: Any string.
        most: Characters that are kept.

    Returns:
        The same with U+FFFD for control characters, lone surrogates and overrides of direction; cut with an ellipsis.
    """
    kept = "".join(
        "\ufffd" if (unicodedata.category(c) in {"Cc", "Cs"} and c not in _ALLOWED) or _reorders(c) else c for c in text
    )
    # U+FFFE and U+FFFF are no characters of XML 1.0.
    kept = kept.replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd")
    return kept if most is None or len(kept) <= most else kept[: most - 1] + "…"


def _reorders(character: str) -> bool:
    return "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
