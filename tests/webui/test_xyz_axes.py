"""Our axes of the X/Y/Z plot, in a WebUI of the tests' own: see :mod:`tests.fake_webui`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.runs.store import Runs
from tests.fake_webui import FakeWebUI
from tests.helpers import config

OURS = [
    *("LoRA run epoch", "LoRA file", "LoRA weight", "LoRA text-encoder weight", "LoRA UNet weight"),
    *("LoRA block weights", "LoRA single block"),
]
Axis = tuple[str, Any]
NOTHING: Axis = ("Nothing", "")


@pytest.fixture
def plot(webui: FakeWebUI) -> Callable[..., Any]:
    """Draws with the plot; a run of three epochs and another LoRA with the last one's alias are there."""
    from lora_trainer.webui import prompt_tags

    files = []
    for epoch, name in enumerate(("axes-000001", "axes-000002", "axes"), 1):
        path = webui.add_lora(name, seed=epoch)
        files.append({"path": str(path), "epoch": epoch, "step": epoch})
    webui.add_lora("zother", seed=9, ss_output_name="axes")
    webui.networks.list_available_networks()
    Runs(webui.data / "lora-train" / "runs").create(config().with_values({"name": "axes"}), files=files, state="done")
    register_axes(webui)
    prompt_tags.install()

    def draw(x: Axis, y: Axis = NOTHING, z: Axis = NOTHING, prompt: str = "zorp", **values: Any) -> Any:
        """An axis' values are text, or a list for the dropdown."""
        script = webui.script("X/Y/Z plot")
        labels = [option.label for option in script.current_axis_options]
        arguments: list[Any] = []
        for label, wanted in (x, y, z):
            is_text = isinstance(wanted, str)
            arguments += [labels.index(label), wanted if is_text else "", [] if is_text else wanted]
        by_text = all(isinstance(wanted, str) for _, wanted in (x, y, z))
        arguments += [False, True, False, False, False, False, False, 0, by_text]
        p = webui.processing_of(prompt, **{"steps": 1, **values})
        return webui.finish(p, "X/Y/Z plot", arguments)

    return draw


def register_axes(webui: FakeWebUI) -> None:
    """As ``scripts/lora_train.py`` does it."""
    from lora_trainer.webui import xyz_axes
    from lora_trainer.webui.callbacks import register

    register("before_ui", xyz_axes.install, __file__)
    webui.start("lora_train_axes.py")


def prompts(done: Any) -> list[str | None]:
    return [text.splitlines()[0] if text else None for text in done.infotexts]


def cells(done: Any) -> list[bytes]:
    return [image.tobytes() for image in done.images]


def test_the_axes_are_in_both_lists_once_also_when_the_page_is_built_anew(webui: FakeWebUI) -> None:
    register_axes(webui)
    webui.build()
    for runner in (webui.scripts.scripts_txt2img, webui.scripts.scripts_img2img):
        script = next(each for each in runner.scripts if each.title() == "X/Y/Z plot")
        labels = [option.label for option in script.current_axis_options]
        assert [labels.count(label) for label in OURS] == [1] * len(OURS)
    ours = webui.script("LoRA Train axes")
    assert ours.alwayson
    assert ours.args_from == ours.args_to


def test_without_the_plot_nothing_is_added(webui: FakeWebUI) -> None:
    from lora_trainer.webui import xyz_axes

    xyz_axes.install()
    assert webui.scripts.scripts_data == []


def test_epochs_times_weights_and_each_infotext_draws_its_cell(webui: FakeWebUI, plot: Callable[..., Any]) -> None:
    done = plot(("LoRA run epoch", "axes: all, None"), ("LoRA weight", "0.5-1(+0.5)"))
    names = ["axes-000001", "axes-000002", "axes"]
    wanted = [p for weight in ("0.5", "1") for p in (*(f"zorp<lora:{n}:{weight}>" for n in names), "zorp")]
    assert prompts(done) == wanted
    assert len(set(cells(done))) == 7
    assert [webui.picture(prompt, steps=1) for prompt in wanted] == cells(done)


def test_epochs_are_chosen_from_a_list_or_by_the_file_in_the_prompt(plot: Callable[..., Any]) -> None:
    done = plot(("LoRA run epoch", ["axes: 2", "axes: last"]), prompt="zorp<lora:axes-000001:0.7>")
    assert prompts(done) == ["zorp<lora:axes-000002:0.7>", "zorp<lora:axes:0.7>"]


