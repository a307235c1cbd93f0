"""The loaded checkpoint, in a WebUI of the tests' own: see :mod:`tests.fake_webui`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lora_trainer.core.errors import CheckpointChanged, InputError
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.hosts.standalone.checkpoint import Checkpoint
from tests.fake_webui import FakeWebUI
from tests.helpers import CHECKPOINT


@pytest.fixture
def host(webui: FakeWebUI) -> Any:
    from lora_trainer.hosts.a1111.host import A1111Host

    return A1111Host()


def test_what_is_loaded_is_told_without_touching_it(webui: FakeWebUI, host: Any) -> None:
    before = webui.weights()
    info = host.check(ModelRequest())
    assert (info.name, info.family.name, info.prediction, info.vae) == ("small.safetensors", "SD1", "epsilon", "")
    assert info.sha256 == webui.model.sd_checkpoint_info.sha256
    assert info.fingerprint
    assert all(torch.equal(value, before[name]) for name, value in webui.model.state_dict().items())


def test_the_chosen_checkpoint_counts_though_another_is_in_memory(webui: FakeWebUI, host: Any) -> None:
    webui.shared.opts.data["sd_model_checkpoint"] = webui.title("other")
    info = host.check(ModelRequest())
    assert (info.name, info.family.name, info.fingerprint) == ("other.safetensors", "SD1", "")
    assert webui.model.sd_checkpoint_info.name == "small.safetensors"


def test_of_a_file_that_does_not_tell_the_loaded_one_is_told(webui: FakeWebUI, host: Any) -> None:
    path = webui.data / "models" / "Stable-diffusion" / "old.ckpt"
    path.write_bytes(b"pickled")
    webui.sd_models.CheckpointInfo(path).register()
    webui.shared.opts.data["sd_model_checkpoint"] = webui.title("old")
    assert host.check(ModelRequest()).name == "small.safetensors"
    assert path not in host.checkpoints()
    assert [each.name for each in host.checkpoints()] == ["other.safetensors", "small.safetensors"]


def test_a_checkpoint_that_was_never_loaded_is_loaded_when_asked_for(webui: FakeWebUI, host: Any) -> None:
    data = webui.sd_models.model_data
    data.sd_model, data.was_loaded_at_least_once = None, False
    assert host.check(ModelRequest()).name == "small.safetensors"
    assert data.sd_model is not None


def _nothing(webui: FakeWebUI) -> None:
    webui.sd_models.model_data.sd_model = None


def _thrown_away(webui: FakeWebUI) -> None:
    webui.model.to("meta")


def _put_away(webui: FakeWebUI) -> None:
    webui.devices.device = torch.device("cuda")


def _in_8_bits(webui: FakeWebUI) -> None:
    webui.model.model.to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("happens", "part"),
    [
        (_nothing, "No checkpoint is loaded"),
        (_thrown_away, "No checkpoint is loaded"),
        (_put_away, "The checkpoint is unloaded"),
        (_in_8_bits, "loaded in FP8"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(
    webui: FakeWebUI, host: Any, happens: Callable[[FakeWebUI], None], part: str
) -> None:
    happens(webui)
    with pytest.raises(InputError, match=part) as caught:
        host.check(ModelRequest())
    assert caught.value.field == "checkpoint"
    with pytest.raises(CheckpointChanged, match=part), host.session(ModelRequest()):
        pass


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        *(("sdxl", "SDXL checkpoints cannot"), ("sd2", "SD2 checkpoints cannot"), ("sd3", "SD3 checkpoints cannot")),
        ("", "it has no CLIP text encoder"),
    ],
)
def test_other_kinds_are_told_by_the_webuis_own_flags(webui: FakeWebUI, host: Any, kind: str, part: str) -> None:
    webui.model.is_sd1 = False
    if kind:
        setattr(webui.model, f"is_{kind}", True)
    else:
        webui.model.cond_stage_model.wrapped.transformer = torch.nn.Module()
    with pytest.raises(InputError, match=part):
        host.check(ModelRequest())


def test_a_model_whose_parts_come_and_go_is_not_put_away(webui: FakeWebUI, host: Any) -> None:
    _put_away(webui)
    webui.model.lowvram = True
    assert host.check(ModelRequest()).name == "small.safetensors"


# ------------------------------------------------------------------ telling weights
def test_a_fingerprint_is_of_the_weights_without_a_lora_and_tells_others(webui: FakeWebUI, host: Any) -> None:
    webui.add_lora("full", "Full")
    clean = host.check(ModelRequest()).fingerprint
    webui.draw("zorp<lora:full:1>")
    assert webui.networks.loaded_networks
    assert host.check(ModelRequest()).fingerprint == clean
    with torch.no_grad():
        webui.model.model.diffusion_model.out[0].weight.mul_(2)
    assert (
        host.check(ModelRequest()).fingerprint == clean
    )  # a LoRA has its own copy of it: what is in between is the LoRA's
    webui.draw("zorp")
    webui.choose("other")
    assert host.check(ModelRequest()).fingerprint not in ("", clean)


def test_a_fused_layer_and_one_that_counts_no_changes_have_a_fingerprint_too(webui: FakeWebUI, host: Any) -> None:
    """As in SD2's text encoder, and of a model that was loaded in inference mode."""
    attention = torch.nn.MultiheadAttention(8, 2)
    with torch.inference_mode():
        late = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    webui.model.cond_stage_model.add_module("fused", attention)
    webui.model.cond_stage_model.register_parameter("late", late)
    clean = host.check(ModelRequest()).fingerprint
    attention.network_weights_backup = attention.in_proj_weight.clone(), attention.out_proj.weight.clone()
    attention.network_bias_backup = attention.out_proj.bias.clone()
    with torch.no_grad():
        for parameter in (attention.in_proj_weight, attention.out_proj.weight, attention.out_proj.bias):
            parameter.add_(1)
    assert host.check(ModelRequest()).fingerprint == clean
    attention.network_weights_backup = None
    with torch.no_grad():
        attention.in_proj_weight.add_(1)
    assert host.check(ModelRequest()).fingerprint != clean


