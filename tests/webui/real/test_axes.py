"""Our axes in the real WebUI's X/Y/Z plot script."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.ui.browser import NO_BROWSER, choose_text, chromium, open_page
from tests.webui.real import kinds
from tests.webui.real.test_blocks import COUNT_READS, READS
from tests.webui.real.test_webui import document
from tests.webui.real.webui import WebUI

LABELS = """
from modules import scripts
runner = scripts.scripts_{}
result = [o.label for s in runner.scripts if type(s).__module__ == "xyz_grid.py" for o in s.current_axis_options]
"""
OURS = [
    *("LoRA run epoch", "LoRA file", "LoRA weight", "LoRA text-encoder weight", "LoRA UNet weight"),
    *("LoRA block weights", "LoRA single block"),
]
Axis = tuple[str, Any]
NOTHING: Axis = ("Nothing", "")


@pytest.fixture(scope="module")
def run(webui: WebUI, pictures: Path) -> dict[str, Any]:
    """A run of four epochs."""
    settings = document(pictures, name="axes", training__epochs=4, samples__prompts=[], validation={})
    del settings["training"]["steps"]
    return webui.finished(webui.train(**settings))


@pytest.fixture(scope="module")
def other(webui: WebUI) -> str:
    """Another LoRA, whose alias is the run's last file."""
    path = webui.data / "models" / "Lora" / "zother.safetensors"
    tensors = kinds.write_kind(path, "LoRA", webui.probe(kinds.LAYERS))
    from safetensors.torch import save_file

    save_file(tensors, path, {"ss_output_name": "axes", "ss_base_model_version": "sd_v1"})
    webui.post("/sdapi/v1/refresh-loras")
    return "zother"


class Grid:
    """What the script answers: the sheet, then the cells."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.images = [Image.open(io.BytesIO(base64.b64decode(image))) for image in answer["images"]]
        self.cells = [image.convert("RGB").tobytes() for image in self.images[1:]]
        self.infotexts = json.loads(answer["info"])["infotexts"]
        self.prompts = [text.splitlines()[0] if text else None for text in self.infotexts[1:]]


def request(
    webui: WebUI, x: Axis, y: Axis = NOTHING, z: Axis = NOTHING, *, route: str = "txt2img", **values: Any
) -> tuple[int, Any]:
    """An axis' values are text, or a list for the dropdown."""
    labels = webui.probe(LABELS.format(route))
    arguments: list[Any] = []
    for label, wanted in (x, y, z):
        is_text = isinstance(wanted, str)
        arguments += [labels.index(label), wanted if is_text else "", [] if is_text else wanted]
    text_mode = all(isinstance(wanted, str) for _, wanted in (x, y, z))
    arguments += [False, True, False, False, False, False, False, 0, text_mode]
    body = {"prompt": "zorp", "seed": 1, "steps": 3, "width": 64, "height": 64, "sampler_name": "Euler a", **values}
    script = {"script_name": "x/y/z plot", "script_args": arguments}
    return webui.request("POST", f"/sdapi/v1/{route}", {**body, **script})


def grid(webui: WebUI, *axes: Axis, **values: Any) -> Grid:
    status, answer = request(webui, *axes, **values)
    assert status == 200, answer
    return Grid(answer)


def again(webui: WebUI, infotext: str, **values: Any) -> bytes:
    """The picture that its infotext describes."""
    prompt, *_, settings = infotext.splitlines()
    found = {key: re.search(rf"{key}: ([^,]+)", settings) for key in ("Seed", "Steps", "Sampler", "CFG scale")}
    seed, steps, sampler, cfg = (match[1] for match in found.values() if match)
    body = {"prompt": prompt, "seed": int(seed), "steps": int(steps), "sampler_name": sampler, "cfg_scale": float(cfg)}
    answer = webui.post("/sdapi/v1/txt2img", {**body, "width": 64, "height": 64, **values})
    return Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).convert("RGB").tobytes()


def test_the_axes_are_in_both_lists_once(webui: WebUI) -> None:
    for route in ("txt2img", "img2img"):
        labels = webui.probe(LABELS.format(route))
        assert [labels.count(label) for label in OURS] == [1] * len(OURS)


def test_epochs_times_weights(webui: WebUI, run: dict[str, Any]) -> None:
    names = [Path(file["path"]).stem for file in run["files"]]
    assert names == ["axes-000001", "axes-000002", "axes-000003", "axes"]
    result = grid(webui, ("LoRA run epoch", "axes: all"), ("LoRA weight", "0.5, 1"))
    assert result.prompts == [f"zorp<lora:{name}:{weight}>" for weight in ("0.5", "1") for name in names]
    assert len(set(result.cells)) == 8
    assert [again(webui, text) for text in result.infotexts[1:]] == result.cells


