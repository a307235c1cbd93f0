"""``python -m benchmarks.gpu``: what only a graphics card can tell, as one command that lies ready for any card."""
