"""``<lora:…:lbw=…>`` in the real WebUI's prompts."""

from __future__ import annotations

import base64
import io
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lora_trainer.model.block_lists import SD
from lora_trainer.network.blocks.weights import factors, resolve
from lora_trainer.network.modules import group
from lora_trainer.network.ops.bake import bake
from lora_trainer.network.ops.provenance import write_derived
from tests.webui.real import kinds
from tests.webui.real.webui import WebUI

FIELD = "Lora Train block weights"
ANY = ",".join(f"{random.Random(1).uniform(-0.5, 1.5) + n / 100:.2f}" for n in range(26))
SWITCHES = ",".join(str(random.Random(n).randint(0, 1)) for n in range(26))
MERGED = """
import torch, networks
from modules import extra_networks, processing, shared
kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm)
layers = [layer for layer in shared.sd_model.network_layer_mapping.values() if type(layer) in kinds]
def merged(prompt, seed=7):
    p = processing.StableDiffusionProcessingTxt2Img(sd_model=shared.sd_model)
    p.seeds, p.prompts, p.subseeds, p.iteration = [seed], [prompt], [0], 0
    extra_networks.activate(p, extra_networks.parse_prompt(prompt)[1])
    with torch.no_grad():
        for layer in layers:
            networks.network_apply_weights(layer)
    errors.update(networks.extra_network_lora.errors)
    return torch.cat([t.detach().double().flatten() for l in layers for t in (l.weight, l.bias) if t is not None])
def differing(first, second):
    return int((first != second).sum())
errors = {}
"""
"""For the probe: all of the host's layer weights as a prompt leaves them."""
COUNT_READS = """
import builtins, sys
from modules import sd_models
if not hasattr(builtins, "lora_reads"):
    builtins.lora_reads = []
    original = sd_models.read_state_dict
    def counted(name, *args, **kwargs):
        builtins.lora_reads.append(str(name))
        return original(name, *args, **kwargs)
    sd_models.read_state_dict = counted
    sys.addaudithook(lambda event, args: event == "open" and str(args[0]).endswith(".safetensors")
                     and builtins.lora_reads.append(str(args[0])))
builtins.lora_reads.clear()
"""
READS = "import builtins\nresult = list(builtins.lora_reads)"


@pytest.fixture(scope="module")
def layers(webui: WebUI) -> dict[str, list[int]]:
    return webui.probe(kinds.LAYERS)


@pytest.fixture(scope="module")
def folder(webui: WebUI) -> Path:
    return webui.data / "models" / "Lora"


