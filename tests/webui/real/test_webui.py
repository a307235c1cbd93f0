"""What must hold inside the real WebUI."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.webui.real.webui import WebUI

_numbers = itertools.count(1)

WEIGHTS = """
import hashlib
from modules import shared
digest = hashlib.sha256()
for name, p in sorted(shared.sd_model.named_parameters()):
    digest.update(name.encode() + p.detach().cpu().numpy().tobytes())
flags = hashlib.sha256(repr([(n, p.requires_grad) for n, p in shared.sd_model.named_parameters()]).encode()).hexdigest()
result = [digest.hexdigest(), flags]
"""
CLEAN = """
from lora_trainer.hosts.a1111.host import clean_weights
from modules import shared
clean_weights(shared.sd_model)
"""


def document(pictures: Path, **changes: Any) -> dict[str, Any]:
    """A short run with UNet, text encoder, samples and a held-out picture; keys of ``changes`` as section__key."""
    settings: dict[str, Any] = {
        "name": f"host{next(_numbers)}",
        "data": {"folder": str(pictures), "resolution": 128, "bucket_step": 32, "trigger": "zorp"},
        "network": {"rank": 4, "alpha": 2},
        "training": {"steps": 4, "batch_size": 2, "unet_lr": 1e-2, "text_lr": 1e-3, "seed": 5},
        "samples": {"prompts": ["zorp, red background"], "steps": 6},
        "validation": {"share": 0.2},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        settings.setdefault(section, {})
        if name:
            settings[section][name] = value
        else:
            settings[section] = value
    return settings


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.tobytes() == second.tobytes()


def tensors(manifest: dict[str, Any]) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in load_file(manifest["files"][-1]["path"]).items()}


@pytest.fixture(scope="module")
def trained(webui: WebUI, pictures: Path) -> dict[str, Any]:
    """A finished run's manifest."""
    return webui.finished(webui.train(**document(pictures)))


def test_the_run_is_done_and_its_files_have_cards(webui: WebUI, trained: dict[str, Any]) -> None:
    assert (trained["state"], trained["message"]) == ("done", "")
    last = Path(trained["files"][-1]["path"])
    assert last.parent == webui.data / "models" / "Lora" / trained["name"]
    card = json.loads(last.with_suffix(".json").read_text(encoding="utf-8"))
    assert card["activation text"] == "zorp"
    assert card["sd version"] == "SD1"
    assert Image.open(last.with_suffix(".png")).size == (128, 128)


def test_the_view_has_the_hosts_own_parameters_and_no_others(webui: WebUI) -> None:
    assert webui.probe("""
from modules import shared
from lora_trainer.config.train import TrainConfig
from lora_trainer.hosts.a1111.host import A1111Host
host = A1111Host()
with host.session(TrainConfig(name="probe")) as session:
    theirs = {id(p) for p in shared.sd_model.model.diffusion_model.parameters()}
    text = {id(p) for p in shared.sd_model.cond_stage_model.parameters()}
    ours = {id(p) for p in session.model.unet.parameters()}
    our_text = {id(p) for p in session.model.text.model.parameters()}
    result = [ours == theirs, len(ours), our_text == text, len(our_text)]
""") == [True, 686, True, 196]


def test_the_lora_changes_txt2img(webui: WebUI, trained: dict[str, Any]) -> None:
    plain = webui.picture("zorp, red background")
    assert not same(plain, webui.picture(f"zorp, red background<lora:{trained['name']}:1>"))


def test_a_sample_is_what_txt2img_draws(webui: WebUI, trained: dict[str, Any]) -> None:
    sample = Image.open(trained["samples"][-1]["path"]).convert("RGB")
    assert same(sample, webui.picture(f"zorp, red background<lora:{trained['name']}:1>"))


def test_view_with_adapters_equals_host_with_lora(webui: WebUI, trained: dict[str, Any]) -> None:
    unet, text = webui.probe(f"""
import torch, networks
from pathlib import Path
from modules import shared
from modules.call_queue import queue_lock
from lora_trainer.config.train import TrainConfig
from lora_trainer.hosts.a1111.host import A1111Host, clean_weights
from lora_trainer.network.adapters import TEXT_PREFIX, UNET_PREFIX, adapters_for
from lora_trainer.network.lora_file import read_lora
path = Path({trained["files"][-1]["path"]!r})
model = shared.sd_model
g = torch.Generator().manual_seed(0)
x, t = torch.randn(2, 4, 16, 16, generator=g), torch.tensor([17, 803])
captions = ["zorp, red background, (literal:2)", ", ".join(["blue circle"] * 40)]
plain = [c.replace("(", "\\\\(").replace(")", "\\\\)") for c in captions]
with queue_lock, torch.no_grad():
    networks.load_networks([path.stem], [1.0], [1.0], [None])
    states = model.get_learned_conditioning(plain)
    theirs = model.model.diffusion_model(x, t, context=states)
with A1111Host().session(TrainConfig(name="probe")) as session:
    with session.turn(), torch.no_grad():
        parts = {{UNET_PREFIX: session.model.unet, TEXT_PREFIX: session.model.text.model}}
        adapters_for(parts, read_lora(path))
        our_states = session.model.text(captions)
        ours = session.model.unet(x, t, our_states).sample
relative = lambda a, b: float((a - b).norm() / b.norm())
result = [relative(ours, theirs), relative(our_states, states)]
""")
    assert unet <= 1e-5
    assert text <= 1e-5


