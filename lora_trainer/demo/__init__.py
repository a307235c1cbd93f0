"""The demo: drawn pictures, a small SD1-shaped checkpoint, and the main job run on them."""