@pytest.fixture(scope="module")
def made(webui: WebUI, layers: dict[str, list[int]], folder: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """Writes a file of a kind under a name."""

    def write(name: str, kind: str = "LoRA", **options: Any) -> dict[str, torch.Tensor]:
        return kinds.write_kind(folder / f"{name}.safetensors", kind, layers, **options)

    return write


@pytest.fixture(scope="module")
def plain(made: Callable[..., dict[str, torch.Tensor]]) -> str:
    made("plain")
    return "plain"


@pytest.fixture(scope="module")
def baked(made: Callable[..., Any], plain: str, folder: Path) -> str:
    """``plain`` with the list ANY in it."""
    write_baked(folder / "plain-any.safetensors", made(plain), ANY)
    return "plain-any"


def write_baked(path: Path, tensors: dict[str, torch.Tensor], lbw: str) -> None:
    result = bake(tensors, factors(group(tensors), resolve(lbw, SD)))
    write_derived(path, result.modules, {"ss_output_name": path.stem, "ss_base_model_version": "sd_v1"})


def drawn(webui: WebUI, prompt: str, route: str = "txt2img", **values: Any) -> tuple[list[Image.Image], dict[str, Any]]:
    """Pictures and info."""
    body = {"seed": 1, "steps": 4, "width": 128, "height": 128, "sampler_name": "Euler a"}
    status, answer = webui.request("POST", f"/sdapi/v1/{route}", {"prompt": prompt, **body, **values})
    assert status == 200, answer
    pictures = [Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB") for image in answer["images"]]
    return pictures, json.loads(answer["info"])


def first(webui: WebUI, prompt: str, route: str = "txt2img", **values: Any) -> bytes:
    return drawn(webui, prompt, route, **values)[0][0].tobytes()


def field(webui: WebUI, prompt: str, **values: Any) -> Any:
    return drawn(webui, prompt, **values)[1]["extra_generation_params"].get(FIELD)


# ------------------------------------------------------------------ exactness
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_preview_has_the_layer_weights_of_the_baked_file(
    webui: WebUI, made: Callable[..., Any], folder: Path, kind: str, dtype: torch.dtype
) -> None:
    name = f"{kind.replace(' ', '')}-{str(dtype)[6:]}"
    tensors = made(name, kind, dtype=dtype)
    lists = [SWITCHES] if kind in ("DoRA", "OFT") else [SWITCHES, ANY]
    for number, lbw in enumerate(lists):
        write_baked(folder / f"{name}-baked{number}.safetensors", tensors, lbw)
        different, changed, left, errors = webui.probe(f"""{MERGED}
base = merged("")
preview = merged("<lora:{name}:0.7:lbw={lbw}>")
baked = merged("<lora:{name}-baked{number}:0.7>")
result = [differing(preview, baked), differing(preview, base), differing(merged(""), base), errors]
""")
        assert changed > 1000
        assert (different, left, errors) == (0, 0, {})


@pytest.mark.parametrize("kind", ["DoRA", "OFT"])
def test_kinds_that_no_file_can_scale_are_scaled_in_what_they_add(
    webui: WebUI, made: Callable[..., Any], kind: str
) -> None:
    made(f"{kind}-half", kind, dtype=torch.float32)
    half = ",".join(["0.5"] * 26)
    error = webui.probe(f"""{MERGED}
base = merged("")
whole, half = merged("<lora:{kind}-half:1>") - base, merged("<lora:{kind}-half:1:lbw={half}>") - base
outside = whole - 2 * half
result = [float(outside.abs().median()), float(half.abs().max())]
""")
    assert error[0] <= 1e-6 * error[1]


def test_the_next_prompt_without_block_weights_is_as_if_there_had_been_none(webui: WebUI, plain: str) -> None:
    before = [first(webui, f"zorp<lora:{plain}:0.5>"), first(webui, "zorp")]
    changed = first(webui, f"zorp<lora:{plain}:0.5:lbw={SWITCHES}>")
    assert [first(webui, f"zorp<lora:{plain}:0.5>"), first(webui, "zorp")] == before
    assert changed not in before


def test_changing_only_block_weights_reads_no_file_and_misses_no_change(webui: WebUI, plain: str) -> None:
    first(webui, f"zorp<lora:{plain}:0.5:lbw=ALL>")
    webui.probe(COUNT_READS)
    lists = [f"1,{n / 1000},1,1,1,1,1,1,1,1,1,1,1,1,1,1,1" for n in range(1, 6)]
    changes = webui.probe(f"""{MERGED}
seen = [merged(f"<lora:{plain}:0.5:lbw={{lbw}}>") for lbw in {lists!r} + ["OUTD", "ALL"]]
seen.append(merged("<lora:{plain}:0.5>"))
result = [differing(a, b) for a, b in zip(seen, seen[1:])]
""")
    assert all(changes[:-1])
    assert changes[-1] == 0  # ALL is the plain LoRA
    assert webui.probe(READS) == []


def test_a_lora_that_stands_in_the_prompt_twice_counts_twice(webui: WebUI, plain: str) -> None:
    error = webui.probe(f"""{MERGED}
base = merged("")
ins, outs = "1,1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0", "0,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1"
both = merged(f"<lora:{plain}:0.5:lbw={{ins}}><lora:{plain}:0.25:lbw={{outs}}>") - base
alone = merged(f"<lora:{plain}:0.5:lbw={{ins}}>") - base + merged(f"<lora:{plain}:0.25:lbw={{outs}}>") - base
mixed = merged(f"<lora:{plain}:0.5><lora:{plain}:0.25:lbw={{outs}}>") - base
plain = merged("<lora:{plain}:0.5>") - base + merged(f"<lora:{plain}:0.25:lbw={{outs}}>") - base
result = [float((both - alone).abs().max()), float((mixed - plain).abs().max()), float(alone.abs().max())]
""")
    assert max(error[:2]) <= 1e-5 * error[2]


# ------------------------------------------------------------------ every pass
def test_txt2img_hires_fix_and_batches_draw_what_the_baked_file_draws(webui: WebUI, plain: str, baked: str) -> None:
    for values in (
        {},
        {"batch_size": 2, "n_iter": 2},
        {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6},
        {
            "enable_hr": True,
            "hr_scale": 1.5,
            "hr_upscaler": "None",
            "denoising_strength": 0.6,
            "hr_second_pass_steps": 3,
        },
    ):
        preview, info = drawn(webui, f"zorp<lora:{plain}:0.6:lbw={ANY}>", **values)
        assert [p.tobytes() for p in preview] == [
            p.tobytes() for p in drawn(webui, f"zorp<lora:{baked}:0.6>", **values)[0]
        ]
        assert all(FIELD in text for text in info["infotexts"])


def test_the_hires_pass_has_its_own_prompt_and_its_own_field(webui: WebUI, plain: str) -> None:
    values = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
    hires = f"zorp<lora:{plain}:0.6:lbw=OUTALL>"
    both = drawn(webui, f"zorp<lora:{plain}:0.6:lbw=INALL>", hr_prompt=hires, **values)
    again = drawn(webui, f"zorp<lora:{plain}:0.6:lbw=INALL>", **values)
    assert both[0][0].tobytes() != again[0][0].tobytes()
    found = both[1]["extra_generation_params"]
    assert found["Lora Train hires block weights"].startswith(f"{plain}: 1,0,0,0")
    assert found[FIELD].startswith(f"{plain}: 1,1,1,1")
    assert "Lora Train hires block weights" not in again[1]["extra_generation_params"]


def test_img2img_and_a_pass_that_another_extension_makes(webui: WebUI, plain: str, baked: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (128, 128), "red").save(buffer, "PNG")
    values = {"init_images": [base64.b64encode(buffer.getvalue()).decode()], "denoising_strength": 0.7}
    assert first(webui, f"zorp<lora:{plain}:0.6:lbw={ANY}>", "img2img", **values) == first(
        webui, f"zorp<lora:{baked}:0.6>", "img2img", **values
    )
    inner = webui.probe(f"""
import hashlib
from modules import processing, shared
from modules.call_queue import queue_lock
def draw(prompt):
    p = processing.StableDiffusionProcessingTxt2Img(
        sd_model=shared.sd_model, prompt=prompt, seed=1, steps=3, width=64, height=64, sampler_name="Euler a",
        do_not_save_samples=True, do_not_save_grid=True)  # without scripts, as detailers draw
    with queue_lock:
        return hashlib.sha256(processing.process_images(p).images[0].tobytes()).hexdigest()
result = [draw("zorp<lora:{plain}:0.6:lbw={ANY}>"), draw("zorp<lora:{baked}:0.6>"), draw("zorp<lora:{plain}:0.6>")]
""")
    assert inner[0] == inner[1] != inner[2]


def test_lyco_tags_are_the_same(webui: WebUI, plain: str) -> None:
    assert first(webui, f"zorp<lyco:{plain}:0.6:lbw={ANY}>") == first(webui, f"zorp<lora:{plain}:0.6:lbw={ANY}>")


def test_start_and_stop_switch_the_unets_weight(webui: WebUI, plain: str) -> None:
    tag = f"<lora:{plain}:0.8"
    whole, text_only = first(webui, f"zorp{tag}>"), first(webui, f"zorp{tag}:unet=0>")
    assert first(webui, f"zorp{tag}:start=1:stop=99>") == whole
    assert first(webui, f"zorp{tag}:stop=1>") == first(webui, f"zorp{tag}:start=99>") == text_only
    part = first(webui, f"zorp{tag}:step=2-3>")
    assert part not in (whole, text_only)
    assert first(webui, f"zorp{tag}>") == whole
    # The prompt's editing has nothing to do with it: in the second pass the steps are counted again.
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
    assert first(webui, f"zorp{tag}:start=99>", **hires) == first(webui, f"zorp{tag}:unet=0>", **hires)


# ------------------------------------------------------------------ what is written down
def test_the_infotext_has_every_number(webui: WebUI, plain: str) -> None:
    assert field(webui, f"zorp<lora:{plain}:0.5:lbw=OUTALL>") == f"{plain}: " + ",".join(
        ["1"] + 13 * ["0"] + 12 * ["1"]
    )
    written = field(webui, f"zorp<lora:{plain}:0.5:lbw=X,{','.join(['X-0.25'] * 16)}:x=0.75:lbwe=ATTNDEEPOFF>")
    assert written.startswith(f"{plain}: 0.75,{','.join(['0.5'] * 16)} lbwe=IN05")
    assert field(webui, f"zorp<lora:{plain}:0.5>") is None
    assert field(webui, f"zorp<lora:{plain}:0.5:stop=3>") is None


def test_random_values_are_the_pictures_and_can_be_drawn_again(webui: WebUI, plain: str) -> None:
    tag = f"<lora:{plain}:0.8:lbw={','.join(['R'] * 16 + ['U'])}>"
    pictures, info = drawn(webui, f"zorp{tag}", n_iter=2)
    written = [re.search(rf'{FIELD}: "{plain}: ([^"]+)"', text) for text in info["infotexts"]]
    lists = [found[1] for found in written if found]
    assert len(set(lists)) == len(pictures) == 2
    for number, numbers in enumerate(lists):
        resolved = f"<lora:{plain}:0.8:lbw={numbers}>"
        assert first(webui, f"zorp{resolved}", seed=1 + number) == pictures[number].tobytes()
        # The WebUI keeps the last prompt's conditioning by its text, which is the same for all seeds.
        assert first(webui, f"zorp{tag}", seed=1 + number) == pictures[number].tobytes()


def test_a_changed_preset_is_used_at_once(webui: WebUI, plain: str) -> None:
    presets = webui.data / "lora-train" / "presets" / "lbwpresets.txt"
    presets.parent.mkdir(parents=True, exist_ok=True)
    try:
        drawings = []
        for base in ("0", "1"):
            presets.write_text(f"MINE:{base}{',1' * 16}\n", encoding="utf-8")
            drawings.append(first(webui, f"zorp<lora:{plain}:0.8:lbw=MINE>"))
            assert drawings[-1] == first(webui, f"zorp<lora:{plain}:0.8:lbw={base}{',1' * 16}>")
        assert drawings[0] != drawings[1]
        presets.write_bytes(b"\xff\xfe\x00")
        assert "cannot be read" in field(webui, f"zorp<lora:{plain}:0.8:lbw=ALL>")
    finally:
        presets.unlink()


# ------------------------------------------------------------------ what cannot be used
@pytest.mark.parametrize(
    ("argument", "part"),
    [
        ("lbw=NOSUCH", "There is no block preset NOSUCH"),
        ("lbw=1,2,3", "has 3 values"),
        (f"lbw={','.join(['1'] * 20)}", "as for SDXL, but this LoRA is for SD1/SD2"),
        (f"lbw={','.join(['1'] * 16)},x", "must be a number, not x"),
        ("lbw=ALL:lbwe=IN77", "neither an element preset nor a rule"),
        ("start=soon", "start must be a whole number"),
        ("step=5", "write the steps as step=5-10"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_the_lora_is_drawn_without_it(
    webui: WebUI, plain: str, argument: str, part: str
) -> None:
    pictures, info = drawn(webui, f"zorp<lora:{plain}:0.5:{argument}>")
    assert part in info["extra_generation_params"][FIELD]
    assert pictures[0].tobytes() == first(webui, f"zorp<lora:{plain}:0.5>")


def test_the_old_form_leaves_out_its_own_tag_and_no_other(webui: WebUI, plain: str, baked: str) -> None:
    first(webui, f"zorp<lora:{plain}:1>")  # what a failing tag would leave in the weights
    pictures, info = drawn(webui, f"zorp<lora:{plain}:0.5:OUTD><lora:{baked}:0.5>")
    assert "block weights are written as lbw=OUTD" in info["extra_generation_params"][FIELD]
    assert pictures[0].tobytes() == first(webui, f"zorp<lora:{baked}:0.5>")


def test_a_short_list_for_a_lora_with_convolutions_says_what_is_off(webui: WebUI, made: Callable[..., Any]) -> None:
    made("locon", "LoCon")
    comments = webui.probe("""
from modules import processing, shared
p = processing.StableDiffusionProcessingTxt2Img(
    sd_model=shared.sd_model, prompt="zorp<lora:locon:0.5:lbw=1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1>", steps=2, width=64,
    height=64, do_not_save_samples=True, do_not_save_grid=True)
result = processing.process_images(p).comments
""")
    assert "does not name the convolutions' blocks" in comments
    assert "layers are off" in comments


def test_it_steps_aside_for_the_other_extension(webui: WebUI, plain: str) -> None:
    found = webui.probe(f"""
import hashlib
from modules import processing, scripts, shared
class Other(scripts.Script):
    pass
other = Other()
other.filename, other.args_from, other.args_to = "somewhere/lora_block_weight.py", 1, 4
def draw(active, prompt):
    p = processing.StableDiffusionProcessingTxt2Img(
        sd_model=shared.sd_model, prompt=prompt, seed=1, steps=3, width=64, height=64, sampler_name="Euler a",
        do_not_save_samples=True, do_not_save_grid=True)
    p.scripts, p.script_args = scripts.ScriptRunner(), (0, "presets", active, False)
    p.scripts.alwayson_scripts = [other]
    done = processing.process_images(p)
    return [hashlib.sha256(done.images[0].tobytes()).hexdigest(), done.comments, "block weights" in done.infotexts[0]]
tag = "zorp<lora:{plain}:0.8:lbw=OUTD>"
result = [draw(True, tag), draw(True, "zorp<lora:{plain}:0.8>"), draw(False, tag)]
""")
    aside, without, active = found
    assert aside[0] == without[0] != active[0]
    assert "sd-webui-lora-block-weight" in aside[1]
    assert (without[1], active[1]) == ("", "")
    assert (aside[2], active[2]) == (False, True)


def test_it_can_be_switched_off(webui: WebUI, plain: str) -> None:
    webui.post("/sdapi/v1/options", {"lora_train_block_weights": False})
    try:
        assert first(webui, f"zorp<lora:{plain}:0.5:lbw=OUTD>") == first(webui, f"zorp<lora:{plain}:0.5>")
    finally:
        webui.post("/sdapi/v1/options", {"lora_train_block_weights": True})


def test_the_hosts_classes_are_its_own(webui: WebUI, plain: str) -> None:
    before = webui.probe(CLASSES)
    first(webui, f"zorp<lora:{plain}:0.5:lbw={ANY}:step=1-2>")
    assert webui.probe(CLASSES) == before


CLASSES = """
import extra_networks_lora, network, network_lora, networks
owners = (extra_networks_lora.ExtraNetworkLora, network.Network, network.NetworkModule, network_lora.NetworkModuleLora)
result = [sorted(f"{k}={v}" for k, v in vars(owner).items()) for owner in owners]
result.append([str(getattr(networks, name)) for name in ("load_networks", "network_apply_weights", "load_network")])
"""


# ------------------------------------------------------------------ without the Lora extension
@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    with WebUI(tmp_path_factory.mktemp("without"), settings={"disabled_extensions": ["Lora"]}) as running:
        yield running


def test_the_webui_works_without_its_lora_extension(without: WebUI) -> None:
    assert first(without, "zorp<lora:any:1:lbw=ALL>") == first(without, "zorp")
    assert "Traceback" not in without.log()
