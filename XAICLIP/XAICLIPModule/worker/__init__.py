"""The worker process: how it is started, asked and understood."""
