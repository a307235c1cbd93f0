"""The same tab in a page of its own."""

from __future__ import annotations

import threading
from pathlib import Path

import gradio as gr

from lora_trainer.api import routes
from lora_trainer.core.ending import Ending, as_interrupt
from lora_trainer.core.errors import InputError
from lora_trainer.hosts.base import Host
from lora_trainer.jobs.service import Jobs, shared_jobs
from lora_trainer.ui import tab

_ROOT = Path(__file__).parent.parent.parent


def page(jobs: Jobs) -> gr.Blocks:
    """The tab with its style and scripts."""
    with gr.Blocks(css=style(), title="LoRA Train", analytics_enabled=False) as demo:
        tab.build(jobs)
        demo.load(None, None, None, _js=scripts())
    return demo


def style() -> str:
    """The page's style sheet, which the WebUI loads by itself."""
    return (_ROOT / "style.css").read_text(encoding="utf-8")


def scripts() -> str:
    """The page's scripts as one function, in the order in which the WebUI loads them by itself."""
    files = sorted((_ROOT / "javascript").glob("*.js"))
    return "() => {" + "\n".join(path.read_text(encoding="utf-8") for path in files) + "}"


def serve(host: Host, port: int) -> None:
    """Serve page and REST interface on this machine until Ctrl-C; raises :class:`InputError` for a port in use."""
    if not 0 < port < 1 << 16:
        raise InputError("There is no port {port}; use one from 1 to 65535, such as 7862.", field="port", port=port)
    jobs = shared_jobs(lambda: host)
    demo = page(jobs)
    try:
        app, _, _ = demo.launch(
            server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, show_api=False, quiet=True,
            app_kwargs={"docs_url": "/docs"},
        )  # fmt: skip
    except OSError as error:  # gradio's sentence speaks of its own options
        raise InputError("The port {port} is in use; name another with --port.", field="port", port=port) from error
    routes.mount(app, jobs)
    threading.Thread(target=jobs.restore, name="lora-train restore", daemon=True).start()
    print(f"LoRA Train: http://127.0.0.1:{port} (Ctrl-C ends it)")
    try:
        with as_interrupt():
            demo.block_thread()
    finally:
        with Ending():  # a second Ctrl-C does not lose what is being saved
            jobs.shutdown()
