"""Holding the loaded model and drawing with it, in a WebUI of the tests' own: see :mod:`tests.fake_webui`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lora_trainer.core.errors import CheckpointChanged, InputError, Interrupted, RunError
from lora_trainer.hosts.base import DrawRequest, LoraUse, ModelRequest
from tests.fake_webui import FakeWebUI
from tests.helpers import LIMIT, until


@pytest.fixture
def host(webui: FakeWebUI) -> Any:
    from lora_trainer.hosts.a1111.host import A1111Host

    return A1111Host()


@pytest.fixture
def session(host: Any) -> Iterator[Any]:
    with host.session(ModelRequest()) as session:
        yield session


def request(prompt: str = "zorp", **values: Any) -> DrawRequest:
    return DrawRequest(prompt, **{"width": 64, "height": 64, "steps": 2, "cfg": 4.0, **values})


def drawn(session: Any, *requests: DrawRequest, lora: LoraUse | None = None) -> list[Image.Image]:
    with session.turn(drawing=True):
        return session.draw(requests or [request()], lora)


def same(webui: FakeWebUI, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in webui.model.state_dict().items())


def flags(webui: FakeWebUI) -> list[bool]:
    return [parameter.requires_grad for parameter in webui.model.parameters()]


# ------------------------------------------------------------------ the host is left as it was found
def test_a_lora_is_out_of_the_weights_in_a_turn_and_the_flags_are_back_after(webui: FakeWebUI, host: Any) -> None:
    for name, kind in (("plain", "LoRA"), ("full", "Full")):
        webui.add_lora(name, kind)
    before = webui.weights()
    webui.model.first_stage_model.requires_grad_(False)
    wanted = flags(webui)
    webui.draw("zorp<lora:plain:1><lora:full:0.5>")
    assert not same(webui, before)
    with host.session(ModelRequest()) as one, host.session(ModelRequest()) as two:
        with one.turn():
            assert same(webui, before)
            one.model.unet.requires_grad_(False)
        assert flags(webui) != wanted
        with two.turn(drawing=True):
            two.draw([request()], LoraUse(webui.loras / "plain.safetensors"))
        assert not same(webui, before)
    assert same(webui, before)
    assert flags(webui) == wanted


def test_a_layer_that_stays_as_it_is_is_said(webui: FakeWebUI, session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    webui.add_lora("plain")
    webui.draw("zorp<lora:plain:1>")
    with monkeypatch.context() as broken:
        broken.setattr(webui.networks, "network_apply_weights", lambda layer: None)
        with pytest.raises(RunError, match="could not be taken out"), session.turn():
            pass
    with session.turn():
        assert not any(getattr(layer, "network_current_names", ()) for layer in webui.model.modules())


def test_an_error_in_a_turn_leaves_lock_and_state_free(webui: FakeWebUI, session: Any) -> None:
    with pytest.raises(ZeroDivisionError), session.turn():
        raise ZeroDivisionError
    assert webui.shared.state.job == ""
    with session.turn():
        pass


# ------------------------------------------------------------------ drawing
def test_a_picture_is_what_txt2img_draws(webui: FakeWebUI, session: Any) -> None:
    path = webui.add_lora("plain")
    plain, with_lora, weaker = (
        webui.draw(f"zorp{tag}").images[0] for tag in ("", "<lora:plain:1>", "<lora:plain:0.5>")
    )
    assert drawn(session)[0].tobytes() == plain.tobytes()
    ours = drawn(session, lora=LoraUse(path))[0]
    assert ours.tobytes() == with_lora.tobytes() != plain.tobytes()
    assert ours.info["parameters"] == with_lora.info["parameters"]
    assert ours.info["parameters"].startswith("zorp<lora:plain:1>\nSteps: 2, ")
    assert drawn(session, lora=LoraUse(path, 0.5))[0].tobytes() == weaker.tobytes()
    assert drawn(session)[0].tobytes() == plain.tobytes()


def test_pictures_are_drawn_together(webui: FakeWebUI, session: Any) -> None:
    asked = [request("zorp", seed=1), request("red circle", seed=2), request("zorp", seed=3)]
    images = drawn(session, *asked, lora=LoraUse(webui.add_lora("plain"), 0.7))
    assert [image.info["parameters"].splitlines()[0] for image in images] == [
        f"{each.prompt}<lora:plain:0.7>" for each in asked
    ]
    assert len({image.tobytes() for image in images}) == 3
    assert all(f"Seed: {seed}," in image.info["parameters"] for seed, image in zip((1, 2, 3), images, strict=True))


def test_what_only_the_host_knows_goes_with_a_picture(webui: FakeWebUI, session: Any) -> None:
    path = webui.add_lora("plain")
    hires = {"enable_hr": True, "hr_scale": 2.0, "hr_upscaler": "Latent", "denoising_strength": 0.6, "hr_prompt": "red"}
    more = {**hires, "override_settings": (("CLIP_stop_at_last_layers", 2),), "subseed": 5, "subseed_strength": 0.1}
    image = drawn(session, request(more=tuple(sorted(more.items()))), lora=LoraUse(path))[0]
    values = {**more, "override_settings": dict(more["override_settings"]), "hr_prompt": "red<lora:plain:1>"}
    theirs = webui.draw("zorp<lora:plain:1>", **values).images[0]
    assert image.size == (128, 128)
    assert image.tobytes() == theirs.tobytes()
    assert "Clip skip: 2" in image.info["parameters"]
    assert webui.shared.opts.CLIP_stop_at_last_layers == 1


def test_a_file_is_read_once_for_many_pictures_and_again_when_it_was_written_anew(
    webui: FakeWebUI, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = webui.add_lora("plain"), []
    inner = webui.networks.load_network
    monkeypatch.setattr(webui.networks, "load_network", lambda *args: read.append(args[0]) or inner(*args))
    for weight in (1, 0.5):
        drawn(session, lora=LoraUse(path, weight))
        with session.turn():
            pass
    assert read == ["plain"]


def test_a_file_elsewhere_is_known_for_its_picture_only(webui: FakeWebUI, session: Any, tmp_path: Path) -> None:
    path = webui.add_lora("plain").rename(tmp_path / "elsewhere.safetensors")
    image = drawn(session, lora=LoraUse(path))[0]
    assert image.tobytes() != webui.picture("zorp")
    for known in ("available_networks", "available_network_aliases", "networks_in_memory"):
        assert "elsewhere" not in getattr(webui.networks, known)
    inside = webui.add_lora("inside")
    drawn(session, lora=LoraUse(inside))
    assert webui.networks.available_networks["inside"].filename == str(inside)


def test_the_persons_last_prompt_is_kept(webui: FakeWebUI, session: Any) -> None:
    history = webui.data / "params.txt"
    drawn(session)
    assert not history.exists()
    webui.draw("my own prompt")
    kept = history.read_text(encoding="utf-8")
    drawn(session)
    assert history.read_text(encoding="utf-8") == kept
    assert kept.startswith("my own prompt\n")


def test_scripts_of_other_extensions_have_their_defaults(webui: FakeWebUI, session: Any) -> None:
    seen = []

    class Other(webui.scripts.Script):
        args_from, args_to = 1, 3

        def before_process(self, p: Any, *args: Any) -> None:
            seen.append((args, p.is_api))

    runner = webui.scripts.scripts_txt2img
    runner.alwayson_scripts.append(Other())
    runner.inputs += [type("Widget", (), {"value": 7})(), type("Widget", (), {})()]
    drawn(session)
    assert seen == [((7, None), True)]


def _switched_off(webui: FakeWebUI) -> LoraUse:
    webui.shared.opts.data["lora_train_block_weights"] = False
    return LoraUse(webui.add_lora("plain"), lbw="OUTD")


@pytest.mark.parametrize(
    ("made", "part"),
    [
        (lambda webui: LoraUse(webui.add_lora("empty")), "The WebUI could not load the LoRA nosuch"),
        (_switched_off, "Block weights in prompts are switched off"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(
    webui: FakeWebUI, session: Any, made: Callable[[FakeWebUI], LoraUse], part: str
) -> None:
    with pytest.raises(InputError, match=part):
        drawn(session, request("zorp<lora:nosuch:1>"), lora=made(webui))


def test_a_file_that_the_host_cannot_read_is_named(webui: FakeWebUI, session: Any) -> None:
    path = webui.add_lora("bad")
    webui.networks.update_available_networks_by_names(["bad"])
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"could not load .*bad\.safetensors; its console tells why"):
        drawn(session, lora=LoraUse(path))


def test_without_the_lora_extension_pictures_are_drawn_and_loras_are_refused(
    tmp_path: Path, other_checkpoint: Path
) -> None:
    from tests.fake_webui import fake_webui

    with fake_webui(tmp_path / "webui", other_checkpoint, lora=False) as webui:
        from lora_trainer.hosts.a1111.host import A1111Host

        host = A1111Host()
        host.announce(tmp_path / "new.safetensors")
        with host.session(ModelRequest()) as session:
            assert drawn(session)[0].tobytes() == webui.picture("zorp")
            with pytest.raises(InputError, match="Lora extension is switched off"):
                drawn(session, lora=LoraUse(tmp_path / "a.safetensors"))
            with pytest.raises(InputError, match="could not load the LoRA any"):
                drawn(session, request("zorp<lora:any:1>"))


# ------------------------------------------------------------------ Interrupt
def at_step(webui: FakeWebUI, act: Callable[[], object]) -> None:
    """Do something within the next picture."""
    left = [None]

    def call(params: Any) -> None:
        if left:
            left.pop()
            act()

    webui.script_callbacks.add_callback(webui.script_callbacks.callback_map["callbacks_cfg_denoiser"], call)


def test_interrupt_within_a_picture_is_told_and_forgotten(webui: FakeWebUI, session: Any) -> None:
    for press in (webui.shared.state.interrupt, webui.shared.state.skip):
        at_step(webui, press)
        with pytest.raises(Interrupted):
            drawn(session)
        assert not webui.shared.state.interrupted
        assert drawn(session)[0].tobytes() == webui.picture("zorp")


@pytest.mark.parametrize("is_over", [True, False], ids=["over before the picture", "over after it"])
def test_what_reload_ui_interrupts_is_drawn_again_on_the_new_page(
    webui: FakeWebUI, session: Any, monkeypatch: pytest.MonkeyPatch, is_over: bool
) -> None:
    from lora_trainer.hosts.a1111.rebuild import reload

    def press() -> None:
        reload.begin()
        webui.shared.state.interrupt()
        if is_over:
            reload.end()
        else:  # when the next picture waits for it
            monkeypatch.setattr(reload, "wait", reload.end)

    at_step(webui, press)
    assert drawn(session)[0].tobytes() == webui.picture("zorp")
    assert not reload.going_on


def test_reload_ui_while_we_work_is_no_interrupt_of_the_persons(webui: FakeWebUI, session: Any) -> None:
    from lora_trainer.hosts.a1111.rebuild import reload

    with session.turn():
        reload.begin()
        webui.shared.state.interrupt()
        reload.end()
    assert not session.interrupted()


def test_interrupt_while_we_work_is_for_us_unless_somebody_waits(webui: FakeWebUI, session: Any) -> None:
    with session.turn():
        webui.shared.state.interrupt()
    assert session.interrupted()
    assert not session.interrupted()
    lock = webui.call_queue.queue_lock
    with session.turn():
        waiting = threading.Thread(target=lambda: (lock.acquire(), lock.release()))
        waiting.start()
        until(session.wanted)
        webui.shared.state.interrupt()
    waiting.join(LIMIT)
    assert not session.interrupted()


def test_progress_shows_while_it_is_our_turn(webui: FakeWebUI, session: Any) -> None:
    state = webui.shared.state
    session.show_progress("zorp", 3, 10)
    with session.turn():
        assert (state.job, state.job_no, state.job_count, state.textinfo) == (
            *("LoRA Train: zorp", 3, 10),
            "LoRA Train: 3/10",
        )
    assert (state.job, state.job_count, state.textinfo) == ("", 0, None)
    state.job = "another's"
    with session.turn():
        assert state.job == "another's"
    assert state.job == "another's"


def test_the_settings_of_a_picture_are_those_that_the_webui_writes_down(webui: FakeWebUI, session: Any) -> None:
    before = session.draw_settings()
    webui.shared.opts.data["localization"] = "zh_CN"
    assert session.draw_settings() == before
    webui.shared.opts.data["CLIP_stop_at_last_layers"] = 2
    assert "'Clip skip'" not in before
    assert session.draw_settings() != before


# ------------------------------------------------------------------ another checkpoint
def test_a_switch_is_told_and_the_old_one_back_is_the_same_run(webui: FakeWebUI, session: Any) -> None:
    webui.choose("other")
    with pytest.raises(CheckpointChanged, match="another checkpoint"), session.turn():
        pass
    webui.choose("small")
    with session.turn():
        pass


def test_a_picture_that_would_load_another_is_not_drawn(webui: FakeWebUI, session: Any) -> None:
    with session.turn():
        webui.shared.opts.data["sd_model_checkpoint"] = webui.title("other")
        with pytest.raises(CheckpointChanged):
            session.draw([request()], None)
        webui.shared.opts.data["sd_model_checkpoint"] = webui.title("small")
    assert webui.model.sd_checkpoint_info.name == "small.safetensors"


def test_another_that_a_picture_has_left_in_memory_is_replaced_by_ours(
    webui: FakeWebUI, session: Any, host: Any
) -> None:
    before = webui.weights()
    for start in (session.turn, lambda: host.session(ModelRequest())):
        webui.draw("zorp", override_settings={"sd_model_checkpoint": webui.title("other")})
        assert webui.model.sd_checkpoint_info.name == "other.safetensors"
        with start():
            assert webui.model.sd_checkpoint_info.name == "small.safetensors"
            assert same(webui, before)


def test_what_cannot_be_loaded_again_is_said(webui: FakeWebUI, session: Any, host: Any) -> None:
    webui.draw("zorp", override_settings={"sd_model_checkpoint": webui.title("other")})
    (webui.data / "models" / "Stable-diffusion" / "small.safetensors").unlink()
    with pytest.raises(CheckpointChanged, match="another checkpoint"), session.turn():
        pass
    with pytest.raises(RunError, match=r"could not load .*small\.safetensors"), host.session(ModelRequest()):
        pass


def test_another_model_another_format_and_none_at_all_are_told_apart(webui: FakeWebUI, session: Any) -> None:
    unet = webui.model.model
    unet.to(torch.float8_e4m3fn)
    with pytest.raises(CheckpointChanged, match="number format"), session.turn():
        pass
    unet.to(torch.float32)
    webui.sd_models.reload_model_weights(forced_reload=True)
    with session.turn():
        pass
    webui.devices.device = torch.device("cuda")
    with pytest.raises(CheckpointChanged, match="was unloaded"), session.turn():
        pass
    webui.devices.device = torch.device("cpu")
    kept, webui.sd_models.model_data.sd_model = webui.model, None
    with pytest.raises(CheckpointChanged, match="another checkpoint"), session.turn():
        pass
    webui.sd_models.model_data.sd_model = kept


# ------------------------------------------------------------------ little memory
@pytest.mark.parametrize("option", ["medvram", "lowvram"])
def test_parts_that_come_and_go_are_all_there_in_a_turn(webui: FakeWebUI, host: Any, option: str) -> None:
    setattr(webui.shared.cmd_opts, option, True)
    webui.model.lowvram = True
    webui.lowvram.module_in_gpu = webui.model.first_stage_model
    with host.session(ModelRequest()) as session:
        with session.turn():
            assert webui.lowvram.module_in_gpu is webui.model.model
        assert webui.lowvram.module_in_gpu is (None if option == "lowvram" else webui.model.model)
    assert webui.lowvram.module_in_gpu is None
