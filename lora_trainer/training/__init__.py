"""The loop, its losses and optimizers, and what is written about it."""
