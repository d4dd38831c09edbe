"""The worker process, which computes for 3D Slicer, and the messages between the two. Imports all but the commands."""
