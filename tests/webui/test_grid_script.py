"""The script *LoRA Train grid* of txt2img, in a WebUI of the tests' own: see :mod:`tests.fake_webui`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from lora_trainer.config.train import TrainConfig
from lora_trainer.jobs.service import Jobs, shared_jobs
from lora_trainer.runs.run import Run
from tests.fake_webui import FakeWebUI, fake_webui
from tests.helpers import LIMIT
from tests.runs_helpers import document

TITLE = "LoRA Train grid"
Generate = Callable[..., Any]


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory, other_checkpoint: Path) -> Iterator[FakeWebUI]:
    """One for all tests here, with a run of two epochs and one picture held out."""
    folder = tmp_path_factory.mktemp("grids")
    with fake_webui(folder / "webui", other_checkpoint) as running:
        from lora_trainer.hosts.a1111.host import A1111Host

        running.start("lora_train_grid.py")
        changes = {"training__epochs": 2, "training__steps": 0, "save__every_epochs": 1, "validation__share": 0.3}
        values = document(folder, "gridded", **changes, samples__width=64, samples__height=64)
        jobs = shared_jobs(A1111Host)
        run = jobs.submit(TrainConfig.from_dict(values))
        assert jobs.wait(run, LIMIT)
        assert run.state == "done", run.manifest["message"]
        yield running


@pytest.fixture
def jobs(webui: FakeWebUI) -> Jobs:
    from lora_trainer.hosts.a1111.host import A1111Host

    return shared_jobs(A1111Host)


@pytest.fixture
def run(jobs: Jobs) -> Run:
    return jobs.settled("gridded")


@pytest.fixture
def generate(webui: FakeWebUI) -> Generate:
    """Press *Generate* with the script chosen; gives what the gallery shows and what was drawn."""

    def press(
        prompt: str = "zorp", *, name: str = "gridded", together: int = 2, numbers: bool = False, **values: Any
    ) -> Any:
        epochs, weights = values.pop("epochs", "all"), values.pop("weights", "1")
        p = webui.processing_of(prompt, **values)
        return webui.finish(p, TITLE, [name, epochs, weights, together, numbers]), p

    return press


def refused(generate: Generate, **values: Any) -> str:
    from lora_trainer.webui.xyz_axes import AxisError

    with pytest.raises(AxisError) as caught:
        generate(**values)
    return caught.value.detail


def test_every_cell_is_what_txt2img_draws_and_measured(webui: FakeWebUI, run: Run, generate: Generate) -> None:
    names = [Path(entry["path"]).stem for entry in run.manifest["files"]]
    done, p = generate(f"zorp<lora:{names[0]}:0.3>", weights="0.5, 1", numbers=True, together=1)
    cells = done.images[done.index_of_first_image :]
    tags = ["", *(f"<lora:{name}:{weight}>" for weight in ("0.5", "1") for name in names)]
    drawn = {image.info["parameters"].splitlines()[0]: image.convert("RGB").tobytes() for image in cells}
    assert drawn.keys() == {f"zorp{tag}" for tag in tags}
    for tag in tags:
        assert drawn[f"zorp{tag}"] == webui.picture(f"zorp{tag}")
    assert "Steps: 2" in done.infotexts[-1]
    assert p.comments
    found = run.manifest["grid"]
    assert found["state"] == "done"
    assert Image.open(found["path"]).width > 128


def test_a_second_press_draws_nothing_anew(
    webui: FakeWebUI, generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate("red circle", seed=7)
    seen = []
    monkeypatch.setattr("modules.processing.sampled", lambda *args: seen.append(args))
    generate("red circle", seed=7)
    assert seen == []


def test_all_that_changes_a_picture_goes_with_it(webui: FakeWebUI, run: Run, generate: Generate) -> None:
    name = Path(run.manifest["files"][-1]["path"]).stem
    webui.shared.prompt_styles.styles = {"dark": ("dark", "{prompt}, black", "white")}
    hires = {"enable_hr": True, "hr_scale": 2.0, "hr_upscaler": "Latent", "denoising_strength": 0.6}
    hires |= {"hr_prompt": "red", "hr_negative_prompt": "blue"}
    values = {"styles": ["dark"], "negative_prompt": "square", "subseed": 5, "subseed_strength": 0.2, "eta": 0.5}
    values |= {"seed_resize_from_w": 64, "seed_resize_from_h": 64, "tiling": True, "scheduler": "Karras"}
    values |= {"override_settings": {"CLIP_stop_at_last_layers": 2}, **hires}
    done, p = generate("zorp", epochs="last", **values)
    assert p.all_seeds is None  # the script draws in place of the usual drawing
    picture = done.images[-1]
    theirs = webui.draw(f"zorp<lora:{name}:1>", **{**values, "hr_prompt": f"red<lora:{name}:1>"}).images[0]
    assert picture.size == theirs.size == (128, 128)
    assert picture.convert("RGB").tobytes() == theirs.tobytes()
    assert picture.info["parameters"].startswith(f"zorp, black<lora:{name}:1>\nNegative prompt: square, white\n")
    assert "Sampler: Euler a Karras" in picture.info["parameters"]


def test_a_pages_empty_prompt_is_not_the_runs(generate: Generate) -> None:
    done, _ = generate("", epochs="last")
    assert done.images[-1].info["parameters"].startswith("<lora:gridded:1>\n")


def test_seeds_are_those_of_the_pages_batches(generate: Generate) -> None:
    done, _ = generate("zorp", epochs="last", seed=31, n_iter=2)
    texts = [image.info.get("parameters", "") for image in done.images[done.index_of_first_image :]]
    assert {part for text in texts for part in text.split(", ") if part.startswith("Seed")} == {"Seed: 31", "Seed: 32"}


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"name": ""}, "run"),
        ({"name": "nosuch"}, "nosuch"),
        ({"weights": "much"}, "much"),
        ({"epochs": "99"}, "99"),
        ({"subseed_strength": 0.5, "n_iter": 2}, "draws one picture a cell"),
        ({"refiner_checkpoint": "other"}, "with a refiner"),
        ({"enable_hr": True, "hr_checkpoint_name": "other"}, "another checkpoint for hires fix"),
        ({"override_settings": {"sd_model_checkpoint": "other"}}, "in its override settings"),
        ({"override_settings": {"sd_model_checkpoint": "nosuch"}}, "in its override settings"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(generate: Generate, values: dict[str, Any], part: str) -> None:
    assert part in refused(generate, **values)


def test_the_loaded_checkpoint_may_be_named(webui: FakeWebUI, generate: Generate) -> None:
    done, _ = generate("zorp", epochs="last", override_settings={"sd_model_checkpoint": webui.title("small")})
    assert done.images


def test_a_grid_that_is_being_drawn_is_not_drawn_twice(
    jobs: Jobs, generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.drawing, "find", lambda run: SimpleNamespace())
    assert "A grid of gridded is being drawn already" in refused(generate)


def test_an_interrupted_grid_shows_what_is_drawn(webui: FakeWebUI, generate: Generate) -> None:
    seen: list[Any] = []

    def third(params: Any) -> None:
        if webui.shared.state.sampling_step == 0 and params.x is not None:
            seen.append(params)
        if len(seen) == 3:
            webui.shared.state.interrupt()

    callbacks = webui.script_callbacks.callback_map["callbacks_cfg_denoiser"]
    webui.script_callbacks.add_callback(callbacks, third)
    try:
        done, _ = generate("zorp", seed=51, together=1, steps=1)
    finally:
        callbacks.pop()
    cells = done.images[done.index_of_first_image :]
    assert len(cells) == 2
    finished, _ = generate("zorp", seed=51, together=1, steps=1)
    assert len(finished.images[finished.index_of_first_image :]) == 3


def test_scripts_of_other_extensions_that_are_on_are_named(webui: FakeWebUI, generate: Generate) -> None:
    class Other(webui.scripts.Script):
        def title(self) -> str:
            return "Dynamic things"

        def before_process(self, p: Any, *args: Any) -> None:
            p.dynamic = args

    runner, other = webui.scripts.scripts_txt2img, Other()
    other.args_from = len(runner.inputs)
    runner.inputs += [SimpleNamespace(value=False), SimpleNamespace(value=None)]
    other.args_to = len(runner.inputs)
    runner.alwayson_scripts.append(other)
    try:
        _, quiet = generate("zorp", epochs="last", seed=61)
        runner.inputs[other.args_to - 1].value = SimpleNamespace(enabled=True)  # as ControlNet's unit
        _, loud = generate("zorp", epochs="last", seed=61)
    finally:
        runner.alwayson_scripts.remove(other)
        del runner.inputs[other.args_from :]
    assert not any("Dynamic things" in comment for comment in quiet.comments)
    assert any("drawn without Dynamic things" in comment for comment in loud.comments)


def test_the_script_is_in_txt2img_only_and_offers_the_runs(webui: FakeWebUI) -> None:
    assert [each.title() for each in webui.scripts.scripts_img2img.scripts] == ["X/Y/Z plot"]
    script = webui.script(TITLE)
    assert script.args_to - script.args_from == 5
    answers = [fn.fn() for fn in webui.page.fns if fn.fn.__module__ == "lora_train_grid.py"]
    assert {"value" in answer for answer in answers} == {True, False}  # the newest one, and the list alone
    for answer in answers:
        assert answer["choices"] == ["gridded"]
        assert answer.get("value", "gridded") == "gridded"
