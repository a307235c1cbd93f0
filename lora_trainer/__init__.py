"""LoRA Train: train a LoRA on the checkpoint that the WebUI has already loaded."""

__version__ = "0.1.0"
