"""Block weights in prompts, in a WebUI of the tests' own: see :mod:`tests.fake_webui`."""

from __future__ import annotations

import logging
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_trainer.network.blocks.block_map import SD
from lora_trainer.network.blocks.weights import factors, resolve
from lora_trainer.network.lora_file import read_lora
from lora_trainer.network.modules import group
from lora_trainer.network.ops.bake import bake
from lora_trainer.network.ops.provenance import write_derived
from tests.fake_webui import FakeWebUI

ANY = "1,0,0.5,1,0.25,1,0,1,1,0.75,1,1,0,1,1,0.125,1"
HIRES = {"enable_hr": True, "hr_scale": 2.0, "hr_upscaler": "Latent", "denoising_strength": 0.6}
FIELD, HIRES_FIELD = "Lora Train block weights", "Lora Train hires block weights"


@pytest.fixture
def plain(webui: FakeWebUI) -> str:
    """A LoRA, with our object before the Lora extension's."""
    from lora_trainer.webui import prompt_tags

    webui.add_lora("plain")
    webui.networks.list_available_networks()
    prompt_tags.install()
    return "plain"


def bake_file(webui: FakeWebUI, name: str, lbw: str) -> str:
    tensors = read_lora(webui.loras / f"{name}.safetensors")
    result = bake(tensors, factors(group(tensors), resolve(lbw, SD)))
    write_derived(webui.loras / "baked.safetensors", result.modules, {"ss_output_name": "baked"})
    return "baked"


def merged(webui: FakeWebUI, prompt: str) -> torch.Tensor:
    """All weights of UNet and text encoder after a prompt was drawn."""
    webui.draw(prompt, steps=1)
    parts = webui.model.model, webui.model.cond_stage_model
    return torch.cat([p.detach().flatten() for part in parts for p in part.parameters()])


def field(webui: FakeWebUI, prompt: str, name: str = FIELD, **values: Any) -> str | None:
    p = webui.processing_of(prompt, **values)
    webui.finish(p)
    return p.extra_generation_params.get(name)


# ------------------------------------------------------------------ weights
@pytest.mark.parametrize("kind", ["LoRA", "LoCon", "Full"])
def test_a_preview_has_the_weights_of_the_baked_file_and_leaves_nothing_behind(
    webui: FakeWebUI, plain: str, kind: str
) -> None:
    lbw = ANY if kind == "LoRA" else ",".join(["1", "0", "0.5"] * 8 + ["1", "0"])
    webui.add_lora("plain", kind)
    baked = bake_file(webui, plain, lbw)
    base, whole = merged(webui, "zorp"), merged(webui, f"zorp<lora:{plain}:0.7>")
    preview = merged(webui, f"zorp<lora:{plain}:0.7:lbw={lbw}>")
    assert torch.allclose(preview, merged(webui, f"zorp<lora:{baked}:0.7>"), atol=1e-6)
    assert not torch.equal(preview, whole)
    assert torch.equal(merged(webui, f"zorp<lora:{plain}:0.7>"), whole)
    assert torch.equal(merged(webui, "zorp"), base)