@pytest.mark.parametrize(
    ("values", "epochs"),
    [
        ("axes: every 2", [2, 4]),
        ("axes: 2-3", [2, 3]),
        ("axes: last", [4]),
        ("axes: 1, 3", [1, 3]),
        ("every 3", [3, 4]),  # the newest run, or the one whose file is in the prompt
        ("None, axes: 1, all", [None, 1, 2, 3, 4]),
        (["axes: 2", "axes: 4", "axes: all"], [2, 4, 1, 3]),
    ],
)
def test_ways_to_name_epochs(webui: WebUI, run: dict[str, Any], values: Any, epochs: list[int | None]) -> None:
    names = {file["epoch"]: Path(file["path"]).stem for file in run["files"]}
    result = grid(webui, ("LoRA run epoch", values), prompt="zorp<lora:axes-000002:0.7>", steps=1)
    assert result.prompts == ["zorp" if e is None else f"zorp<lora:{names[e]}:0.7>" for e in epochs]


def test_files_are_names_and_never_aliases(webui: WebUI, run: dict[str, Any], other: str) -> None:
    result = grid(webui, ("LoRA file", f"axes, {other}, axes-000001, None"), ("Seed", "1,2"))
    assert result.prompts[:4] == ["zorp<lora:axes:1>", f"zorp<lora:{other}:1>", "zorp<lora:axes-000001:1>", "zorp"]
    assert len(set(result.cells)) == 8
    loaded = webui.probe("""
import networks
from lora_trainer.hosts.a1111.networks import reachable
from pathlib import Path
networks.load_networks(["axes", "zother", "axes-000001"])
result = [Path(net.network_on_disk.filename).stem for net in networks.loaded_networks]
networks.load_networks([])
""")
    assert loaded == ["axes", "zother", "axes-000001"]


def test_weights_of_text_encoder_and_unet_are_axes_of_their_own(webui: WebUI, run: dict[str, Any]) -> None:
    result = grid(
        webui,
        ("LoRA text-encoder weight", "0, 0.5"),
        ("LoRA UNet weight", "0.25-0.5 [2]"),
        ("LoRA run epoch", "2, 4"),
        prompt="zorp<lora:axes:0.8>",
    )
    assert result.prompts[:5] == [
        *("zorp<lora:axes-000002:0:unet=0.25>", "zorp<lora:axes-000002:0.5:unet=0.25>"),
        *("zorp<lora:axes-000002:0:unet=0.5>", "zorp<lora:axes-000002:0.5:unet=0.5>"),
        "zorp<lora:axes:0:unet=0.25>",
    ]
    alone = grid(webui, ("LoRA text-encoder weight", "0"), prompt="zorp<lora:axes:0.8>")
    assert alone.prompts == ["zorp<lora:axes:0:unet=0.8>"]
    assert [again(webui, text) for text in result.infotexts[1:]] == result.cells


def test_block_weights_and_single_blocks(webui: WebUI, run: dict[str, Any]) -> None:
    seventeen = "1,0.5,0.5,0.5,0.5,0.5,0.5,1,1,1,1,1,1,1,1,1,1"
    result = grid(webui, ("LoRA block weights", f'OUTALL,"{seventeen}",ALL'), prompt="zorp<lora:axes:1>")
    assert result.prompts == [f"zorp<lora:axes:1:lbw={lbw}>" for lbw in ("OUTALL", seventeen, "ALL")]
    assert len(set(result.cells)) == 3
    assert result.cells[2] == again(webui, result.infotexts[3].replace(":lbw=ALL", ""))
    assert all("Lora Train block weights" in text for text in result.infotexts[1:])

    blocks = grid(
        webui, ("LoRA single block", "IN05, NOT IN05"), ("LoRA block weights", seventeen), prompt="zorp<lora:axes:1>"
    )
    assert blocks.prompts == [
        f"zorp<lora:axes:1:lbw={','.join(['0'] * 4 + ['0.5'] + ['0'] * 12)}>",
        f"zorp<lora:axes:1:lbw={seventeen.replace('0.5,0.5,0.5,0.5', '0.5,0.5,0.5,0', 1)}>",
    ]
    assert [again(webui, text) for text in blocks.infotexts[1:]] == blocks.cells


def test_a_cell_without_block_weights_has_none_in_its_infotext(webui: WebUI, run: dict[str, Any]) -> None:
    result = grid(webui, ("Prompt S/R", '":lbw=OUTD",""'), prompt="zorp<lora:axes:1:lbw=OUTD>")
    assert ["Lora Train block weights" in text for text in result.infotexts[1:]] == [True, False]


