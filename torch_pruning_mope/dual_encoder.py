"""The one object a user holds: the core of a dual encoder with all that users expect of it as methods."""

from .checkpoint import HubMixin
from .pruning import PrunerMixin
from .scoring import GradientsMixin


class DualEncoder(PrunerMixin, GradientsMixin, HubMixin):
    """Mutates ``model``: swaps its attention for a prunable one in place, which has the same outputs and takes its state dicts.

    Wrapping a model twice is harmless. Optimizers made before hold the old attention weights; make them after.

    Args:
        model: A CLIP-like model: open_clip's, any of transformers' with ``get_image_features`` and ``get_text_features``, any
            with ``encode_image`` and ``encode_text``, or of a registered type. On the ``meta`` device it can be wrapped,
            counted and pruned by indices, but not scored.

    Raises:
        UnsupportedModelError: If the model, or one of its parts, is of an unknown type, or an encoder does not return one
            embedding for each input. The model is then unchanged.
        NonFiniteError: If a weight is NaN or infinite. The model is then unchanged.
    """
