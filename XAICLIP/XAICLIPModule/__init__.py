"""The parts of the Slicer module XAI-CLIP; `XAICLIP.py` puts them together."""
