"""From words to a region: where in a volume an image-text model finds a structure. Imports imaging and system."""

PROMPTS_FILE = "prompts.safetensors"
"""File of learned prompts in a localizer's folder; it is used by default."""
