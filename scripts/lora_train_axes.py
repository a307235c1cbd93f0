"""Loaded by the WebUI: our axes in its X/Y/Z plot script."""

from modules import scripts

import lora_trainer.webui.xyz_axes as axes


class LoraTrainAxes(scripts.Script):
    """Puts each cell's LoRA tag into its prompt."""

    create_group = False

    def title(self):
        """Shown nowhere; the script has no fields."""
        return "LoRA Train axes"

    def show(self, is_img2img):
        """Part of every picture, and nothing to see on the page."""
        return scripts.AlwaysVisible

    def before_process(self, p, *args):
        """Called before a picture is drawn."""
        axes.before_process(p)
