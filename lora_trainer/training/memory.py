"""Running out of memory: telling that it happened, and getting what can be had back."""

from __future__ import annotations

import gc

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory is full, on a card or in the machine."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def free_memory() -> None:
    """Give cached blocks back to the card."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
