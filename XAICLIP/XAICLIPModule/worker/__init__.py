"""The worker process: how it is installed, started, asked and understood."""
