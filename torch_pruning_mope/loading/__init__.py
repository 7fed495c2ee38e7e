"""Models by name: one grammar of names, one loader per library."""

from ._load import load_named
from ._loaded import ExportedEncoder, LoadedModel, emoji_image
from ._names import FORMS, OPEN_CLIP_CONFIG, ModelName, parse_name

__all__ = [
    "FORMS",
    "OPEN_CLIP_CONFIG",
    "ExportedEncoder",
    "LoadedModel",
    "ModelName",
    "emoji_image",
    "load_named",
    "parse_name",
]
