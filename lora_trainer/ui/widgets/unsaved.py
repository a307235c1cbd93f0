"""Keeps our widgets out of the WebUI's ``ui-config.json``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gradio.context import Context


@contextmanager
def unsaved() -> Iterator[None]:
    """Whatever is made within is neither saved in ``ui-config.json`` nor filled in from there.

    The WebUI keeps each widget's first value by tab and label and sets it at every later start (ui_loadsave.py:39): the
    run that was the newest one once, for two lists of the same label, and a file name of another language's label. Only
    within a ``with gr.Blocks()``.
    """
    blocks = Context.root_block.blocks
    before = set(blocks)
    yield
    for number in blocks.keys() - before:
        blocks[number].do_not_save_to_config = True
