"""Blocks: their names, weights, presets, and the tags that carry them."""
