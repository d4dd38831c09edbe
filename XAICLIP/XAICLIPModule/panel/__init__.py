"""The panel: its sections and widgets."""
