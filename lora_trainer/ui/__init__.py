"""The tab. The only part that knows gradio."""
