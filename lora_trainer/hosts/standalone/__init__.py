"""The embedded host: one process, one checkpoint file, no WebUI."""
