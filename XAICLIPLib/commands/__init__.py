"""The command ``xaiclip``: one file for each of its commands, and the terminal. Imports everything but the worker."""
