"""With ``--no-hashing`` the WebUI has no hash of any checkpoint: they are told apart by their weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.webui.real.test_webui import document, tensors
from tests.webui.real.webui import WebUI

FINGERPRINT = """
from lora_trainer.hosts.a1111.checkpoint import fingerprint
from modules import shared
result = fingerprint(shared.sd_model)
"""


@pytest.fixture(scope="module")
def unhashed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    with WebUI(tmp_path_factory.mktemp("unhashed"), "--no-hashing") as running:
        yield running


def loaded(webui: WebUI, name: str) -> dict[str, Any]:
    webui.post("/sdapi/v1/options", {"sd_model_checkpoint": f"{name}.safetensors"})
    return webui.get("/lora-train/v1/health")["checkpoint"]


def test_the_fingerprint_tells_the_weights_whatever_was_drawn_and_loaded_between(
    unhashed: WebUI, pictures: Path
) -> None:
    first = loaded(unhashed, "small")
    assert first["sha256"] == ""
    assert first["fingerprint"].startswith("sampled:")
    manifest = unhashed.finished(unhashed.train(**document(pictures)))
    assert manifest["checkpoint"] == first
    unhashed.picture(f"zorp<lora:{manifest['name']}:1>")  # the host leaves it in the weights
    assert unhashed.probe(FINGERPRINT) == first["fingerprint"]
    assert loaded(unhashed, "other")["fingerprint"] != first["fingerprint"]
    assert loaded(unhashed, "small") == first


def test_a_paused_run_goes_on_with_its_own_checkpoint_only(unhashed: WebUI, pictures: Path) -> None:
    loaded(unhashed, "small")
    settings = {"training__steps": 60, "samples__prompts": []}
    reference = unhashed.finished(unhashed.train(**document(pictures, **settings)))
    name = unhashed.train(**document(pictures, **settings))
    unhashed.until(name, 2)
    unhashed.post(f"/lora-train/v1/runs/{name}/pause")
    assert unhashed.finished(name)["state"] == "paused"
    loaded(unhashed, "other")
    status, answer = unhashed.request("POST", f"/lora-train/v1/runs/{name}/resume")
    assert status == 422
    assert "was trained on small.safetensors" in answer["detail"][0]["msg"]
    loaded(unhashed, "small")
    unhashed.post(f"/lora-train/v1/runs/{name}/resume")
    assert tensors(unhashed.in_state(name, "done")) == tensors(reference)


def test_a_file_of_the_same_name_with_other_weights_is_another_checkpoint(unhashed: WebUI, pictures: Path) -> None:
    loaded(unhashed, "small")
    name = unhashed.train(**document(pictures, training__steps=2000, samples__prompts=[]))
    unhashed.until(name, 2)
    folder = unhashed.data / "models" / "Stable-diffusion"
    kept = folder / "small.kept"
    shutil.copy(folder / "small.safetensors", kept)
    reload = (
        "from modules import sd_models, shared\nfrom modules.call_queue import queue_lock\n"
        "with queue_lock: sd_models.reload_model_weights(info=shared.sd_model.sd_checkpoint_info, forced_reload=True)\n"
        "result = None"
    )
    try:
        shutil.copy(folder / "other.safetensors", folder / "small.safetensors")
        unhashed.probe(reload)
        assert "another checkpoint" in unhashed.in_state(name, "paused")["message"]
    finally:
        shutil.copy(kept, folder / "small.safetensors")
        unhashed.probe(reload)
    unhashed.in_state(name, "running")
    unhashed.post(f"/lora-train/v1/runs/{name}/stop", {"save": False})
    unhashed.in_state(name, "stopped")
