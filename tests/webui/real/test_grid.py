"""The epoch × weight grid through the real WebUI's own pipeline."""

from __future__ import annotations

import base64
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from tests.webui.real.webui import WebUI

WISHES = {"weights": [0.5, 1], "prompts": ["zorp, blue background"], "seeds": [3, 4], "together": 4}
LOADS = """
import networks
from modules import shared
if not hasattr(networks, "counted_loads"):
    inner = networks.load_network
    networks.counted_loads = []
    def counting(name, disk):
        networks.counted_loads.append(name)
        return inner(name, disk)
    networks.load_network = counting
networks.counted_loads.clear()
networks.networks_in_memory.clear()
networks.loaded_networks.clear()
result = None
"""


@pytest.fixture(scope="module")
def run(webui: WebUI, pictures: Path) -> str:
    """The name of a finished run of three epochs."""
    settings = {
        "name": "gridded",
        "data": {"folder": str(pictures), "resolution": 128, "bucket_step": 32, "trigger": "zorp"},
        "network": {"rank": 4, "alpha": 4},
        "training": {"epochs": 3, "batch_size": 3, "unet_lr": 5e-3, "text_lr": 1e-3, "seed": 5},
        "save": {"every_epochs": 1},
        "samples": {"steps": 6, "width": 64, "height": 64},
        "validation": {"share": 0.3},
    }
    manifest = webui.finished(webui.train(**settings))
    assert manifest["state"] == "done", manifest["message"]
    return "gridded"


def draw(webui: WebUI, run: str, **wishes: Any) -> dict[str, Any]:
    status, answer = webui.request("POST", f"/lora-train/v1/runs/{run}/grid", {**WISHES, **wishes})
    assert status == 200, answer
    grid = webui.drawn(run)
    assert grid["state"] == "done", grid
    return webui.get(f"/lora-train/v1/runs/{run}/grid")


def test_every_cell_is_what_txt2img_draws(webui: WebUI, run: str) -> None:
    """Alone to the byte; together up to the rounding of a larger batch, which is the WebUI's own too."""
    for together, most in ((1, 0), (4, 2)):
        for path in webui.data.glob("**/runs/gridded/grids/plain/cells/*"):
            path.unlink()
        document = draw(webui, run, together=together)
        assert [c["epoch"] for c in document["columns"]] == [0, 1, 2, 3]
        assert [p["text"] for p in document["prompts"]] == ["zorp, blue background", "blue background"]
        for cell in document["cells"]:
            name = document["columns"][cell["column"]]["name"]
            tag = f"<lora:{name}:{cell['weight']:g}>" if name else ""
            prompt = document["prompts"][cell["prompt"]]["text"] + tag
            seed = document["seeds"][cell["seed"]]
            drawn = webui.picture(prompt, seed=seed, width=64, height=64, cfg_scale=document["cfg"])
            with Image.open(cell["picture"]) as picture:
                assert picture.info["parameters"].startswith(f"{prompt}\n")
                assert f"Seed: {seed}" in picture.info["parameters"]
                difference = numpy.asarray(picture.convert("RGB"), int) - numpy.asarray(drawn, int)
            assert abs(difference).max() <= most, cell


def test_numbers_and_a_verdict_are_beside_the_pictures(webui: WebUI, run: str) -> None:
    document = draw(webui, run)
    losses = [group["numbers"]["loss"] for group in document["groups"]]
    assert len(losses) == 1 + 3 * 2
    assert len(set(losses)) == len(losses)
    assert document["verdict"]["state"] in ("good", "under", "over", "useless", "unknown")
    assert {"effect", "leak", "copy"} <= document["groups"][-1]["numbers"].keys()
    assert Path(document["csv"]).is_file()


def test_a_second_call_draws_nothing_and_only_what_is_missing(webui: WebUI, run: str) -> None:
    document = draw(webui, run)
    stamps = {c["picture"]: Path(c["picture"]).stat().st_mtime_ns for c in document["cells"]}
    missing = [c["picture"] for c in document["cells"] if c["column"] == 2]
    for picture in missing:
        Path(picture).unlink()
    again = draw(webui, run)
    now = {c["picture"]: Path(c["picture"]).stat().st_mtime_ns for c in again["cells"]}
    assert {picture for picture in stamps if now[picture] != stamps[picture]} == set(missing)


def test_each_file_is_read_once_for_all_its_weights_and_prompts(webui: WebUI, run: str) -> None:
    webui.probe(LOADS)
    document = draw(webui, run, seeds=[11], together=1)
    names = [column["name"] for column in document["columns"] if column["name"]]
    assert webui.probe("import networks; result = networks.counted_loads") == names


def test_another_clip_skip_does_not_show_the_pictures_of_the_first(webui: WebUI, run: str) -> None:
    keys = []
    try:
        for skip in (1, 2, 1):
            webui.post("/sdapi/v1/options", {"CLIP_stop_at_last_layers": skip})
            keys.append([cell["key"] for cell in draw(webui, run, weights=[1], seeds=[1], numbers=False)["cells"]])
    finally:
        webui.post("/sdapi/v1/options", {"CLIP_stop_at_last_layers": 1})
    assert keys[0] == keys[2]
    assert not set(keys[0]) & set(keys[1])


