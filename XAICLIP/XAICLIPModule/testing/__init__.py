"""Self-tests, and a worker that tests play themselves."""
