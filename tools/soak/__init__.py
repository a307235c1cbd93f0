"""Long tests with random events and a recorded seed. ``python -m tools.soak --help``."""
