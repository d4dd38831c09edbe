"""Words to region: where in a volume an image-text model sees the named structure. Imports imaging and system."""

PROMPTS_FILE = "prompts.safetensors"
"""In a localizer's folder: its learned prompts, which are then used without being asked for."""
