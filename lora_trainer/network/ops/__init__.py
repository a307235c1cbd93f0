"""What is made of LoRA files: baked, merged, resized, extracted."""
