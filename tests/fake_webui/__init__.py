"""A WebUI for tests without one: its packages on the small checkpoint, in this process, for as long as a test lasts.

``root/modules`` is what our code uses of the WebUI's package, ``root/lora`` of its Lora extension, ``root/scripts`` of
its X/Y/Z plot. :class:`FakeWebUI` puts them where a WebUI has them and takes everything away again: the packages, and
those of our modules that had imported them.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.helpers import CHECKPOINT, ROOT
from tests.webui.real import kinds

FOLDER = Path(__file__).parent / "root"
_THEIRS = {path.stem for path in (FOLDER / "lora").glob("*.py")} | {"modules"}
_OURS = ("lora_trainer.hosts.a1111.", "lora_trainer.webui.")


def write_other(path: Path) -> None:
    """A checkpoint of the same shape as the small one with other weights."""
    weights = load_file(CHECKPOINT)
    save_file({k: v * 1.01 if k.endswith("to_q.weight") else v for k, v in weights.items()}, path)


@contextmanager
def fake_webui(data: Path, other: Path, *, lora: bool = True) -> Iterator[FakeWebUI]:
    """A WebUI that has started on a folder, with its checkpoint loaded.

    Args:
        data: its ``--data-dir``, empty.
        other: a second checkpoint of the same shape.
        lora: whether its Lora extension is on.
    """
    before, kept_path = dict(sys.modules), list(sys.path)
    threads = torch.get_num_threads()
    _take_away(before)
    _add_checkpoints(data / "models" / "Stable-diffusion", other)
    os.environ["FAKE_WEBUI_DATA"] = str(data)
    sys.path[:0] = [str(FOLDER), *([str(FOLDER / "lora")] if lora else [])]
    webui = None
    try:
        webui = FakeWebUI(data, lora=lora)
        yield webui
    finally:
        if webui is not None:
            webui.close()
        sys.path[:] = kept_path
        del os.environ["FAKE_WEBUI_DATA"]
        _take_away(dict(sys.modules))
        _put_back(before)
        torch.set_num_threads(threads)


def _is_gone_after(name: str) -> bool:
    return name.partition(".")[0] in _THEIRS or name.startswith(_OURS)


def _take_away(modules: dict[str, Any]) -> None:
    """The WebUI's modules, and ours that may have imported them."""
    for name in filter(_is_gone_after, modules):
        sys.modules.pop(name, None)
        parent, _, child = name.rpartition(".")
        if parent in sys.modules and hasattr(sys.modules[parent], child):
            delattr(sys.modules[parent], child)


def _put_back(before: dict[str, Any]) -> None:
    for name in filter(_is_gone_after, before):
        sys.modules[name] = before[name]
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, before[name])


def _add_checkpoints(folder: Path, other: Path) -> None:
    """As a person has them: beside each its yaml, which names the folder of the tokenizer."""
    folder.mkdir(parents=True)
    text = CHECKPOINT.with_suffix(".yaml").read_text(encoding="utf-8")
    clip = (CHECKPOINT.parent / "clip").as_posix()
    for name, source in (("small", CHECKPOINT), ("other", other)):
        (folder / f"{name}.safetensors").symlink_to(source)
        (folder / f"{name}.yaml").write_text(text.replace("version: clip", f"version: {clip}"), encoding="utf-8")


