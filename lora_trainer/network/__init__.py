"""The LoRA itself: adapters on the view, and kohya's file format."""