def test_changing_only_block_weights_reads_no_file(
    webui: FakeWebUI, plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    webui.draw(f"zorp<lora:{plain}:0.5>")
    read, inner = [], webui.networks.load_network
    monkeypatch.setattr(webui.networks, "load_network", lambda *args: read.append(args) or inner(*args))
    lists = [f"1,{n / 1000},1,1,1,1,1,1,1,1,1,1,1,1,1,1,1" for n in range(3)]
    seen = [merged(webui, f"zorp<lora:{plain}:0.5:lbw={lbw}>") for lbw in (*lists, "OUTD", "ALL")]
    assert not any(torch.equal(one, other) for one, other in pairwise(seen))
    assert torch.equal(seen[-1], merged(webui, f"zorp<lora:{plain}:0.5>"))
    assert read == []


def test_a_lora_that_stands_in_the_prompt_twice_counts_twice(webui: FakeWebUI, plain: str) -> None:
    base = merged(webui, "zorp")
    ins, outs = "1,1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0", "0,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1"
    first, second = f"<lora:{plain}:0.5:lbw={ins}>", f"<lora:{plain}:0.25:lbw={outs}>"
    one, other = merged(webui, f"zorp{first}") - base, merged(webui, f"zorp{second}") - base
    unweighted = merged(webui, f"zorp<lora:{plain}:0.5>") - base
    assert torch.allclose(merged(webui, f"zorp{first}{second}") - base, one + other, atol=1e-5)
    for tag in (f"<lora:{plain}:0.5>", f"<lora:{plain}:0.5:0.5:dyn=3>", f"<lora:{plain}:te=0.5:unet=0.5>"):
        assert torch.allclose(merged(webui, f"zorp{tag}{second}") - base, unweighted + other, atol=1e-5)


def test_lyco_tags_are_the_same(webui: FakeWebUI, plain: str) -> None:
    assert webui.picture(f"zorp<lyco:{plain}:0.6:lbw={ANY}>") == webui.picture(f"zorp<lora:{plain}:0.6:lbw={ANY}>")


def test_start_and_stop_switch_the_unets_weight(webui: FakeWebUI, plain: str) -> None:
    def drawn(arguments: str) -> bytes:
        return webui.picture(f"zorp<lora:{plain}:0.8{arguments}>", steps=4)

    whole, text_only = drawn(""), drawn(":unet=0")
    assert drawn(":start=1:stop=99") == whole
    assert drawn(":stop=1") == drawn(":start=99") == text_only
    assert drawn(":step=2-3") not in (whole, text_only)
    assert drawn("") == whole


# ------------------------------------------------------------------ what is written down
def test_the_infotext_has_every_number(webui: FakeWebUI, plain: str) -> None:
    zeros = ",".join(["1"] + 13 * ["0"] + 12 * ["1"])
    assert field(webui, f"zorp<lora:{plain}:0.5:lbw=OUTALL>") == f"{plain}: {zeros}"
    written = field(webui, f"zorp<lora:{plain}:0.5:lbw=X,{','.join(['X-0.25'] * 16)}:x=0.75:lbwe=ATTNDEEPOFF>")
    assert written is not None
    assert written.startswith(f"{plain}: 0.75,{','.join(['0.5'] * 16)} lbwe=IN05")
    assert field(webui, f"zorp<lora:{plain}:0.5>") is None
    assert field(webui, f"zorp<lora:{plain}:0.5:stop=3>") is None


def test_random_values_are_each_pictures_own_and_can_be_drawn_again(webui: FakeWebUI, plain: str) -> None:
    tag = f"<lora:{plain}:0.8:lbw={','.join(['R'] * 16 + ['U'])}>"
    done = webui.draw(f"zorp{tag}", n_iter=2)
    history = (webui.data / "params.txt").read_text(encoding="utf-8")
    found = [re.search(rf'{FIELD}: "{plain}: ([^"]+)"', text) for text in done.infotexts]
    lists = [match[1] for match in found if match]
    assert len(set(lists)) == len(done.images) == 2
    assert f'{FIELD}: "{plain}: {lists[0]}"' in history
    for number, numbers in enumerate(lists):
        picture = done.images[number].tobytes()
        assert webui.picture(f"zorp<lora:{plain}:0.8:lbw={numbers}>", seed=1 + number) == picture
        # the WebUI keeps the last prompt's conditioning by its text, which is the same for all seeds
        assert webui.picture(f"zorp{tag}", seed=1 + number) == picture


def test_the_hires_pass_has_its_own_prompt_and_its_own_field(webui: FakeWebUI, plain: str) -> None:
    prompt, hires = f"zorp<lora:{plain}:0.6:lbw=INALL>", f"zorp<lora:{plain}:0.6:lbw=OUTALL>"
    both = webui.draw(prompt, hr_prompt=hires, **HIRES)
    alone = webui.draw(prompt, **HIRES)
    assert both.images[0].tobytes() != alone.images[0].tobytes()
    assert f'{HIRES_FIELD}: "{plain}: 1,0,0,0' in both.infotexts[0]
    assert f'{FIELD}: "{plain}: 1,1,1,1' in both.infotexts[0]
    assert HIRES_FIELD not in alone.infotexts[0]


def test_a_cell_without_block_weights_has_none_in_its_infotext(webui: FakeWebUI, plain: str) -> None:
    """Cells of the X/Y/Z plot share one mapping of extra parameters."""
    p = webui.processing_of(f"zorp<lora:{plain}:1:lbw=OUTD>")
    webui.finish(p)
    assert FIELD in p.extra_generation_params
    p.prompt = f"zorp<lora:{plain}:1>"
    webui.finish(p)
    assert FIELD not in p.extra_generation_params


def test_a_changed_preset_is_used_at_once(webui: FakeWebUI, plain: str) -> None:
    presets = webui.data / "lora-train" / "presets" / "lbwpresets.txt"
    presets.parent.mkdir(parents=True)
    seen = []
    for base in ("0", "0.5"):
        presets.write_text(f"MINE:{base}{',1' * 16}\n", encoding="utf-8")
        seen.append(webui.picture(f"zorp<lora:{plain}:0.8:lbw=MINE>"))
        assert seen[-1] == webui.picture(f"zorp<lora:{plain}:0.8:lbw={base}{',1' * 16}>")
    assert seen[0] != seen[1]
    presets.write_bytes(b"\xff\xfe\x00")
    written = field(webui, f"zorp<lora:{plain}:0.8:lbw=ALL>")
    assert written is not None
    assert "cannot be read" in written


# ------------------------------------------------------------------ what cannot be used
@pytest.mark.parametrize(
    ("argument", "part"),
    [
        ("lbw=NOSUCH", "There is no block preset NOSUCH"),
        ("lbw=1,2,3", "has 3 values"),
        (f"lbw={','.join(['1'] * 20)}", "as for SDXL, but this LoRA is for SD1/SD2"),
        ("start=soon", "start must be a whole number"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_the_lora_is_drawn_without_it(
    webui: FakeWebUI, plain: str, argument: str, part: str
) -> None:
    done = webui.draw(f"zorp<lora:{plain}:0.5:{argument}>")
    assert part in done.infotexts[0]
    assert part in done.comments
    assert done.images[0].tobytes() == webui.picture(f"zorp<lora:{plain}:0.5>")


def test_the_old_form_leaves_out_its_own_tag_and_no_other(webui: FakeWebUI, plain: str) -> None:
    baked = bake_file(webui, plain, ANY)
    webui.draw(f"zorp<lora:{plain}:1>")  # what a failing tag would leave in the weights
    done = webui.draw(f"zorp<lora:{plain}:0.5:OUTD><lora:{baked}:0.5>")
    assert "block weights are written as lbw=OUTD" in done.infotexts[0]
    assert done.images[0].tobytes() == webui.picture(f"zorp<lora:{baked}:0.5>")


def test_one_that_the_host_does_not_find_takes_no_other_tags_weights(webui: FakeWebUI, plain: str) -> None:
    done = webui.draw(f"zorp<lora:nosuch:1:lbw=OUTD><lora:{plain}:0.5:lbw={ANY}>")
    assert "Lora not found: nosuch" in done.comments
    assert done.images[0].tobytes() == webui.picture(f"zorp<lora:{plain}:0.5:lbw={ANY}>")


def test_a_short_list_for_a_lora_with_convolutions_says_what_is_off(webui: FakeWebUI, plain: str) -> None:
    webui.add_lora("locon", "LoCon")
    comments = webui.draw("zorp<lora:locon:0.5:lbw=1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1>").comments
    assert "does not name the convolutions' blocks" in comments
    assert "layers are off" in comments


def test_it_can_be_switched_off(webui: FakeWebUI, plain: str) -> None:
    webui.shared.opts.data["lora_train_block_weights"] = False
    assert webui.picture(f"zorp<lora:{plain}:0.5:lbw=OUTD>") == webui.picture(f"zorp<lora:{plain}:0.5>")


def test_it_steps_aside_for_the_other_extension(webui: FakeWebUI, plain: str, caplog: pytest.LogCaptureFixture) -> None:
    other = webui.scripts.Script()
    other.filename, other.args_from, other.args_to = "somewhere/lora_block_weight.py", 1, 4
    webui.scripts.scripts_txt2img.alwayson_scripts.append(other)

    def drawn(active: bool, prompt: str) -> Any:
        p = webui.processing_of(prompt)
        p.script_args = [0, "presets", active, False]
        return webui.finish(p)

    tag = f"zorp<lora:{plain}:0.8:lbw=OUTD>"
    with caplog.at_level(logging.WARNING, logger="lora_trainer.webui.prompt_tags"):
        aside, again, without, ours = (
            *(drawn(True, tag), drawn(True, tag), drawn(True, f"zorp<lora:{plain}:0.8>")),
            drawn(False, tag),
        )
    assert aside.images[0].tobytes() == without.images[0].tobytes() != ours.images[0].tobytes()
    assert all("sd-webui-lora-block-weight" in each.comments for each in (aside, again))
    assert (without.comments, ours.comments) == ("", "")
    assert [FIELD in each.infotexts[0] for each in (aside, ours)] == [False, True]
    assert len(caplog.records) == 1


# ------------------------------------------------------------------ where it stands
def test_it_stands_before_the_lora_extension_once_and_is_that_to_all_others(webui: FakeWebUI, plain: str) -> None:
    from lora_trainer.webui import prompt_tags

    networks = webui.extra_networks
    ours = networks.extra_network_registry["lora"]
    prompt_tags.install()
    assert networks.extra_network_registry["lora"] is networks.extra_network_aliases["lyco"] is ours
    assert ours.errors is webui.networks.extra_network_lora.errors
    assert len(webui.script_callbacks.callback_map["callbacks_cfg_denoiser"]) == 1


def test_without_the_lora_extension_there_is_nothing_to_stand_before(tmp_path: Path, other_checkpoint: Path) -> None:
    from tests.fake_webui import fake_webui

    with fake_webui(tmp_path / "webui", other_checkpoint, lora=False) as webui:
        from lora_trainer.webui import prompt_tags

        prompt_tags.install()
        assert webui.extra_networks.extra_network_registry == {}
        assert webui.picture("zorp<lora:any:1:lbw=ALL>") == webui.picture("zorp")
