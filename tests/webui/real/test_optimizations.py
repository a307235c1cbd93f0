"""Start options and settings that change how the WebUI's own model computes change nothing of what a run learns.

A start option such as ``--opt-sub-quad-attention`` only prefers what the setting chooses here. Some of them change the
last bits of what the WebUI's VAE makes of a picture (sdp-no-mem's do), so that a new data folder, without the pictures
encoded before, would give a LoRA that differs by rounding: 6e-5 after the four steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.webui.real.test_webui import document, tensors
from tests.webui.real.webui import WebUI

ATTENTION = ["None", "sdp-no-mem", "sdp -", "sub-quadratic", "V1", "Doggettx"]
"""Beginnings of their names in *Settings → Optimizations*; on a CPU the WebUI's own choice is InvokeAI's."""
MERGED = {"token_merging_ratio": 0.5}
TILED = {"hypertile_enable_unet": True, "hypertile_max_depth_unet": 3, "hypertile_max_tile_unet": 64}


@pytest.fixture(scope="module")
def learned(webui: WebUI, pictures: Path) -> dict[str, bytes]:
    """What a run learns in a WebUI as it is installed."""
    return tensors(webui.finished(webui.train(**document(pictures))))


def chosen(webui: WebUI, name: str) -> dict[str, Any]:
    names = webui.probe("from modules import shared_items; result = shared_items.cross_attention_optimizations()")
    return {"cross_attention_optimization": next(each for each in names if each.startswith(name))}


@pytest.fixture
def options(webui: WebUI) -> Iterator[Any]:
    """Sets options as the page does; they are as before in the end."""
    before = webui.get("/sdapi/v1/options")
    changed: set[str] = set()

    def change(values: dict[str, Any]) -> None:
        changed.update(values)
        webui.post("/sdapi/v1/options", values)

    yield change
    webui.post("/sdapi/v1/options", {key: before[key] for key in changed})


@pytest.mark.parametrize("settings", [*ATTENTION, MERGED, TILED], ids=[*ATTENTION, "token merging", "Hypertile"])
def test_what_is_learned_does_not_depend_on_the_hosts_optimizations(
    webui: WebUI, pictures: Path, learned: dict[str, bytes], options: Any, settings: str | dict[str, Any]
) -> None:
    """And the sample is what txt2img draws with them."""
    plain = webui.picture("zorp, red background")
    options(chosen(webui, settings) if isinstance(settings, str) else settings)
    other = webui.picture("zorp, red background")  # leaves its marks in the host's model
    done = webui.finished(webui.train(**document(pictures)))
    assert (done["state"], done["message"]) == ("done", "")
    assert tensors(done) == learned
    assert webui.picture("zorp, red background").tobytes() == other.tobytes()
    if settings == MERGED:
        assert other.tobytes() != plain.tobytes()


def test_they_may_be_changed_while_it_trains(
    webui: WebUI, pictures: Path, options: Any, learned: dict[str, bytes]
) -> None:
    long = {"training__steps": 60, "samples__prompts": []}
    alone = tensors(webui.finished(webui.train(**document(pictures, **long))))
    name = webui.train(**document(pictures, **long))
    for step, each in zip(itertools.count(2, 8), [*ATTENTION[:3], MERGED, TILED], strict=False):
        webui.until(name, step)
        options(chosen(webui, each) if isinstance(each, str) else each)
        webui.picture("red circle")
    assert tensors(webui.finished(name)) == alone


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    arguments = ("--precision", "full", "--upcast-sampling", "--opt-split-attention-invokeai")
    with WebUI(tmp_path_factory.mktemp("full"), *arguments) as running:
        yield running


def test_start_options_that_change_the_types_change_nothing_learned(
    full: WebUI, pictures: Path, learned: dict[str, bytes]
) -> None:
    assert "InvokeAI" in full.log()
    done = full.finished(full.train(**document(pictures)))
    assert (done["state"], done["message"]) == ("done", "")
    assert tensors(done) == learned
