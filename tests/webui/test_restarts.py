"""The WebUI's restarts and the start of our extension, in a WebUI of the tests' own: see :mod:`tests.fake_webui`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lora_trainer.config.train import TrainConfig
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.jobs.service import shared_jobs
from tests.fake_webui import FakeWebUI
from tests.helpers import until
from tests.runs_helpers import document

SCRIPTS = "lora_train.py", "lora_train_axes.py", "lora_train_grid.py"


def jobs_of(webui: FakeWebUI) -> Any:
    from lora_trainer.hosts.a1111.host import A1111Host

    return shared_jobs(A1111Host)


def opened(webui: FakeWebUI) -> TestClient:
    """The app that the page is served with, after all extensions have added theirs."""
    app = FastAPI()
    webui.script_callbacks.app_started_callback(None, app)
    return TestClient(app, base_url="http://127.0.0.1:7860")


# ------------------------------------------------------------------ scripts/lora_train.py
def test_a_start_puts_everything_where_the_webui_has_it(webui: FakeWebUI) -> None:
    import gradio

    from lora_trainer.hosts.a1111.rebuild import reload
    from lora_trainer.webui.prompt_tags import LoraBlocks

    webui.start(*SCRIPTS)
    with gradio.Blocks():
        tabs = webui.script_callbacks.ui_tabs_callback()
    assert [(title, name) for _, title, name in tabs] == [("LoRA Train", "lora_train")]
    webui.script_callbacks.ui_settings_callback()
    assert webui.shared.opts.lora_train_priority == "generation"
    assert webui.shared.opts.lora_train_block_weights is True
    option = webui.shared.opts.data_labels["lora_train_block_weights"]
    assert option.section == ("lora_train", "LoRA Train")
    assert "&lt;lora:name:1:lbw=" in option.comment_after
    labels = [each.label for each in webui.script("X/Y/Z plot").current_axis_options]
    assert "LoRA run epoch" in labels
    reload.begin()
    with opened(webui) as client:
        answer = client.get("/lora-train/v1/health", headers={"host": "127.0.0.1"}).json()
    assert answer["checkpoint"]["name"] == "small.safetensors"
    assert isinstance(webui.extra_networks.extra_network_registry["lora"], LoraBlocks)
    assert not reload.going_on


def test_the_settings_are_in_the_pages_language(webui: FakeWebUI) -> None:
    webui.shared.opts.data["localization"] = "zh_CN"
    webui.start("lora_train.py")
    webui.script_callbacks.ui_settings_callback()
    assert webui.shared.opts.data_labels["lora_train_priority"].label == "谁优先"


def test_rest_is_as_open_as_the_webui(webui: FakeWebUI) -> None:
    webui.shared.cmd_opts.api, webui.shared.cmd_opts.api_auth = False, "ann:secret"
    webui.start("lora_train.py")
    with opened(webui) as client:
        assert client.get("/lora-train/v1/health").status_code in (401, 403)


def test_runs_that_waited_go_on_at_the_next_start(webui: FakeWebUI, tmp_path: Path) -> None:
    from lora_trainer.hosts.a1111.host import A1111Host
    from lora_trainer.runs.store import Runs

    config = TrainConfig.from_dict(document(tmp_path, "waiting"))
    host = A1111Host()
    run = Runs(host.folders.runs).create(
        config, checkpoint=host.check(ModelRequest.of(config)).to_dict(), state="queued"
    )
    webui.start("lora_train.py")
    with opened(webui):
        until(lambda: Runs(host.folders.runs).get("waiting").manifest["state"] in ("done", "failed"))
    assert Runs(host.folders.runs).get(run.name).manifest["state"] == "done"


# ------------------------------------------------------------------ its restarts
def test_reload_ui_is_noticed_before_it_interrupts(webui: FakeWebUI) -> None:
    from lora_trainer.hosts.a1111.rebuild import reload

    webui.start("lora_train.py")
    webui.shared.state.request_restart()
    assert reload.going_on
    assert webui.shared.state.server_command == "restart"
    reload.end()
    webui.script_callbacks.script_unloaded_callback()
    assert reload.going_on
    webui.build()
    opened(webui)
    assert not reload.going_on


def test_a_page_built_anew_watches_once(webui: FakeWebUI, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_trainer.webui import restarts

    webui.start("lora_train.py")
    jobs = jobs_of(webui)
    monkeypatch.setattr(jobs, "shutdown", lambda timeout: seen.append(timeout))
    seen: list[float] = []
    webui.build()
    webui.restart.stop_program()
    assert seen == [30.0]
    assert webui.restart.stopped == [True]
    assert restarts.reload is not None


def test_what_fails_before_a_restart_hinders_none(webui: FakeWebUI, caplog: pytest.LogCaptureFixture) -> None:
    from lora_trainer.webui import restarts

    def broken() -> Any:
        raise ZeroDivisionError

    restarts.watch(broken)
    with caplog.at_level(logging.ERROR, logger="lora_trainer.webui.restarts"):
        webui.restart.stop_program()
    assert webui.restart.stopped == [True]
    assert "Before stop_program" in caplog.text


def test_the_run_that_is_worked_on_is_saved_and_stays_in_line(webui: FakeWebUI, tmp_path: Path) -> None:
    from lora_trainer.runs.store import Runs

    webui.start("lora_train.py")
    jobs = jobs_of(webui)
    runs = [
        jobs.submit(TrainConfig.from_dict(document(tmp_path, name, training__steps=100_000)))
        for name in ("first", "second")
    ]
    until(lambda: runs[0].manifest["step"] >= 2)
    webui.restart.stop_program()
    assert webui.restart.stopped == [True]
    assert jobs.training.current() is None
    stored = Runs(jobs.host.folders.runs)
    assert [stored.get(run.name).manifest["state"] for run in runs] == ["queued", "queued"]
    assert stored.get("first").manifest["step"] >= 2


def test_middleware_can_be_added_to_an_app_that_has_answered(webui: FakeWebUI) -> None:
    """As the WebUI does it when a page that stayed open has asked for something already."""
    from lora_trainer.webui import restarts

    app = FastAPI()
    app.get("/ping")(lambda: {"text": "x" * 5000})
    with TestClient(app) as client:
        assert "content-encoding" not in client.get("/ping").headers
        with pytest.raises(RuntimeError, match="Cannot add middleware"):
            app.add_middleware(type("None", (), {}))
        restarts.watch(lambda: jobs_of(webui))
        webui.initialize_util.setup_middleware(app)
        assert client.get("/ping").headers["content-encoding"] == "gzip"
