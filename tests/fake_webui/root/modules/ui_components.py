import gradio as gr


class ToolButton(gr.Button):
    """A small button (ui_components.py:15)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, elem_classes=["tool"], **kwargs)

    def get_block_name(self):
        return "button"
