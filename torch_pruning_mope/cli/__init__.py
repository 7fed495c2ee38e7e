"""The ``mope`` command; a subcommand is a few lines over the library, in a file of its own.

Nothing here imports torch before a command runs, so that ``--help`` answers at once.
"""

# In the order of the help: each registers its command.
from . import (  # isort: skip
    _demo,  # noqa: F401
    _compress,  # noqa: F401
    _score,  # noqa: F401
    _prune,  # noqa: F401
    _train,  # noqa: F401
    _evaluate,  # noqa: F401
    _export,  # noqa: F401
    _rerun,  # noqa: F401
)
from ._app import app

__all__ = ["app"]
