"""Entry points of the WebUI: the grid in txt2img, X/Y/Z axes, block weights in prompts."""