def test_files_are_names_and_never_aliases(webui: FakeWebUI, plot: Callable[..., Any]) -> None:
    done = plot(("LoRA file", "axes.safetensors, zother, axes-000001, none"))
    assert prompts(done) == ["zorp<lora:axes:1>", "zorp<lora:zother:1>", "zorp<lora:axes-000001:1>", "zorp"]
    assert len(set(cells(done))) == 4


def test_what_may_be_chosen(webui: FakeWebUI, plot: Callable[..., Any]) -> None:
    options = {option.label: option for option in webui.script("X/Y/Z plot").current_axis_options}
    assert options["LoRA file"].choices() == ["None", "axes", "axes-000001", "axes-000002", "zother"]
    assert options["LoRA run epoch"].choices()[0] == "None"
    assert "axes: 2" in options["LoRA run epoch"].choices()
    assert "OUTALL" in options["LoRA block weights"].choices()
    assert "NOT IN05" in options["LoRA single block"].choices()
    assert options["LoRA file"].format_value(None, None, "axes") == "axes"


def test_weights_of_text_encoder_and_unet_are_axes_of_their_own(plot: Callable[..., Any]) -> None:
    done = plot(
        ("LoRA text-encoder weight", "0, 0.5"), ("LoRA UNet weight", "0.25"), ("LoRA run epoch", "2"),
        prompt="zorp<lora:axes:0.8>",
    )  # fmt: skip
    assert prompts(done) == ["zorp<lora:axes-000002:0:unet=0.25>", "zorp<lora:axes-000002:0.5:unet=0.25>"]


def test_block_weights_and_single_blocks(plot: Callable[..., Any]) -> None:
    seventeen = "1,0.5,0.5,0.5,0.5,0.5,0.5,1,1,1,1,1,1,1,1,1,1"
    done = plot(("LoRA block weights", f'OUTALL,"{seventeen}"'), prompt="zorp<lora:axes:1>")
    assert prompts(done) == [f"zorp<lora:axes:1:lbw={lbw}>" for lbw in ("OUTALL", seventeen)]
    assert all("Lora Train block weights" in text for text in done.infotexts)
    blocks = plot(("LoRA single block", "IN05"), ("LoRA block weights", seventeen), prompt="zorp<lora:axes:1>")
    assert prompts(blocks) == [f"zorp<lora:axes:1:lbw={','.join(['0'] * 4 + ['0.5'] + ['0'] * 12)}>"]


def test_they_go_with_the_webuis_own_axes(webui: FakeWebUI, plot: Callable[..., Any]) -> None:
    prompt = "zorp<lora:axes:1>"
    words = plot(("LoRA weight", "0.5"), ("Prompt S/R", "zorp, red circle"), prompt=prompt)
    assert prompts(words) == ["zorp<lora:axes:0.5>", "red circle<lora:axes:0.5>"]
    models = plot(
        ("Checkpoint name", "small.safetensors, other.safetensors"), ("LoRA single block", "M00"), prompt=prompt
    )
    assert len(set(cells(models))) == 2


def test_hires_prompts_have_the_tag_too(plot: Callable[..., Any]) -> None:
    hires = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.6, "steps": 2}
    done = plot(("LoRA weight", "0, 1"), prompt="a<lora:axes:1>", hr_prompt="b<lora:axes:1>", **hires)
    assert len(set(cells(done))) == 2
    assert {image.size for image in done.images} == {(128, 128)}


def test_prompts_may_be_a_list(webui: FakeWebUI, plot: Callable[..., Any]) -> None:
    done = plot(("LoRA weight", "0.5"), prompt=["a<lora:axes:1>"])
    assert prompts(done) == ["a<lora:axes:0.5>"]


