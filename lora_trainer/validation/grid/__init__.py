"""The grid over epochs and weights: planned, drawn, measured, judged."""
