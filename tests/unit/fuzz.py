"""Fuzzing of files: ``MOPE_FUZZ=10000`` in the environment tries as many examples of each."""

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

some = settings(
    max_examples=int(os.environ.get("MOPE_FUZZ", "25")),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def damaged(draw: Any, content: bytes) -> bytes:
    """Some bytes overwritten, cut out or put in."""
    found = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(found)))
        found[start : start + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    return bytes(found)
