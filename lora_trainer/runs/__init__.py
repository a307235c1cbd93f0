"""A run's folder: settings, manifest, log, states, files."""
