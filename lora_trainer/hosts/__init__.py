"""Where the model lives: the WebUI's process, or our own."""
