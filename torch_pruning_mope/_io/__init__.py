"""Files and folders: the only doors to what lies outside; no torch, no model."""