# ------------------------------------------------------------------ the view
def test_the_view_has_the_hosts_own_parameters_and_computes_what_it_does(webui: FakeWebUI, host: Any) -> None:
    captions = ["zorp, red background", ", ".join(["blue circle"] * 40)]
    rng = torch.Generator().manual_seed(0)
    latents, times = torch.randn(2, 4, 16, 16, generator=rng), torch.tensor([17, 803])
    with host.session(ModelRequest()) as session, session.turn(), torch.no_grad():
        unet, text = webui.model.model.diffusion_model, webui.model.cond_stage_model
        assert {id(p) for p in session.model.unet.parameters()} == {id(p) for p in unet.parameters()}
        assert {id(p) for p in session.model.text[0].model.parameters()} == {id(p) for p in text.parameters()}
        states = text(captions)
        assert torch.allclose(session.model.text(captions).states, states, atol=1e-5)
        theirs = unet(latents, times, context=states)
        ours = session.model.unet(latents, times, states).sample
        assert torch.linalg.norm(ours - theirs) <= 1e-5 * torch.linalg.norm(theirs)


def test_pictures_are_encoded_as_by_the_embedded_host_and_the_vae_keeps_its_format(webui: FakeWebUI, host: Any) -> None:
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    webui.model.first_stage_model.half()
    with host.session(ModelRequest()) as session, session.turn():
        latents = session.model.encode(pixels)
    assert latents.dtype == torch.float32
    assert torch.allclose(latents, Checkpoint(CHECKPOINT).encode(pixels), atol=1e-4)
    assert next(webui.model.first_stage_model.parameters()).dtype == torch.float16


def test_the_view_is_of_the_settings_of_now(webui: FakeWebUI, host: Any) -> None:
    seen = []
    for skip, asked in ((1, 0), (2, 0), (2, 1)):
        webui.shared.opts.CLIP_stop_at_last_layers = skip
        with host.session(ModelRequest(clip_skip=asked)) as session:
            seen.append((session.model.clip_skip, session.model.vae_key))
    assert [skip for skip, _ in seen] == [1, 2, 1]
    with torch.no_grad():
        webui.model.first_stage_model.quant_conv.bias.add_(1)
    webui.model.parameterization = "v"
    with host.session(ModelRequest()) as session:
        assert session.model.info.prediction == "v_prediction"
        assert session.model.vae_key not in {key for _, key in seen}


# ------------------------------------------------------------------ loading
@pytest.mark.parametrize("by", ["hash", "name"])
def test_a_checkpoint_of_before_is_loaded_and_chosen(webui: FakeWebUI, host: Any, by: str) -> None:
    wanted = webui.sd_models.get_closet_checkpoint_match("other")
    host.load_checkpoint(
        "other.safetensors" if by == "name" else "renamed.safetensors", wanted.sha256 if by == "hash" else ""
    )
    assert webui.model.sd_checkpoint_info is wanted
    assert host.chosen_checkpoint() == wanted.title
    assert webui.call_queue.queue_lock.acquire(blocking=False)


def test_a_checkpoint_that_is_gone_is_named(host: Any) -> None:
    with pytest.raises(InputError, match=r"The checkpoint gone\.safetensors is not among those"):
        host.load_checkpoint("gone.safetensors", "")
