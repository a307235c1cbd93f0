"""Running out of memory: telling that it happened, and getting what can be had back."""

from __future__ import annotations

import gc

import torch

from lora_trainer.core.errors import RunError


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


def out_of_memory(error: BaseException) -> RunError:
    """The sentence for a step that fits in no way."""
    return RunError(
        "Memory is full even for one picture at a time with gradient checkpointing ({error}); lower the resolution or "
        "the rank, close other programs, or start the WebUI with --medvram.",
        error=str(error).splitlines()[0][:200],
    )