def test_they_go_with_the_webuis_own_axes(webui: WebUI, run: dict[str, Any], other: str) -> None:
    prompt = "zorp<lora:axes:1>"
    words = grid(webui, ("LoRA weight", "0.5, 1"), ("Prompt S/R", "zorp, red circle"), prompt=prompt)
    assert words.prompts == [f"{word}<lora:axes:{w}>" for word in ("zorp", "red circle") for w in ("0.5", "1")]
    tags = grid(webui, ("Prompt S/R", f"axes, {other}"), ("LoRA UNet weight", "0.3"), prompt=prompt)
    assert tags.prompts == ["zorp<lora:axes:1:unet=0.3>", f"zorp<lora:{other}:1:unet=0.3>"]
    samplers = grid(webui, ("Sampler", "Euler a, DDIM"), ("LoRA run epoch", "1, 4"), ("Seed", "5, 6"), prompt=prompt)
    assert len(set(samplers.cells)) == 8
    assert [again(webui, text) for text in samplers.infotexts[1:]] == samplers.cells
    models = grid(
        webui,
        ("Checkpoint name", "small.safetensors, other.safetensors"),
        ("LoRA single block", "M00, IN05"),
        prompt=prompt,
    )
    assert len(set(models.cells)) == 4
    assert webui.get("/sdapi/v1/options")["sd_model_checkpoint"].startswith("small")


def test_img2img_and_hires_fix(webui: WebUI, run: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    values = {"init_images": [base64.b64encode(buffer.getvalue()).decode()], "denoising_strength": 0.8, "steps": 4}
    result = grid(webui, ("LoRA run epoch", "1, 4"), ("LoRA weight", "1"), route="img2img", **values)
    assert len(set(result.cells)) == 2
    hires = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.6}
    sizes = {image.size for image in grid(webui, ("LoRA run epoch", "1, 4"), **hires).images[1:]}
    assert sizes == {(128, 128)}
    own = grid(webui, ("LoRA weight", "0.5"), prompt="a<lora:axes:1>", hr_prompt="b<lora:axes:1>", **hires)
    assert (
        'Hires prompt: "b<lora:axes:0.5>"' in own.infotexts[1] or "Hires prompt: b<lora:axes:0.5>" in own.infotexts[1]
    )


def test_of_several_tags_the_marked_one_is_changed(webui: WebUI, run: dict[str, Any], other: str) -> None:
    prompt = f"zorp<lora:{other}:0.5><lora:axes:1{{}}>"
    assert grid(webui, ("LoRA weight", "0.1"), prompt=prompt.format("")).prompts == [
        f"zorp<lora:{other}:0.1><lora:axes:1>"
    ]
    assert grid(webui, ("LoRA weight", "0.1"), prompt=prompt.format(":axis=1")).prompts == [
        f"zorp<lora:{other}:0.5><lora:axes:0.1:axis=1>"
    ]
    assert grid(webui, ("LoRA run epoch", "axes: 1"), prompt=prompt.format("")).prompts == [
        f"zorp<lora:{other}:0.5><lora:axes-000001:1>"
    ]


def test_each_file_is_read_once_and_none_for_block_weights(webui: WebUI, run: dict[str, Any]) -> None:
    webui.picture("zorp")
    webui.probe(COUNT_READS)
    grid(webui, ("LoRA block weights", "OUTD,INS,MIDD"), ("LoRA run epoch", "axes: 1-3"), ("LoRA weight", "0.5,1"))
    read = [Path(path).stem for path in webui.probe(READS)]
    assert read == ["axes-000001", "axes-000002", "axes-000003"]


