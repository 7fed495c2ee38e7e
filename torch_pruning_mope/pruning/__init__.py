"""Pruning: the request in ratios and in counts, Torch-Pruning's pruner run on it, and removal of given units.

``prune`` and ``remove_units`` are written against the encoder, which needs the request: they are imported from their files.
"""

from ._request import Counts, Layer, PruningRequest, Ratios, note_round_to, round_to_of

__all__ = ["Counts", "Layer", "PruningRequest", "Ratios", "note_round_to", "round_to_of"]
