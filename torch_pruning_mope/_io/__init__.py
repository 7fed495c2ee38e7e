"""Writing files and folders whole or not at all; no torch, no model."""

from ._folder import SAVING, located, write_folder
from ._jsonl import append_jsonl
from ._lock import hold
from ._whole import sync, write_whole

__all__ = ["SAVING", "append_jsonl", "hold", "located", "sync", "write_folder", "write_whole"]
