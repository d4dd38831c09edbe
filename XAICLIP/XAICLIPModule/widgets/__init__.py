"""Widgets of the panel that have a file of their own."""