@pytest.mark.parametrize(
    ("axes", "part"),
    [
        ([("LoRA weight", "")], "The axis LoRA weight has no values"),
        ([("LoRA weight", "much")], "must be a number, not much"),
        ([("LoRA weight", "nan")], "must be a number, not nan"),
        ([("LoRA file", " , ")], "The axis LoRA file has no values"),
        ([("LoRA file", "nosuch")], "There is no LoRA file named nosuch"),
        ([("LoRA file", [])], "The axis LoRA file has no values"),
        ([("LoRA run epoch", "nosuch: all")], "There is no run named nosuch"),
        ([("LoRA run epoch", "axes: 9")], "The run axes has no epoch 9; it has 1, 2, 3, 4"),
        ([("LoRA run epoch", "axes: 7-9")], "The run axes has no epoch 7-9"),
        ([("LoRA block weights", "NOSUCH")], "There is no block preset NOSUCH"),
        ([("LoRA block weights", "1,2,3")], "has 3 values"),
        ([("LoRA single block", "IN77")], "There is no block IN77"),
        ([("LoRA weight", "1"), ("LoRA weight", "2")], "Two axes choose the same thing"),
        ([("LoRA run epoch", "axes: all"), ("LoRA file", "axes")], "Two axes choose the same thing"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence_before_the_first_cell(
    webui: WebUI, run: dict[str, Any], axes: list[Axis], part: str
) -> None:
    status, answer = request(webui, *axes, prompt="zorp<lora:axes:1>")
    assert status == 422
    assert part in answer["errors"]
    assert "\n" not in answer["errors"]


def test_a_prompt_without_a_tag_needs_a_file(webui: WebUI, run: dict[str, Any]) -> None:
    status, answer = request(webui, ("LoRA weight", "0.5"))
    assert status == 422
    assert "The prompt has no LoRA tag" in answer["errors"]
    assert grid(webui, ("LoRA weight", "0.5"), ("LoRA file", "axes")).prompts == ["zorp<lora:axes:0.5>"]


def test_a_file_that_is_gone_is_named_or_left_out(webui: WebUI, run: dict[str, Any]) -> None:
    path = Path(run["files"][1]["path"])
    kept = path.rename(path.with_suffix(".kept"))
    try:
        status, answer = request(webui, ("LoRA run epoch", "axes: 1, 2, 3, 4"))
        assert status == 422
        assert "axes-000002.safetensors is gone" in answer["errors"]
        rest = grid(webui, ("LoRA run epoch", "axes: all"))
        assert rest.prompts == [f"zorp<lora:{name}:1>" for name in ("axes-000001", "axes-000003", "axes")]
    finally:
        kept.rename(path)


@pytest.mark.parametrize("number", [1, 3])
def test_a_file_that_goes_while_the_grid_is_drawn_leaves_its_cell_blank(
    webui: WebUI, run: dict[str, Any], number: int
) -> None:
    path = Path(run["files"][number - 1]["path"])
    whole = grid(webui, ("LoRA run epoch", "axes: all"))
    webui.probe(f"""
from lora_trainer.webui import xyz_axes
from pathlib import Path
original = xyz_axes.before_process
def once(p):
    xyz_axes.before_process = original
    Path({str(path)!r}).rename({str(path.with_suffix(".kept"))!r})
    original(p)
xyz_axes.before_process = once
""")
    try:
        result = grid(webui, ("LoRA run epoch", "axes: all"))
    finally:
        path.with_suffix(".kept").rename(path)
    blank = result.cells.pop(number - 1)
    whole.cells.pop(number - 1)
    assert len(set(blank)) == 1
    assert result.cells == whole.cells
    assert f"There is no LoRA file named {path.stem}" in webui.log()


def test_an_interrupted_grid_keeps_its_cells(webui: WebUI, run: dict[str, Any]) -> None:
    whole = grid(webui, ("LoRA run epoch", "axes: all"))
    webui.probe("""
from lora_trainer.webui import xyz_axes
from modules import shared
original, seen = xyz_axes.before_process, []
def third(p):
    seen.append(p)
    original(p)
    if len(seen) == 3:
        xyz_axes.before_process = original
        shared.state.interrupt()
xyz_axes.before_process = third
""")
    result = grid(webui, ("LoRA run epoch", "axes: all"))
    assert result.cells[:2] == whole.cells[:2]
    assert len(result.cells) == 4
    assert grid(webui, ("LoRA run epoch", "axes: all")).cells == whole.cells


@pytest.mark.skipif(not chromium(), reason=NO_BROWSER)
def test_the_page_offers_the_runs_and_draws_the_grid(webui: WebUI, run: dict[str, Any]) -> None:
    with open_page(webui.url) as page:
        page.locator("#txt2img_prompt textarea").fill("zorp")
        for name, value in (("steps", 2), ("width", 64), ("height", 64)):
            page.locator(f"#txt2img_{name} input[type=number]").fill(str(value))
            page.locator(f"#txt2img_{name} input[type=number]").blur()
        choose_text(page.locator("#script_list"), "X/Y/Z plot")
        choose_text(page.locator("#script_txt2img_xyz_plot_x_type"), "LoRA run epoch")
        values = page.locator("#txt2img_script_container .gradio-dropdown", has_text="X values")
        values.locator("input").click()
        options = values.locator("ul.options li")
        expect(options.filter(has_text="axes: all")).to_have_count(1)
        options.filter(has_text="axes: every 2").click()
        page.locator("#txt2img_generate").click()
        expect(page.locator("#html_info_txt2img, #html_info_txt2img p").first).to_contain_text("axes-000002")