def test_host_is_as_before_after_success(webui: WebUI, pictures: Path) -> None:
    webui.probe(CLEAN)
    weights, picture = webui.probe(WEIGHTS), webui.picture("red circle")
    assert webui.finished(webui.train(**document(pictures)))["state"] == "done"
    assert webui.probe(WEIGHTS) == weights
    assert same(webui.picture("red circle"), picture)


def test_host_is_as_before_after_a_stop(webui: WebUI, pictures: Path) -> None:
    webui.probe(CLEAN)
    weights, picture = webui.probe(WEIGHTS), webui.picture("red circle")
    name = webui.train(**document(pictures, training__steps=500))
    webui.until(name, 2)
    webui.post(f"/lora-train/v1/runs/{name}/stop")
    manifest = webui.finished(name)
    assert manifest["state"] == "stopped"
    assert Path(manifest["files"][-1]["path"]).is_file()
    assert webui.probe(WEIGHTS) == weights
    assert same(webui.picture("red circle"), picture)


def test_host_is_as_before_after_an_error(webui: WebUI, pictures: Path) -> None:
    webui.probe(CLEAN)
    weights, picture = webui.probe(WEIGHTS), webui.picture("red circle")
    webui.probe("""
from lora_trainer.training import trainer
original = trainer.Trainer._apply
def broken(self):
    trainer.Trainer._apply = original
    raise RuntimeError("injected")
trainer.Trainer._apply = broken
""")
    manifest = webui.finished(webui.train(**document(pictures)))
    assert manifest["state"] == "failed"
    assert "injected" in manifest["message"]
    assert webui.probe(WEIGHTS) == weights
    assert same(webui.picture("red circle"), picture)


def test_a_lora_in_the_weights_is_taken_out_before_training(
    webui: WebUI, pictures: Path, trained: dict[str, Any]
) -> None:
    webui.probe(CLEAN)
    weights = webui.probe(WEIGHTS)
    webui.picture(f"zorp<lora:{trained['name']}:1>")
    assert webui.probe(WEIGHTS)[0] != weights[0]  # the host leaves it in
    manifest = webui.finished(webui.train(**document(pictures)))
    assert tensors(manifest) == tensors(trained)
    assert webui.probe(WEIGHTS) == weights


def test_the_same_seed_gives_the_same_bytes(webui: WebUI, pictures: Path, trained: dict[str, Any]) -> None:
    assert tensors(webui.finished(webui.train(**document(pictures)))) == tensors(trained)


def test_a_picture_drawn_beside_a_run_is_the_same_and_so_is_the_lora(
    webui: WebUI, pictures: Path, trained: dict[str, Any]
) -> None:
    prompt = f"red circle<lora:{trained['name']}:0.7>"
    alone = webui.picture(prompt)
    long = {"training__steps": 30, "samples__prompts": []}
    reference = webui.finished(webui.train(**document(pictures, **long)))
    name = webui.train(**document(pictures, **long))
    webui.until(name, 3)
    for _ in range(3):
        assert same(webui.picture(prompt), alone)
    assert webui.get(f"/lora-train/v1/runs/{name}")["state"] == "running"
    assert tensors(webui.finished(name)) == tensors(reference)


def test_a_run_whose_checkpoint_is_switched_away_goes_on_when_it_is_back(webui: WebUI, pictures: Path) -> None:
    settings = {"training__steps": 150, "samples__prompts": [], "save": {"state_steps": 100}}
    reference = webui.finished(webui.train(**document(pictures, **settings)))
    name = webui.train(**document(pictures, **settings))
    webui.until(name, 2)
    try:
        webui.post("/sdapi/v1/options", {"sd_model_checkpoint": "other.safetensors"})
        manifest = webui.in_state(name, "paused")
        assert "another checkpoint" in manifest["message"]
        assert 2 <= manifest["step"] < 150
        webui.picture("red circle")
        webui.post(f"/lora-train/v1/runs/{name}/load-checkpoint")
    finally:
        webui.post("/sdapi/v1/options", {"sd_model_checkpoint": "small.safetensors"})
    assert tensors(webui.in_state(name, "done")) == tensors(reference)


def test_a_run_that_waits_for_its_checkpoint_can_be_stopped(webui: WebUI, pictures: Path) -> None:
    name = webui.train(**document(pictures, training__steps=2000, samples__prompts=[]))
    webui.until(name, 2)
    try:
        webui.post("/sdapi/v1/options", {"sd_model_checkpoint": "other.safetensors"})
        webui.in_state(name, "paused")
        webui.post(f"/lora-train/v1/runs/{name}/stop")
        webui.in_state(name, "stopped")
    finally:
        webui.post("/sdapi/v1/options", {"sd_model_checkpoint": "small.safetensors"})
    time.sleep(2)  # it would go on by itself
    assert webui.get(f"/lora-train/v1/runs/{name}")["state"] == "stopped"