class FakeWebUI:
    """The WebUI that runs in this process; ``webui.shared`` is its ``modules.shared``, and so on."""

    def __init__(self, data: Path, *, lora: bool) -> None:
        self.data, self.loras = data, data / "models" / "Lora"
        self.loras.mkdir(parents=True)
        self.page: Any = None
        models = self.sd_models
        models.list_models()
        self.shared.opts.data["sd_model_checkpoint"] = self.title("small")
        if lora:
            importlib.import_module("extra_networks_lora").install()
        models.load_model()

    def module(self, name: str) -> Any:
        """``modules.<name>``."""
        return importlib.import_module(f"modules.{name}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.module(name)

    @property
    def model(self) -> Any:
        """What is loaded."""
        return self.sd_models.model_data.sd_model

    @property
    def networks(self) -> Any:
        """The Lora extension's module."""
        return importlib.import_module("networks")

    def title(self, name: str) -> str:
        """A checkpoint's name in the list at the top of the page."""
        return next(title for title in self.sd_models.checkpoints_list if title.startswith(f"{name}."))

    def choose(self, name: str) -> None:
        """At the top of the page: the checkpoint is loaded under the lock."""
        self.shared.opts.data["sd_model_checkpoint"] = self.title(name)
        with self.call_queue.queue_lock:
            self.sd_models.reload_model_weights()

    # -------------------------------------------------------------- its page
    def start(self, *files: str) -> Any:
        """Load our scripts and the X/Y/Z plot, and build the page; what has been registered is called as there."""
        self.scripts.load_script(FOLDER / "scripts" / "xyz_grid.py")
        for file in files:
            self.scripts.load_script(ROOT / "scripts" / file)
        return self.build()

    def build(self) -> Any:
        """The page with all scripts of txt2img and img2img."""
        import gradio

        self.script_callbacks.before_ui_callback()
        scripts = self.scripts
        scripts.scripts_txt2img, scripts.scripts_img2img = scripts.ScriptRunner(), scripts.ScriptRunner()
        with gradio.Blocks() as self.page:
            for runner, is_img2img in ((scripts.scripts_txt2img, False), (scripts.scripts_img2img, True)):
                runner.initialize_scripts(is_img2img)
                runner.setup_ui()
        return self.page

    # -------------------------------------------------------------- drawing
    def processing_of(self, prompt: Any, **values: Any) -> Any:
        """What txt2img would draw; of two steps at 64 × 64 unless said."""
        given = {
            "seed": 1,
            "steps": 2,
            "width": 64,
            "height": 64,
            "sampler_name": "Euler a",
            "cfg_scale": 4.0,
            **values,
        }
        p = self.processing.StableDiffusionProcessingTxt2Img(sd_model=self.model, prompt=prompt, **given)
        runner = self.scripts.scripts_txt2img
        p.scripts = runner
        p.script_args = [0, *(getattr(each, "value", None) for each in runner.inputs[1:])]
        return p

    def draw(self, prompt: Any, **values: Any) -> Any:
        """Press *Generate*."""
        return self.finish(self.processing_of(prompt, **values))

    def finish(self, p: Any, script: str = "", arguments: Sequence[Any] = ()) -> Any:
        """Draw under the lock, as ``wrap_gradio_gpu_call`` and the API do; with a script of the list, or without."""
        with self.call_queue.queue_lock:
            self.shared.state.begin(job="scripts_txt2img")
            try:
                if not script:
                    return self.processing.process_images(p)
                found = self.script(script)
                p.script_args[0] = p.scripts.selectable_scripts.index(found) + 1
                p.script_args[found.args_from : found.args_to] = arguments
                return p.scripts.run(p, *p.script_args)
            finally:
                self.shared.state.end()

    def script(self, title: str) -> Any:
        """A script of txt2img by its title."""
        return next(each for each in self.scripts.scripts_txt2img.scripts if each.title() == title)

    def picture(self, prompt: str, **values: Any) -> bytes:
        """The first picture's bytes."""
        return self.draw(prompt, **values).images[0].tobytes()

    def add_lora(self, name: str, kind: str = "LoRA", seed: int = 3, **metadata: str) -> Path:
        """A LoRA file with random weights in the person's folder; of a kind of ``kinds.KINDS``."""
        mapping = self.model.network_layer_mapping
        kinds_of_layers = torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm
        layers = {
            key: list(layer.weight.shape)
            for key, layer in mapping.items()
            if isinstance(layer, kinds_of_layers)
            and key.startswith(("diffusion_model_", "transformer_text_model_encoder"))
        }
        path = self.loras / f"{name}.safetensors"
        tensors = kinds.write_kind(path, kind, layers, seed=seed)
        if metadata:
            save_file(tensors, path, metadata)
        return path

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of everything that is loaded."""
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def close(self) -> None:
        """Stop what goes on, and let torch's layers be their own again."""
        service = sys.modules.get("lora_trainer.jobs.service")
        host = sys.modules.get("lora_trainer.hosts.a1111.host")
        for jobs in [
            each for each in getattr(service, "_shared", ()) if host and isinstance(each.host, host.A1111Host)
        ]:
            jobs.shutdown()
            service._shared.remove(jobs)
        if (networks := sys.modules.get("networks")) and networks.originals is not None:
            networks.originals.undo()