@pytest.mark.parametrize(
    ("axes", "part"),
    [
        ([("LoRA weight", "")], "The axis LoRA weight has no values"),
        ([("LoRA weight", "much")], "must be a number, not much"),
        ([("LoRA weight", "nan")], "must be a number, not nan"),
        ([("LoRA weight", "1e999")], "must be a number, not inf"),
        ([("LoRA file", "nosuch")], "There is no LoRA file named nosuch"),
        ([("LoRA file", [])], "The axis LoRA file has no values"),
        ([("LoRA run epoch", "nosuch: all")], "There is no run named nosuch"),
        ([("LoRA run epoch", "axes: 9")], "The run axes has no epoch 9; it has 1, 2, 3"),
        ([("LoRA block weights", "NOSUCH")], "There is no block preset NOSUCH"),
        ([("LoRA single block", "IN77")], "There is no block IN77"),
        ([("Checkpoint name", "small"), ("LoRA single block", "IN77")], "There is no block IN77"),
        ([("LoRA weight", "1"), ("LoRA weight", "2")], "Two axes choose the same thing"),
        ([("LoRA run epoch", "axes: all"), ("LoRA file", "axes")], "Two axes choose the same thing"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence_before_the_first_cell(
    webui: FakeWebUI, plot: Callable[..., Any], axes: list[Axis], part: str
) -> None:
    from lora_trainer.webui.xyz_axes import AxisError

    with pytest.raises(AxisError) as caught:
        plot(*axes, prompt="zorp<lora:axes:1>")
    assert part in caught.value.detail
    assert caught.value.status_code == 422
    assert not (webui.data / "params.txt").exists()


def test_a_grid_over_checkpoints_takes_blocks_of_any_kind(webui: FakeWebUI, plot: Callable[..., Any]) -> None:
    """A list of 20 is SDXL's; for the cell of an SD1 checkpoint it is not used, which its infotext says."""
    twenty = ",".join(["1"] * 20)
    done = plot(("Checkpoint name", "small"), ("LoRA block weights", f'"{twenty}"'), prompt="zorp<lora:axes:1>")
    assert "as for SDXL" in done.infotexts[0]


def test_a_kind_without_known_blocks_has_no_axes_of_blocks(webui: FakeWebUI, plot: Callable[..., Any]) -> None:
    from lora_trainer.webui.xyz_axes import AxisError

    webui.model.is_sd1 = False
    with pytest.raises(AxisError, match="another kind is loaded"):
        plot(("LoRA block weights", "OUTD"), prompt="zorp<lora:axes:1>")


def test_a_prompt_without_a_tag_needs_a_file(plot: Callable[..., Any]) -> None:
    from lora_trainer.webui.xyz_axes import AxisError

    with pytest.raises(AxisError, match="The prompt has no LoRA tag"):
        plot(("LoRA weight", "0.5"))
    assert prompts(plot(("LoRA weight", "0.5"), ("LoRA file", "axes"))) == ["zorp<lora:axes:0.5>"]


def test_a_file_that_is_gone_is_named_or_left_out_and_one_that_goes_leaves_its_cell_blank(
    webui: FakeWebUI, plot: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gradio

    from lora_trainer.webui import xyz_axes

    said: list[str] = []
    monkeypatch.setattr(gradio, "Warning", said.append)
    path = webui.loras / "axes-000002.safetensors"
    inner, seen = xyz_axes.before_process, []

    def second(p: Any) -> None:
        seen.append(p)
        if len(seen) == 2:
            path.unlink()
        inner(p)

    monkeypatch.setattr(xyz_axes, "before_process", second)
    done = plot(("LoRA run epoch", "axes: all"))
    assert prompts(done) == ["zorp<lora:axes-000001:1>", None, "zorp<lora:axes:1>"]
    assert said == ["There is no LoRA file named axes-000002; names of files count, not aliases."]
    with pytest.raises(xyz_axes.AxisError, match=r"axes-000002\.safetensors is gone"):
        plot(("LoRA run epoch", "axes: 1, 2"))
    assert prompts(plot(("LoRA run epoch", "axes: all"))) == ["zorp<lora:axes-000001:1>", "zorp<lora:axes:1>"]


def test_a_file_hidden_by_another_of_its_name_is_told(webui: FakeWebUI, plot: Callable[..., Any]) -> None:
    from lora_trainer.webui.xyz_axes import AxisError

    path = webui.loras / "axes-000002.safetensors"
    hidden: Path = webui.data / "axes-000002.safetensors"
    hidden.write_bytes(path.read_bytes())
    run = Runs(webui.data / "lora-train" / "runs").get("axes")
    run.update(files=[{"path": str(hidden), "epoch": 2, "step": 2}], now=True)
    with pytest.raises(AxisError, match="has the same name; rename one of them"):
        plot(("LoRA run epoch", "axes: 2"))


def test_without_the_lora_extension_files_are_refused(tmp_path: Path, other_checkpoint: Path) -> None:
    from lora_trainer.core.errors import InputError
    from tests.fake_webui import fake_webui

    with fake_webui(tmp_path / "webui", other_checkpoint, lora=False) as webui:
        from lora_trainer.hosts.a1111.networks import reachable

        register_axes(webui)
        options = {option.label: option for option in webui.script("X/Y/Z plot").current_axis_options}
        assert options["LoRA file"].choices() == ["None"]
        with pytest.raises(InputError, match="Lora extension is switched off"):
            reachable("axes")
