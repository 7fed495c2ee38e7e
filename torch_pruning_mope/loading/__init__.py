"""Models by name: one grammar of names, one loader per library."""

from ._exported import ExportedEncoder
from ._failures import failure, holds
from ._load import load_named
from ._loaded import LoadedModel
from ._names import FORMS, OPEN_CLIP_CONFIG, ModelName, parse_name
from ._tiny import emoji_image

__all__ = [
    "FORMS",
    "OPEN_CLIP_CONFIG",
    "ExportedEncoder",
    "LoadedModel",
    "ModelName",
    "emoji_image",
    "failure",
    "holds",
    "load_named",
    "parse_name",
]
