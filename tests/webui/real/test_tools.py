"""File tools and mixes in the real WebUI: a new file's name works at once, a mix is what txt2img draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from tests.webui.real.webui import WebUI

LORAS = "/lora-train/v1/loras"
SIZE = {"width": 64, "height": 64}
DRAW = """
from lora_trainer.jobs.service import _shared
jobs = _shared[0]
task = jobs.tools.start("mix", {body})
assert jobs.tools.wait(task, 120)
result = task.to_dict()
"""


@pytest.fixture(scope="module")
def run(webui: WebUI, pictures: Path) -> str:
    """The name of a finished run of two epochs."""
    settings = {
        "name": "tooled",
        "data": {"folder": str(pictures), "resolution": 128, "bucket_step": 32, "trigger": "zorp"},
        "network": {"rank": 4, "alpha": 4},
        "training": {"epochs": 2, "batch_size": 3, "unet_lr": 5e-3, "text_lr": 1e-3, "seed": 5},
        "save": {"every_epochs": 1},
        "samples": {"steps": 1, **SIZE},
    }
    manifest = webui.finished(webui.train(**settings))
    assert manifest["state"] == "done", manifest["message"]
    return "tooled"


def worked(webui: WebUI, verb: str, **body: Any) -> dict[str, Any]:
    status, answer = webui.request("POST", f"{LORAS}/{verb}", body)
    assert status == 200, answer
    look = "from lora_trainer.jobs.service import _shared\ntools = _shared[0].tools\n"
    webui.probe(f"{look}tools.wait(tools.get({answer['id']!r}), 60)")
    over = webui.get(f"{LORAS}/work/{answer['id']}")
    assert over["state"] == "done", over
    return over["result"]


def apart(one: Image.Image, other: Image.Image) -> int:
    return int(abs(numpy.asarray(one.convert("RGB"), int) - numpy.asarray(other.convert("RGB"), int)).max())


def test_new_files_work_in_prompts_at_once(webui: WebUI, run: str) -> None:
    assert f"{run}/{run}" in [entry["name"] for entry in webui.get(LORAS)]
    baked = worked(webui, "bake", file=run, weight=0.5, lbw="OUTALL")
    wanted = webui.picture(f"zorp<lora:{run}:0.5:lbw=OUTALL>", **SIZE)
    assert apart(webui.picture(f"zorp<lora:{Path(baked['path']).stem}:1>", **SIZE), wanted) == 0
    merged = worked(webui, "merge", files=[f"{run}: 0.4", f"{run}-000001: 0.3"])
    wanted = webui.picture(f"zorp<lora:{run}:0.4><lora:{run}-000001:0.3>", **SIZE)
    assert apart(webui.picture(f"zorp<lora:{Path(merged['path']).stem}:1>", **SIZE), wanted) <= 2
    assert apart(webui.picture("zorp", **SIZE), wanted) > 2
    assert (Path(baked["path"]).with_suffix(".json")).is_file()


def test_mixes_are_what_txt2img_draws(webui: WebUI, run: str) -> None:
    stack = f"{run}: 0.7\n{run}-000001: 0.4: OUTALL"
    body = {"stack": stack, "count": 3, "prompt": "zorp, red", "picture_seed": 7, "steps": 3, **SIZE}
    over = webui.probe(DRAW.format(body=body))
    assert over["state"] == "done", over
    for mix in over["result"]["mixes"]:
        drawn = webui.picture(mix["prompt"], seed=7, steps=3, cfg_scale=7, **SIZE)
        with Image.open(mix["picture"]) as picture:
            assert picture.info["parameters"].startswith(f"{mix['prompt']}\n")
            assert apart(picture, drawn) == 0
    weights = [tuple(mix["weights"].values()) for mix in over["result"]["mixes"]]
    assert len(set(weights)) == 3


def test_a_mix_without_one_of_its_files_is_an_error_and_no_picture(webui: WebUI, run: str) -> None:
    broken = webui.data / "models" / "Lora" / "broken.safetensors"
    broken.write_bytes(b"damaged")
    over = webui.probe(DRAW.format(body={"stack": f"{run}: 0.5\nbroken: 0.6", "count": 1, **SIZE}))
    assert over["state"] == "failed"
    assert "broken" in over["message"]
    broken.unlink()
