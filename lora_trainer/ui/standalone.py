"""The same tab in a page of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI

from lora_trainer.api import routes
from lora_trainer.core.ending import Ending, as_interrupt
from lora_trainer.core.errors import InputError, RunError
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


@contextmanager
def serving(app: FastAPI, port: int = 0) -> Iterator[int]:
    """Serve an app on this machine for as long as the block lasts; yields its port.

    Gradio's own ``launch`` asks its page for an answer within three seconds first, and fails on a busy machine.

    Args:
        app: what is served.
        port: 0 for a free one.

    Raises:
        OSError: the port is in use.
        RunError: the app does not start.
    """
    with socket.create_server(("127.0.0.1", port)) as door:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([door],), name="lora-train page", daemon=True)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            if not server.started:
                raise RunError("The page could not be started; the console says why.")
            yield door.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def application(demo: gr.Blocks, jobs: Jobs | None = None) -> FastAPI:
    """A page, and the REST interface of ``jobs``, as an app."""
    app = FastAPI(title="LoRA Train")
    if jobs:
        routes.mount(app, jobs)
    return gr.mount_gradio_app(app, demo, path="/")  # behind the routes, since it answers all else


def serve(host: Host, port: int) -> None:
    """Serve page and REST interface on this machine until Ctrl-C; raises :class:`InputError` for a port in use."""
    if not 0 < port < 1 << 16:
        raise InputError("There is no port {port}; use one from 1 to 65535, such as 7862.", field="port", port=port)
    jobs = shared_jobs(lambda: host)
    with ExitStack() as served:
        try:
            served.enter_context(serving(application(page(jobs), jobs), port))
        except OSError as error:
            raise InputError("The port {port} is in use; name another with --port.", field="port", port=port) from error
        threading.Thread(target=jobs.restore, name="lora-train restore", daemon=True).start()
        print(f"LoRA Train: http://127.0.0.1:{port} (Ctrl-C ends it)")
        try:
            _wait()
        finally:
            with Ending():  # a second Ctrl-C does not lose what is being saved
                jobs.shutdown()


def _wait() -> None:
    """Until Ctrl-C."""
    with as_interrupt(), suppress(KeyboardInterrupt):
        while True:
            time.sleep(0.1)