def test_interrupt_stops_the_grid_and_keeps_what_is_drawn(webui: WebUI, run: str) -> None:
    wishes = {**WISHES, "seeds": [21, 22, 23], "together": 1, "numbers": False}
    webui.post(f"/lora-train/v1/runs/{run}/grid", wishes)
    pressing = threading.Event()

    def press() -> None:
        while not pressing.wait(0.05):
            if webui.get(f"/lora-train/v1/runs/{run}")["grid"]["done"] >= 2:
                webui.post("/sdapi/v1/interrupt")

    presser = threading.Thread(target=press)
    presser.start()
    grid = webui.drawn(run)
    pressing.set()
    presser.join()
    assert grid["state"] == "stopped", grid
    assert "interrupted" in grid["message"]
    document = webui.get(f"/lora-train/v1/runs/{run}/grid")
    kept = [c["picture"] for c in document["cells"] if c["picture"]]
    assert 2 <= len(kept) < len(document["cells"])
    assert all(cell["picture"] for cell in draw(webui, run, seeds=[21, 22, 23], numbers=False)["cells"])


def script(webui: WebUI, *arguments: Any, **values: Any) -> tuple[int, Any]:
    """txt2img with the script."""
    body = {"prompt": "zorp, blue background", "seed": 31, "steps": 6, "width": 64, "height": 64, "cfg_scale": 6}
    body |= {"sampler_name": "DPM++ 2M", "scheduler": "Karras", "script_name": "lora train grid", **values}
    return webui.request("POST", "/sdapi/v1/txt2img", {**body, "script_args": list(arguments)})


def test_the_script_draws_the_grid_with_the_pages_own_settings(webui: WebUI, run: str) -> None:
    prompt = "zorp, blue background<lora:gridded-000002:0.4>"
    status, answer = script(webui, run, "1, 3", "0.5, 1", 1, True, prompt=prompt, n_iter=2)
    assert status == 200, answer
    info = json.loads(answer["info"])
    document = webui.get(f"/lora-train/v1/runs/{run}/grid")
    assert [c["epoch"] for c in document["columns"]] == [0, 1, 3]
    assert (document["seeds"], document["sampler"]) == ([31, 32], "DPM++ 2M Karras")
    assert len(answer["images"]) == 1 + len(document["cells"]) == 1 + 2 * 2 * (1 + 2 * 2)
    sheet, *cells = [Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB") for image in answer["images"]]
    assert sheet.width > 3 * 64
    for cell, picture, text in zip(document["cells"], cells, info["infotexts"][1:], strict=True):
        name = document["columns"][cell["column"]]["name"]
        tag = f"<lora:{name}:{cell['weight']:g}>" if name else ""
        shown = document["prompts"][cell["prompt"]]["text"] + tag
        assert text.startswith(f"{shown}\n")
        drawn = webui.picture(
            shown, seed=document["seeds"][cell["seed"]], width=64, height=64, cfg_scale=6,
            sampler_name="DPM++ 2M", scheduler="Karras",
        )  # fmt: skip
        assert picture.tobytes() == drawn.tobytes()
    assert document["verdict"]["sentences"][0]["template"].format(**document["verdict"]["sentences"][0]["values"])


def test_the_script_and_the_tab_find_each_others_pictures(webui: WebUI, run: str) -> None:
    draw(webui, run, weights=[1], seeds=[41], numbers=False)
    stamps = {path: path.stat().st_mtime_ns for path in webui.data.glob("**/gridded/grids/plain/cells/*.png")}
    values = {"prompt": WISHES["prompts"][0], "seed": 41, "cfg_scale": 7, "sampler_name": "Euler a"}
    status, _ = script(webui, run, "all", "1", 4, False, **values, scheduler="Automatic")
    assert status == 200
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert len(list(webui.data.glob("**/gridded/grids/plain/cells/*.png"))) == len(stamps)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("nobody", "all", "1", 1, False), "no run named nobody"),
        (("gridded", "9", "1", 1, False), "no epoch 9"),
        (("gridded", "all", "much", 1, False), "not a number"),
        (("gridded", "all", "7", 1, False), "from -2 to 2"),
    ],
)
def test_what_the_script_cannot_use_is_one_sentence(webui: WebUI, run: str, arguments: Any, part: str) -> None:
    status, answer = script(webui, *arguments)
    assert status == 422
    assert part in answer["detail"]


