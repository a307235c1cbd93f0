"""How the page of its own is served."""

from __future__ import annotations

import urllib.request

import pytest
from fastapi import FastAPI

from lora_trainer.core.errors import RunError
from lora_trainer.ui import standalone


def test_an_app_is_served_on_a_free_port_for_as_long_as_the_block_lasts() -> None:
    app = FastAPI()
    app.get("/")(lambda: "here")
    with standalone.serving(app) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
            assert answer.read() == b'"here"'
        with pytest.raises(OSError, match="in use"), standalone.serving(app, port):
            pytest.fail("two on one port")
    with standalone.serving(app, port) as again:
        assert again == port


def test_an_app_that_does_not_start_is_an_error() -> None:
    app = FastAPI()

    @app.on_event("startup")
    def fail() -> None:
        raise ValueError("no model")

    with pytest.raises(RunError, match="could not be started"), standalone.serving(app):
        pytest.fail("served")
