"""One error for all that libraries raise while they load."""

import pickle
import textwrap

from ..errors import ModelLoadError

NETWORK = "connect to the network, or pass the cache_dir that holds it"


def failure(name: str, error: Exception, mend: str) -> ModelLoadError:
    """Returns the error for a name whose library raised ``error``."""
    if isinstance(error, ImportError):
        mend = "pip install torch-pruning-mope[transformers]"
    return ModelLoadError(f"name: {name!r} must be a model that can be loaded, found: {_reason(error)}; {mend}")


def _reason(error: Exception) -> str:
    """Returns the error and its root cause, in one line."""
    root: BaseException = error
    while (cause := root.__cause__ or root.__context__) is not None:
        root = cause
    if isinstance(root, pickle.UnpicklingError):
        return "a file of more than tensors, or no checkpoint; unpickling it is refused, since that can run code"
    text = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" …")
    return text if root is error else f"{text} ({type(root).__name__}: {textwrap.shorten(str(root), 200)})"