def test_a_run_outlives_reload_ui(webui: WebUI, pictures: Path) -> None:
    long = {"training__steps": 60, "samples__prompts": []}
    reference = webui.finished(webui.train(**document(pictures, **long)))
    name = webui.train(**document(pictures, **long))
    waiting = webui.train(**document(pictures, **{**long, "training__steps": 2}))
    webui.until(name, 2)
    webui.probe("from modules import shared; shared.state.server_command = 'restart'")
    webui.until_reloaded()
    assert tensors(webui.finished(name)) == tensors(reference)
    assert webui.finished(waiting)["state"] == "done"
    assert webui.picture("red circle").size == (128, 128)


def test_the_persons_last_prompt_is_kept(webui: WebUI, pictures: Path) -> None:
    webui.picture("my own prompt")
    webui.finished(webui.train(**document(pictures)))
    assert (webui.data / "params.txt").read_text(encoding="utf-8").startswith("my own prompt")


def test_interrupt_stops_a_run_that_nobody_waits_for(webui: WebUI, pictures: Path) -> None:
    name = webui.train(**document(pictures, training__steps=3000, samples__prompts=[]))
    webui.until(name, 2)
    for _ in range(100):
        webui.post("/sdapi/v1/interrupt")
        if webui.get(f"/lora-train/v1/runs/{name}")["state"] != "running":
            break
    assert webui.finished(name)["state"] == "stopped"


def test_progress_shows_in_the_webui(webui: WebUI, pictures: Path) -> None:
    name = webui.train(**document(pictures, training__steps=400, samples__prompts=[]))
    webui.until(name, 5)
    jobs = {webui.get("/sdapi/v1/progress?skip_current_image=true")["state"]["job"] for _ in range(30)}
    webui.post(f"/lora-train/v1/runs/{name}/stop", {"save": False})
    webui.finished(name)
    assert f"LoRA Train: {name}" in jobs
    assert webui.get("/sdapi/v1/progress?skip_current_image=true")["state"]["job"] == ""


def test_the_grid_is_drawn_through_the_host(webui: WebUI, trained: dict[str, Any]) -> None:
    name = trained["name"]
    webui.post(f"/lora-train/v1/runs/{name}/grid", {"weights": [0.5, 1], "prompts": ["zorp", "red circle"]})
    grid = webui.drawn(name)
    assert grid["state"] == "done", grid
    assert Image.open(grid["path"]).width > 128 * len(trained["files"])


@pytest.mark.parametrize(
    ("change", "field", "part"),
    [
        ({"data__folder": "/no/such/folder"}, "data.folder", "does not exist"),
        ({"name": "../climbs"}, "name", "cannot be a file name"),
        ({"network__rank": 0}, "network.rank", "out of range"),
        ({"save": {"folder": "../../elsewhere"}}, "save.folder", "outside"),
        ({"network__continue_from": "/no/file.safetensors"}, "network.continue_from", "does not exist"),
    ],
)
def test_bad_input_is_one_sentence(webui: WebUI, pictures: Path, change: dict, field: str, part: str) -> None:
    before = webui.get("/lora-train/v1/runs")
    status, answer = webui.request("POST", "/lora-train/v1/runs", document(pictures, **change))
    assert status == 422
    assert answer["detail"][0]["field"] == field
    assert part in answer["detail"][0]["msg"]
    assert [r["name"] for r in webui.get("/lora-train/v1/runs")] == [r["name"] for r in before]


def test_an_existing_name_is_not_overwritten(webui: WebUI, pictures: Path, trained: dict[str, Any]) -> None:
    status, answer = webui.request("POST", "/lora-train/v1/runs", document(pictures, name=trained["name"]))
    assert status == 422
    assert f"{trained['name']}-2" in answer["detail"][0]["msg"]


def test_in_another_precision_it_learns_and_the_weights_stay_as_they_are(webui: WebUI, pictures: Path) -> None:
    """Of fp32 weights in bf16: the frozen layers cast them as they are used, with the WebUI's torch, too."""
    webui.probe(CLEAN)
    before, picture = webui.probe(WEIGHTS), webui.picture("zorp")
    losses = []
    for precision in ("fp32", "bf16"):
        manifest = webui.finished(webui.train(**document(pictures, training__precision=precision)))
        assert (manifest["state"], manifest["precision"], manifest["message"]) == ("done", precision, "")
        losses.append(manifest["files"][-1]["metrics"]["validation"])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    webui.probe(CLEAN)
    assert webui.probe(WEIGHTS) == before
    assert same(webui.picture("zorp"), picture)


def test_memory_is_computed_and_then_measured(webui: WebUI, pictures: Path) -> None:
    webui.probe(CLEAN)
    before = webui.probe(WEIGHTS)
    status, found = webui.request("POST", "/lora-train/v1/preflight", document(pictures))
    assert status == 200, found
    assert found["fits"]
    assert 1e6 < found["expected"] < 1e9
    assert found["needed"] is not None
    assert "cannot be computed here" not in webui.log()
    webui.probe(CLEAN)
    assert webui.probe(WEIGHTS) == before
