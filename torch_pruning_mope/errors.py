"""Errors of the package, so that callers can tell a wrong argument from a model that cannot be pruned."""


class MopeError(Exception):
    """Base of every error that this package raises on its own account."""


class UnsupportedModelError(MopeError, TypeError):
    """The model, or a part of it, is of a type that nobody registered."""


class UngroupedParametersError(MopeError, RuntimeError):
    """Parameters of the model are in no pruning group and not knowingly left alone."""


class MissingGradientsError(MopeError, RuntimeError):
    """A criterion that reads gradients met a parameter without one."""


class NonFiniteError(MopeError, ValueError):
    """NaN or infinity where a finite number is needed."""


class MetricError(MopeError, TypeError):
    """A metric is not usable: unknown, not callable, or not returning one finite number."""


class WrongModelError(MopeError, ValueError):
    """An object made for one model, or for other weights, was used with another."""


class PruningMismatchError(MopeError, RuntimeError):
    """The units removed are not those that were asked for."""


class ModelLoadError(MopeError, ValueError):
    """A name stands for no model that can be loaded."""


class DataError(MopeError, ValueError):
    """A source of pairs is of no known form, or too much of it cannot be read."""


class ExportError(MopeError, RuntimeError):
    """A model cannot be written in the form that was asked for."""


class FolderInUseError(MopeError, RuntimeError):
    """Another process or thread works in the folder."""
