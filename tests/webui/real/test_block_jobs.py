"""Block analysis and tuning in the real WebUI: its pictures, its weights left alone, its generation beside it."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.webui.real.test_webui import CLEAN, WEIGHTS, document, same
from tests.webui.real.webui import WebUI


def looked_at(webui: WebUI, name: str, seconds: float = 240) -> dict[str, Any]:
    """Wait until a run's blocks are looked at; returns everything that is known of them."""
    until = time.monotonic() + seconds
    while (known := webui.get(f"/lora-train/v1/runs/{name}/blocks"))["progress"]["state"] in ("queued", "running"):
        assert time.monotonic() < until, known["progress"]
        time.sleep(0.2)
    assert known["progress"]["state"] == "done", known["progress"]
    return known


@pytest.fixture(scope="module")
def trained(webui: WebUI, pictures: Path) -> dict[str, Any]:
    """A finished run's manifest; two pictures are kept aside."""
    settings = document(pictures, training__text_lr=0, samples__steps=2, validation__share=0.4)
    return webui.finished(webui.train(**settings))


def test_the_analysis_shows_what_txt2img_draws(webui: WebUI, trained: dict[str, Any]) -> None:
    name = trained["name"]
    body = {"prompts": ["zorp, red background"], "seeds": [7], "together": 3}
    assert webui.post(f"/lora-train/v1/runs/{name}/blocks/analyze", body)["blocks"]["kind"] == "analysis"
    known = looked_at(webui, name)["analysis"]
    assert len(known["blocks"]) == 16
    (request,) = known["requests"]
    strongest = known["blocks"][0]
    shown = {
        "": request["none"],
        f"<lora:{name}:1>": request["full"],
        f"<lora:{name}:1:lbw={strongest['lbw_only']}>": strongest["pictures"][0]["only"],
        f"<lora:{name}:1:lbw={strongest['lbw_without']}>": strongest["pictures"][0]["without"],
    }
    for tag, path in shown.items():
        drawn = webui.picture(f"zorp, red background{tag}", seed=7, steps=2, cfg_scale=7)
        assert same(drawn, Image.open(path).convert("RGB")), tag
    for first, second in itertools.combinations(shown.values(), 2):
        assert not same(Image.open(first).convert("RGB"), Image.open(second).convert("RGB"))


def test_tuning_leaves_the_host_as_it_was_and_lets_it_generate(webui: WebUI, trained: dict[str, Any]) -> None:
    name = trained["name"]
    plain = webui.picture("red circle")
    webui.probe(CLEAN + "result = 0")
    before = webui.probe(WEIGHTS)
    webui.post(f"/lora-train/v1/runs/{name}/blocks/tune", {"steps": 2})
    assert same(webui.picture("red circle"), plain)  # while it goes on
    known = looked_at(webui, name)["tuning"]
    assert known["pictures"] == {"kind": "held out", "count": 2}
    assert len(known["lbw"].split(",")) == 17
    assert known["tuned"]["before"] == pytest.approx(known["losses"]["before"])
    assert webui.probe(CLEAN + "result = 0") == 0
    assert webui.probe(WEIGHTS) == before
    assert same(webui.picture("red circle"), plain)
