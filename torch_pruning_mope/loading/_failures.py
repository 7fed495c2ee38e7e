"""One error for all that libraries raise while they load."""

import pickle
import textwrap
from collections.abc import Iterator

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError

from ..errors import ModelLoadError

NETWORK = "connect to the network, or pass the cache_dir that holds it"


def failure(name: str, error: Exception, mend: str) -> ModelLoadError:
    """The error for a name whose library raised ``error``."""
    if isinstance(error, ImportError):
        mend = "pip install torch-pruning-mope[transformers]"
    return ModelLoadError(f"name: {name!r} must be a model that can be loaded, found: {_reason(error)}; {mend}")


def holds(repository: str, file: str, cache: str | None, error: BaseException) -> bool:
    """True if a repository of the Hub holds a file, or after a failed connection the cache."""
    offline = any(isinstance(cause, LocalEntryNotFoundError) for cause in _causes(error))
    try:
        hf_hub_download(repository, file, cache_dir=cache, local_files_only=offline)
    except (OSError, ValueError):  # missing, unreachable, or no repository's name
        return False
    return True


def _reason(error: Exception) -> str:
    """The error and its root cause, in one line."""
    *_, root = _causes(error)
    if isinstance(root, pickle.UnpicklingError):
        return "a file of more than tensors, or no checkpoint; unpickling it is refused, since that can run code"
    text = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" …")
    return text if root is error else f"{text} ({type(root).__name__}: {textwrap.shorten(str(root), 200)})"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, the one that it was raised from or while handling, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
