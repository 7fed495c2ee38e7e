"""Doors to everything outside: the only places that open files found on disk, URLs, pictures and JSON. No torch, no model."""
