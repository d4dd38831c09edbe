"""Explanations as nodes of the scene: written, read back, saved, exported, removed."""
