"""Which blocks do what, and with which weights the LoRA is better."""
