"""Numbers of pictures and LoRA files."""