def test_pictures_can_be_drawn_while_a_run_goes_on_and_only_from_its_finished_files(
    webui: WebUI, run: str, pictures: Path
) -> None:
    settings = {
        "name": "going-on",
        "data": {"folder": str(pictures), "resolution": 128, "trigger": "zorp"},
        "network": {"rank": 4},
        "training": {"epochs": 400, "batch_size": 3},
        "save": {"every_epochs": 1},
        "samples": {"steps": 4, "width": 64, "height": 64},
    }
    name = webui.train(**settings)
    try:
        webui.until(name, 3)
        document = draw(webui, name, epochs="1", weights=[1], numbers=False)
        assert [column["epoch"] for column in document["columns"]] == [0, 1]
        assert webui.get(f"/lora-train/v1/runs/{name}")["state"] == "running"
    finally:
        webui.post(f"/lora-train/v1/runs/{name}/stop")
        webui.finished(name)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"weights": ["1"]}, "weights"),
        ({"weights": [9]}, "weights"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": [1.5]}, "seeds"),
        ({"epochs": 3}, "epochs"),
        ({"together": 0}, "together"),
        ({"numbers": "yes"}, "numbers"),
        ({"color": 1}, "color"),
        ({"epochs": "99"}, ""),
    ],
)
def test_bad_wishes_are_one_sentence(webui: WebUI, run: str, body: dict[str, Any], field: str) -> None:
    status, answer = webui.request("POST", f"/lora-train/v1/runs/{run}/grid", body)
    assert status == 422
    assert answer["detail"][0]["field"] == field
    assert "Traceback" not in answer["detail"][0]["msg"]


def drawn_alone(webui: WebUI, prompt: str, **values: Any) -> bytes:
    usual = {"seed": 31, "width": 64, "height": 64, "cfg_scale": 6, "sampler_name": "DPM++ 2M", "scheduler": "Karras"}
    return webui.picture(prompt, **{**usual, **values}).tobytes()


HIRES = {
    "enable_hr": True,
    "denoising_strength": 0.6,
    "hr_scale": 2,
    "hr_upscaler": "Latent",
    "hr_second_pass_steps": 3,
}


@pytest.mark.parametrize(
    "values",
    [
        {},
        HIRES,
        {**HIRES, "hr_prompt": "red square", "hr_negative_prompt": "blue"},
        {"subseed": 5, "subseed_strength": 0.4},
        {"seed_resize_from_w": 128, "seed_resize_from_h": 64},
        {"tiling": True},
        {"override_settings": {"CLIP_stop_at_last_layers": 2}},
        {"prompt": ""},
    ],
    ids=lambda values: next(iter(values), "plain"),
)
def test_the_script_draws_what_the_page_would(webui: WebUI, run: str, values: dict[str, Any]) -> None:
    """Also after the plain pictures are on disk; with several cells drawn together."""
    status, answer = script(webui, run, "1, 3", "1", 4, False, **values)
    assert status == 200, answer
    document = webui.get(f"/lora-train/v1/runs/{run}/grid")
    sheet, *cells = [Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB") for image in answer["images"]]
    assert sheet.width > 3 * cells[0].width
    assert [prompt["text"] for prompt in document["prompts"]] == [values.get("prompt", "zorp, blue background")]
    for cell, picture in zip(document["cells"], cells, strict=True):
        name = document["columns"][cell["column"]]["name"]
        tag = f"<lora:{name}:{cell['weight']:g}>" if name else ""
        alone = dict(values)
        if "hr_prompt" in values:
            alone["hr_prompt"] += tag
        prompt = alone.pop("prompt", "zorp, blue background")
        assert picture.tobytes() == drawn_alone(webui, prompt + tag, **alone), (cell, values)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"refiner_checkpoint": "other.safetensors", "refiner_switch_at": 0.5}, "a refiner"),
        ({**HIRES, "hr_checkpoint_name": "other.safetensors"}, "hires fix"),
        ({"override_settings": {"sd_model_checkpoint": "other.safetensors"}}, "override settings"),
        ({"subseed": 5, "subseed_strength": 0.4, "batch_size": 2}, "variation seed"),
    ],
)
def test_what_the_script_cannot_draw_is_told(webui: WebUI, run: str, values: dict[str, Any], part: str) -> None:
    status, answer = script(webui, run, "1, 3", "1", 4, False, **values)
    assert status == 422
    assert part in answer["detail"]


PROGRESS = """
from modules import shared, shared_state, shared_total_tqdm
if not hasattr(shared_state.State, "lora_train_seen"):
    shared_state.State.lora_train_seen = []
    inner = shared_state.State.nextjob
    def nextjob(self):
        inner(self)
        bar = shared.total_tqdm._tqdm
        self.lora_train_seen.append((self.job_no, self.job_count, bar.n if bar else 0, bar.total if bar else 0))
    shared_state.State.nextjob = nextjob
shared_state.State.lora_train_seen.clear()
"""


def test_the_scripts_progress_ends_at_its_end(webui: WebUI, run: str) -> None:
    """Whatever is drawn together, and with some of the pictures on disk already."""
    for weights, together, values in (("0.7", 3, {}), ("0.7, 0.9", 16, {}), ("0.55", 2, HIRES)):
        webui.probe(PROGRESS)
        assert script(webui, run, "all", weights, together, False, seed=71, n_iter=1, **values)[0] == 200
        seen = webui.probe("from modules import shared; result = shared.state.lora_train_seen")
        assert seen[-1][0] == seen[-1][1], seen
        assert all(done <= total for _, _, done, total in seen), seen
        assert seen[-1][2] == seen[-1][3], seen
