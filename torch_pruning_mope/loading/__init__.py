"""Models by name: one grammar of names, one loader per library."""

from ._loaded import ExportedEncoder, LoadedModel, emoji_image, load_named
from ._names import ModelName, parse_name

__all__ = [
    "ExportedEncoder",
    "LoadedModel",
    "ModelName",
    "emoji_image",
    "load_named",
    "parse_name",
]
