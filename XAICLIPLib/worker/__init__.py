"""The process that 3D Slicer talks to, and its messages. Imports everything but the commands."""
